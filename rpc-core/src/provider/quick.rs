//! Which methods are quick: their handlers answer when they are first polled, in less time than making a task of them
//! takes. Such a request is run where it was read, and all answers of one read leave in one write; everything else gets a
//! task of its own. A method earns this by a row of quick answers and loses it with the first slow turn.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::router::{EnteredMethod, Router};
use crate::link;

/// Quick answers in a row that make a method quick.
const TRUSTED: u32 = 32;
/// Calls that are not timed after one that was not quick, so that slow methods do not pay for clocks.
const UNTIMED: u32 = 31;
/// Requests that are run where they were read before other tasks get their turn.
const BURST_REQUESTS_MAX: u32 = 128;
/// What a turn may take beyond the time of its requests: cold caches, a single request.
const BURST_SLACK: Duration = Duration::from_micros(50);

/// What is known of one method.
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

    /// Whether this call shall be timed, one that runs as a task.
    pub(super) fn is_timed(&self) -> bool {
        // Counts may get lost between threads: then one more or one less is timed.
        match self.untimed.load(Ordering::Relaxed) {
            0 => true,
            more => {
                self.untimed.store(more - 1, Ordering::Relaxed);
                false
            }
        }
    }

    /// A timed call was quick, or not.
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

/// The requests of one connection that are run where they were read.
#[derive(Debug, Default)]
pub(super) struct QuickBurst {
    requests: u32,
    /// The same since the connection's task had to wait, or let others run.
    without_rest: u32,
    /// Bytes read since then.
    bytes: usize,
    /// Their methods; one that comes several times in a row is here once.
    methods: Vec<EnteredMethod>,
}

impl QuickBurst {
    /// Another one.
    pub(super) fn note(&mut self, entered: Option<EnteredMethod>) {
        self.requests += 1;
        self.without_rest += 1;
        if let Some(entered) = entered
            && self.methods.last() != Some(&entered)
        {
            self.methods.push(entered);
        }
    }

    /// So much was read.
    pub(super) const fn read(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// Whether it is time to let others run.
    pub(super) const fn is_over(&self) -> bool {
        self.without_rest >= BURST_REQUESTS_MAX
    }

    /// Whether it is time to let them run once all that was read has been dealt with.
    pub(super) const fn is_full(&self) -> bool {
        self.bytes >= link::TURN_BYTES
    }

    /// Others have run.
    pub(super) const fn rest(&mut self) {
        self.without_rest = 0;
        self.bytes = 0;
    }

    /// All that is here has been read and run since `start`. If that took too long, none of the methods is quick any more.
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

/// Whether a turn of so many requests, run where they were read, was quick.
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
