//! One assigned queue, from its assignment to its release: whether the application works on it, its progress,
//! and whether it must be given back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mq_common::api::group::Ack;
use mq_common::ids::{Offset, OwnerEpoch, QueueNumber};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::route::lock;

/// How long a queue that must be given back waits for the application to ack the messages it took.
const RELEASE_WITHIN: Duration = Duration::from_secs(3);

/// The acks to be sent to one broker.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    state: Mutex<AckState>,
    /// There are new acks, or a queue may be released: wakes the member's task.
    pub(crate) changed: Notify,
    /// All acks were sent.
    settled: Notify,
}

#[derive(Debug, Default)]
struct AckState {
    dirty: BTreeMap<QueueNumber, Ack>,
    under_way: bool,
}

impl Acks {
    fn done(&self, ack: Ack) {
        let mut state = lock(&self.state);
        match state.dirty.get(&ack.queue) {
            Some(known) if (known.epoch, known.next) >= (ack.epoch, ack.next) => return,
            _ => {}
        }
        state.dirty.insert(ack.queue, ack);
        drop(state);
        self.changed.notify_one();
    }

    /// Whether an ack of the queue is still to be sent.
    pub(crate) fn holds(&self, queue: QueueNumber) -> bool {
        lock(&self.state).dirty.contains_key(&queue)
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !lock(&self.state).dirty.is_empty()
    }

    /// Takes the acks to be sent; [`Acks::told`] must follow.
    pub(crate) fn take(&self) -> Vec<Ack> {
        let mut state = lock(&self.state);
        state.under_way = true;
        std::mem::take(&mut state.dirty).into_values().collect()
    }

    /// The acks taken were sent, except `again`, which are taken next time unless there is later progress.
    pub(crate) fn told(&self, again: Vec<Ack>) {
        let mut state = lock(&self.state);
        state.under_way = false;
        for ack in again {
            state.dirty.entry(ack.queue).or_insert(ack);
        }
        drop(state);
        self.settled.notify_waiters();
    }

    /// Waits until all acks were sent.
    pub(crate) async fn wait_settled(&self) {
        loop {
            let settled = self.settled.notified();
            {
                let state = lock(&self.state);
                if state.dirty.is_empty() && !state.under_way {
                    return;
                }
            }
            self.changed.notify_one();
            settled.await;
        }
    }
}

/// One assigned queue.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) queue: QueueNumber,
    pub(crate) epoch: OwnerEpoch,
    /// The group's cursor when the queue was assigned.
    pub(crate) cursor: Offset,
    acks: Arc<Acks>,
    /// Cancelled when it must be given back or was reassigned.
    pub(crate) ended: CancellationToken,
    work: Mutex<Work>,
}

#[derive(Debug, Default)]
struct Work {
    /// The application is working on a message of it.
    working: bool,
    /// The first offset that the application has not taken.
    delivered: Offset,
    /// The first offset that is not done.
    done: Offset,
    /// Everything below this was taken or is a hole.
    passed: Offset,
    /// When the broker asked for it back.
    revoked: Option<Instant>,
    /// It belongs to another member.
    lost: bool,
}

impl Owned {
    pub(crate) fn new(queue: QueueNumber, epoch: OwnerEpoch, cursor: Offset, acks: Arc<Acks>) -> Self {
        Self {
            queue,
            epoch,
            cursor,
            acks,
            ended: CancellationToken::new(),
            work: Mutex::new(Work {
                delivered: cursor,
                done: cursor,
                passed: cursor,
                ..Work::default()
            }),
        }
    }

    /// The application takes the message at `offset`; false if it must not, because the queue was revoked or
    /// reassigned.
    pub(crate) fn begin(&self, offset: Offset) -> bool {
        let mut work = lock(&self.work);
        if work.revoked.is_some() || work.lost {
            return false;
        }
        work.working = true;
        work.delivered = work.delivered.max(Offset(offset.0 + 1));
        true
    }

    /// The application no longer works on a message of it.
    pub(crate) fn end(&self) {
        let mut work = lock(&self.work);
        work.working = false;
        let going = work.revoked.is_some();
        drop(work);
        if going {
            self.acks.changed.notify_one();
        }
    }

    /// Everything below `next` is done. False if the queue was reassigned, which discards the progress.
    pub(crate) fn done(&self, next: Offset) -> bool {
        let mut work = lock(&self.work);
        if work.lost {
            return false;
        }
        work.done = work.done.max(next);
        if work.done >= work.delivered {
            work.done = work.done.max(work.passed);
        }
        let ack = Ack {
            queue: self.queue,
            epoch: self.epoch,
            next: work.done,
        };
        // Under the lock: a task that sees that the message is done also sees the ack to be sent.
        self.acks.done(ack);
        true
    }

