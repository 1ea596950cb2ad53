//! One queue as its owner has it, from the grant to its release: who works on it, how far it came, and whether it is to
//! be given back. Nothing here waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mq_common::api::group::Ack;
use mq_common::ids::{Offset, OwnerEpoch, QueueNumber};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::route::lock;

/// How long a queue that is to be given back waits for the application to ack what it took.
const RELEASE_WITHIN: Duration = Duration::from_secs(3);

/// What is to be told to one broker.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    state: Mutex<AckState>,
    /// Something became dirty, or a queue may be released: the member's task looks.
    pub(crate) changed: Notify,
    /// Everything was told.
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

    /// Whether the queue's progress is still to be told.
    pub(crate) fn holds(&self, queue: QueueNumber) -> bool {
        lock(&self.state).dirty.contains_key(&queue)
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !lock(&self.state).dirty.is_empty()
    }

    /// Takes what is to be told; [`Acks::told`] must follow.
    pub(crate) fn take(&self) -> Vec<Ack> {
        let mut state = lock(&self.state);
        state.under_way = true;
        std::mem::take(&mut state.dirty).into_values().collect()
    }

    /// What was taken was told; `again` of it was not, and is taken next time unless there is later progress.
    pub(crate) fn told(&self, again: Vec<Ack>) {
        let mut state = lock(&self.state);
        state.under_way = false;
        for ack in again {
            state.dirty.entry(ack.queue).or_insert(ack);
        }
        drop(state);
        self.settled.notify_waiters();
    }

    /// Waits until everything is told.
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

/// See the module.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) queue: QueueNumber,
    pub(crate) epoch: OwnerEpoch,
    /// The group's cursor when it was granted.
    pub(crate) cursor: Offset,
    acks: Arc<Acks>,
    /// Cancelled when it is to be given back or is lost.
    pub(crate) ended: CancellationToken,
    work: Mutex<Work>,
}

#[derive(Debug, Default)]
struct Work {
    /// The application has a message of it.
    working: bool,
    /// First offset that the application did not take.
    delivered: Offset,
    /// First offset that is not done.
    done: Offset,
    /// Everything below was taken or is a hole.
    passed: Offset,
    /// When it was to be given back.
    revoked: Option<Instant>,
    /// It belongs to somebody else.
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

    /// The application takes the message at `offset`; false = it must not, the queue is going or gone.
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

    /// Everything below `next` is done. False = the queue is lost and the progress with it.
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
        // Under the lock: who sees that the message is done also sees that this is to be told.
        self.acks.done(ack);
        true
    }

    /// The application took every message below `next`. What else lies there holds nothing, and is done as soon as the last
    /// of them is: no ack would ever name it.
    pub(crate) fn passed(&self, next: Offset) {
        let mut work = lock(&self.work);
        // What it was not allowed to take is still to come, elsewhere.
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

    /// It is to be given back.
    pub(crate) fn revoke(&self, now: Instant) {
        lock(&self.work).revoked.get_or_insert(now);
        self.ended.cancel();
    }

    /// It belongs to somebody else.
    pub(crate) fn lose(&self) {
        lock(&self.work).lost = true;
        self.ended.cancel();
    }

    pub(crate) fn is_lost(&self) -> bool {
        lock(&self.work).lost
    }

    /// Whether it was to be given back and now can be: nobody works on it, and what was taken is done or was given time.
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
