//! Finds quick methods: those whose handlers answer at their first poll, in less time than creating a task
//! for them takes. Such a request runs where it was read, and all answers to one read leave in one write;
//! every other request gets a task of its own. A method becomes quick by a series of quick answers and ceases
//! to be quick with the first slow burst.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::router::{EnteredMethod, Router};
use crate::link;

/// Consecutive quick answers that make a method quick.
const TRUSTED: u32 = 32;
/// Calls that are not timed after one that was not quick, so that slow methods do not pay for reading the
/// clock.
const UNTIMED: u32 = 31;
/// Requests that run where they were read before other tasks get to run.
const BURST_REQUESTS_MAX: u32 = 128;
/// Time that a burst may take in addition to that of its requests: for cold caches, or a single request.
const BURST_SLACK: Duration = Duration::from_micros(50);

/// The observations about one method.
#[derive(Debug, Default)]
pub(super) struct Quickness {
    quick_in_a_row: AtomicU32,
    untimed: AtomicU32,
}

impl Quickness {
    /// Whether its handler is run where the request was read.
    pub(super) fn is_quick(&self) -> bool {
        self.quick_in_a_row.load(Ordering::Relaxed) >= TRUSTED
    }

    /// Whether this call, which runs as a task, is to be timed.
    pub(super) fn is_timed(&self) -> bool {
        // A count may get lost between threads: then one more or one fewer call is timed.
        match self.untimed.load(Ordering::Relaxed) {
            0 => true,
            more => {
                self.untimed.store(more - 1, Ordering::Relaxed);
                false
            }
        }
    }

    /// Records whether a timed call was quick.
    pub(super) fn note(&self, quick: bool) {
        if quick {
            let row = self.quick_in_a_row.load(Ordering::Relaxed);
            self.quick_in_a_row
                .store(row.saturating_add(1), Ordering::Relaxed);
        } else {
            self.quick_in_a_row.store(0, Ordering::Relaxed);
            self.untimed.store(UNTIMED, Ordering::Relaxed);
        }
    }
}

/// The requests of one connection that run where they were read.
#[derive(Debug, Default)]
pub(super) struct QuickBurst {
    requests: u32,
    /// Those since the connection's task last waited or yielded.
    without_rest: u32,
    /// Bytes read since then.
    bytes: usize,
    /// Their methods; consecutive calls of the same one are listed once.
    methods: Vec<EnteredMethod>,
}

impl QuickBurst {
    /// Adds a request.
    pub(super) fn note(&mut self, entered: Option<EnteredMethod>) {
        self.requests += 1;
        self.without_rest += 1;
        if let Some(entered) = entered
            && self.methods.last() != Some(&entered)
        {
            self.methods.push(entered);
        }
    }

    /// Adds bytes that were read.
    pub(super) const fn read(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// Whether it is time to let other tasks run.
    pub(super) const fn is_over(&self) -> bool {
        self.without_rest >= BURST_REQUESTS_MAX
    }

    /// Whether to let other tasks run once all that was read has been handled.
    pub(super) const fn is_full(&self) -> bool {
        self.bytes >= link::TURN_BYTES
    }

    /// Other tasks have run.
    pub(super) const fn rest(&mut self) {
        self.without_rest = 0;
        self.bytes = 0;
    }

    /// All these requests have been read and run since `start`. If that took too long, none of their methods
    /// stays quick.
    pub(super) fn end(&mut self, start: Instant, quick: Duration, router: &Router) {
        if self.requests == 0 {
            return;
        }
        if !was_quick(start.elapsed(), self.requests, quick) {
            self.methods
                .iter()
                .for_each(|entered| router.quickness(*entered).note(false));
        }
        self.requests = 0;
        self.methods.clear();
    }
}

/// Whether a burst of this many requests, run where they were read, was quick.
fn was_quick(elapsed: Duration, requests: u32, quick: Duration) -> bool {
    elapsed <= quick.saturating_mul(requests).saturating_add(BURST_SLACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_is_earned_in_a_row_and_lost_at_once() {
        let quickness = Quickness::default();
        for _ in 1..TRUSTED {
            quickness.note(true);
        }
        assert!(!quickness.is_quick());
        quickness.note(true);
        assert!(quickness.is_quick());
        quickness.note(false);
        assert!(!quickness.is_quick());
        let timed = (0..=UNTIMED).filter(|_| quickness.is_timed()).count();
        assert_eq!(timed, 1);
    }

    #[test]
    fn turn_is_judged_by_its_requests() {
        let quick = Duration::from_micros(5);
        assert!(was_quick(Duration::from_micros(55), 1, quick));
        assert!(!was_quick(Duration::from_micros(56), 1, quick));
        assert!(was_quick(Duration::from_micros(370), 64, quick));
        assert!(!was_quick(Duration::from_millis(1), 64, quick));
    }
}