    /// The application took every message below `next`. The other offsets there are holes; they are done as
    /// soon as the last of these messages is, since no ack would ever name them.
    pub(crate) fn passed(&self, next: Offset) {
        let mut work = lock(&self.work);
        // The messages it was not allowed to take will be delivered to the next owner.
        if work.revoked.is_some() || work.lost {
            return;
        }
        work.passed = work.passed.max(next);
        let done = work.done;
        let hole_at_end = done >= work.delivered && done < work.passed;
        drop(work);
        if hole_at_end {
            self.done(done);
        }
    }

    /// The broker asks for it back.
    pub(crate) fn revoke(&self, now: Instant) {
        lock(&self.work).revoked.get_or_insert(now);
        self.ended.cancel();
    }

    /// It belongs to another member.
    pub(crate) fn lose(&self) {
        lock(&self.work).lost = true;
        self.ended.cancel();
    }

    pub(crate) fn is_lost(&self) -> bool {
        lock(&self.work).lost
    }

    /// Whether it was revoked and can be given back now: the application does not work on it, and the
    /// messages taken are done or had enough time.
    pub(crate) fn may_release(&self, now: Instant) -> bool {
        let work = lock(&self.work);
        let Some(since) = work.revoked else {
            return false;
        };
        let late = now.saturating_duration_since(since) > RELEASE_WITHIN;
        !work.working && (work.done >= work.delivered || late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned() -> (Owned, Arc<Acks>) {
        let acks = Arc::<Acks>::default();
        let owned = Owned::new(
            QueueNumber(1),
            OwnerEpoch::default(),
            Offset(10),
            Arc::clone(&acks),
        );
        (owned, acks)
    }

    #[test]
    fn revoked_queue_is_released_when_its_message_is_done() {
        let (owned, acks) = owned();
        let now = Instant::now();
        assert!(!owned.may_release(now));
        assert!(owned.begin(Offset(10)));
        owned.revoke(now);
        assert!(!owned.begin(Offset(11)));
        assert!(!owned.may_release(now));
        assert!(owned.done(Offset(11)));
        owned.end();
        assert!(owned.may_release(now));
        assert_eq!(acks.take().first().map(|ack| ack.next), Some(Offset(11)));
    }

    #[test]
    fn revoked_queue_waits_for_acks_of_what_was_taken_but_not_forever() {
        let (owned, _acks) = owned();
        let now = Instant::now();
        assert!(owned.begin(Offset(10)));
        owned.end();
        owned.revoke(now);
        assert!(!owned.may_release(now));
        assert!(owned.may_release(now + RELEASE_WITHIN + Duration::from_millis(1)));
    }

    #[test]
    fn what_holds_nothing_is_done_with_the_last_message_before_it_and_not_earlier() {
        let (owned, acks) = owned();
        let told = || acks.take().first().map(|ack| ack.next.0);
        owned.passed(Offset(12));
        assert_eq!(told(), Some(12), "nothing was taken");
        owned.begin(Offset(12));
        owned.begin(Offset(14));
        owned.passed(Offset(20));
        assert_eq!(told(), None);
        owned.done(Offset(13));
        assert_eq!(told(), Some(13), "one is not done");
        owned.done(Offset(15));
        assert_eq!(told(), Some(20));
        owned.done(Offset(13));
        assert_eq!(told(), Some(20), "acked late, in another order");
        owned.revoke(Instant::now());
        assert!(!owned.begin(Offset(20)));
        owned.passed(Offset(21));
        assert_eq!(told(), None, "its next owner gets it");
    }

    #[test]
    fn lost_queue_takes_no_progress() {
        let (owned, acks) = owned();
        owned.lose();
        assert!(!owned.done(Offset(12)));
        assert!(!acks.is_dirty());
        assert!(owned.ended.is_cancelled());
    }

    #[test]
    fn progress_that_was_not_told_is_told_again_unless_there_is_later() {
        let (owned, acks) = owned();
        owned.done(Offset(11));
        let taken = acks.take();
        acks.told(taken);
        assert!(acks.is_dirty());
        let taken = acks.take();
        owned.done(Offset(15));
        owned.done(Offset(12));
        acks.told(taken);
        assert_eq!(acks.take().first().map(|ack| ack.next), Some(Offset(15)));
    }
}
