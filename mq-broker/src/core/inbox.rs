//! Where commands wait for the core: bounded in bytes, in order of arrival. When it is full, commands are
//! refused.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::replies::{Answer, Reply};
use super::{Core, Holder};
use crate::log::{Command, Refused, Want};

/// Counted for a command besides its own bytes.
const PROPOSAL_BYTES: usize = 256;
/// Visits by requests that may wait at once.
const VISITS_MAX: usize = 1024;

/// One command on its way to the log.
#[derive(Debug)]
pub(super) struct Proposal {
    pub(super) command: Command,
    pub(super) want: Want,
    pub(super) reply: Reply,
}

impl Proposal {
    fn bytes(&self) -> usize {
        self.command.bytes() + PROPOSAL_BYTES
    }
}

/// A closure that runs on the core between two turns.
pub(super) type Visit = Box<dyn FnOnce(&mut Holder, &Core) + Send>;

/// The origin of a visit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A request: refused when too many are waiting.
    Request,
    /// The broker's upkeep: there are few of these visits, and they are never refused because of requests.
    Upkeep,
}

/// Why the core thread woke up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// Work is waiting.
    Work,
    /// The time-out expired.
    Time,
    /// The inbox was closed: no more commands will arrive.
    Closed,
}

#[derive(Default)]
struct Waiting {
    proposals: VecDeque<Proposal>,
    visits: Vec<Visit>,
    bytes: usize,
    called: bool,
    closed: bool,
}

/// The queue in front of the core.
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    call: Condvar,
    bytes_max: usize,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("bytes_max", &self.bytes_max)
            .finish_non_exhaustive()
    }
}

impl Inbox {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            call: Condvar::new(),
            bytes_max,
        }
    }

    /// Takes all proposals of one request, or none of them.
    pub(super) fn push(&self, proposals: Vec<Proposal>) -> Result<(), Refused> {
        let bytes: usize = proposals.iter().map(Proposal::bytes).sum();
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(Refused::ReadOnly);
        }
        // A request larger than the limit is still accepted when nothing else is waiting.
        if !waiting.proposals.is_empty() && waiting.bytes + bytes > self.bytes_max {
            return Err(Refused::Overloaded {
                bytes_waiting: waiting.bytes,
                bytes_max: self.bytes_max,
            });
        }
        waiting.bytes += bytes;
        waiting.proposals.extend(proposals);
        Ok(())
    }

    /// Takes the oldest proposals: up to `bytes_max`, but at least one.
    pub(super) fn take(&self, bytes_max: usize, into: &mut Vec<Proposal>) {
        let mut taken = 0;
        let mut waiting = self.lock();
        while let Some(first) = waiting.proposals.front() {
            let bytes = first.bytes();
            if taken > 0 && taken + bytes > bytes_max {
                break;
            }
            taken += bytes;
            into.extend(waiting.proposals.pop_front());
        }
        waiting.bytes -= taken;
    }

    /// Adds a visit.
    pub(super) fn push_visit(&self, origin: Origin, visit: Visit) -> Result<(), Refused> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(Refused::ReadOnly);
        }
        if origin == Origin::Request && waiting.visits.len() >= VISITS_MAX {
            return Err(Refused::Overloaded {
                bytes_waiting: waiting.bytes,
                bytes_max: self.bytes_max,
            });
        }
        waiting.visits.push(visit);
        Ok(())
    }

    /// Takes the waiting visits.
    pub(super) fn take_visits(&self) -> Vec<Visit> {
        std::mem::take(&mut self.lock().visits)
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        let waiting = self.lock();
        waiting.proposals.is_empty() && waiting.visits.is_empty()
    }

    /// Wakes the core thread.
    pub(super) fn call(&self) {
        self.lock().called = true;
        self.call.notify_one();
    }

    /// The core's thread waits here for at most `time`.
    pub(super) fn wait(&self, time: Duration) -> Wake {
        let idle = |waiting: &mut Waiting| !waiting.called && !waiting.closed;
        let (mut waiting, timeout) = self
            .call
            .wait_timeout_while(self.lock(), time, idle)
            .unwrap_or_else(PoisonError::into_inner);
        waiting.called = false;
        match (waiting.closed, timeout.timed_out()) {
            (true, _) => Wake::Closed,
            (false, true) => Wake::Time,
            (false, false) => Wake::Work,
        }
    }

    /// Refuses everything from now on; what is already waiting remains.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.call.notify_one();
    }

    /// Refuses everything from now on, including what is waiting: definitely, because none of it has reached
    /// the log.
    pub(super) fn refuse_all(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.bytes = 0;
        let proposals = std::mem::take(&mut waiting.proposals);
        let visits = std::mem::take(&mut waiting.visits);
        drop(waiting);
        self.call.notify_one();
        for proposal in proposals {
            proposal.reply.send(Answer::Refused(Refused::ReadOnly));
        }
        drop(visits);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::replies::Replies;
    use super::*;

    fn proposals(sizes: &[usize]) -> Vec<Proposal> {
        let (_, replies) = Replies::new(sizes.len());
        let each = sizes.iter().zip(replies).map(|(size, reply)| Proposal {
            command: Command::new(Bytes::from(vec![0; *size]), Vec::new()),
            want: Want::Synced,
            reply,
        });
        each.collect()
    }

    #[test]
    fn full_inbox_refuses_all_of_a_request() {
        let inbox = Inbox::new(2000);
        inbox.push(proposals(&[1000])).unwrap();
        let refused = inbox.push(proposals(&[10, 1000])).unwrap_err();
        assert!(matches!(refused, Refused::Overloaded { bytes_max: 2000, .. }));
        let mut taken = Vec::new();
        inbox.take(usize::MAX, &mut taken);
        assert_eq!((taken.len(), inbox.bytes()), (1, 0));
    }

    #[test]
    fn request_above_the_limit_passes_an_empty_inbox() {
        let inbox = Inbox::new(100);
        inbox.push(proposals(&[1000])).unwrap();
        assert!(inbox.push(proposals(&[1])).is_err());
    }

    #[test]
    fn take_stops_at_the_bytes_and_keeps_order() {
        let inbox = Inbox::new(usize::MAX);
        inbox.push(proposals(&[1, 2, 3])).unwrap();
        let mut taken = Vec::new();
        inbox.take(2 * PROPOSAL_BYTES + 3, &mut taken);
        let sizes: Vec<_> = taken.iter().map(|proposal| proposal.command.bytes()).collect();
        assert_eq!(sizes, [1, 2]);
    }

    #[test]
    fn closed_inbox_refuses_and_ends_the_wait() {
        let inbox = Inbox::new(100);
        inbox.close();
        assert_eq!(inbox.push(proposals(&[1])).unwrap_err(), Refused::ReadOnly);
        assert_eq!(inbox.wait(Duration::from_secs(60)), Wake::Closed);
    }
}
