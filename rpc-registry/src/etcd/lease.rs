//! How long our lease is certainly valid, by our own clock from the moment a ping was *sent*: the server
//! received it later and so keeps the lease at least that long. No clock, no etcd here: time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The meaning of an answer to a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Renewed,
    /// The server does not know the lease: its keys are gone.
    Lost,
}

#[derive(Debug)]
pub(super) struct LeaseClock {
    ttl: Duration,
    deadline: Instant,
    last_ping: Instant,
    /// When the pings without an answer were sent, oldest first: answers arrive in order. At most a handful,
    /// since the deadline passes first.
    unanswered: VecDeque<Instant>,
}

impl LeaseClock {
    /// A lease requested at `sent` and granted for `ttl` (which may be more than requested).
    pub(super) fn granted(sent: Instant, ttl: Duration) -> Self {
        Self {
            ttl,
            deadline: sent + ttl,
            last_ping: sent,
            unanswered: VecDeque::new(),
        }
    }

    /// A new stream: pings sent on the previous one will not be answered.
    pub(super) fn reconnected(&mut self) {
        self.unanswered.clear();
    }

    pub(super) fn pinged(&mut self, now: Instant) {
        self.last_ping = now;
        self.unanswered.push_back(now);
    }

    /// The answer to the oldest open ping: the lease has `ttl_s` seconds left from when that was sent.
    pub(super) fn answered(&mut self, ttl_s: i64) -> Answer {
        let Some(ttl_s) = u64::try_from(ttl_s).ok().filter(|ttl_s| *ttl_s > 0) else {
            return Answer::Lost;
        };
        if !self.unanswered.is_empty() {
            self.ttl = Duration::from_secs(ttl_s);
            self.confirmed();
        }
        Answer::Renewed
    }

    /// The oldest open ping was answered without a remaining time.
    pub(super) fn confirmed(&mut self) {
        if let Some(sent) = self.unanswered.pop_front() {
            self.deadline = self.deadline.max(sent + self.ttl);
        }
    }

    /// When the next ping is due: three per lease, so that two may be lost.
    pub(super) fn next_ping(&self) -> Instant {
        self.last_ping + self.ttl / 3
    }

    /// After this the lease may be gone.
    pub(super) const fn deadline(&self) -> Instant {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn deadline_counts_from_when_the_ping_was_sent() {
        let start = Instant::now();
        let mut clock = LeaseClock::granted(start, 9 * SECOND);
        assert_eq!(clock.next_ping(), start + 3 * SECOND);
        clock.pinged(start + 3 * SECOND);
        clock.pinged(start + 6 * SECOND);
        assert_eq!(clock.deadline(), start + 9 * SECOND, "no answer yet");
        assert_eq!(clock.answered(9), Answer::Renewed);
        assert_eq!(
            clock.deadline(),
            start + 12 * SECOND,
            "an answer that came late still answers the first ping"
        );
        assert_eq!(clock.answered(9), Answer::Renewed);
        assert_eq!(clock.deadline(), start + 15 * SECOND);
        assert_eq!(clock.next_ping(), start + 9 * SECOND);
    }

    #[test]
    fn answer_without_time_left_means_lost() {
        let start = Instant::now();
        for ttl_s in [0, -1] {
            let mut clock = LeaseClock::granted(start, 9 * SECOND);
            clock.pinged(start);
            assert_eq!(clock.answered(ttl_s), Answer::Lost);
        }
    }

    #[test]
    fn pings_of_a_broken_stream_are_not_credited() {
        let start = Instant::now();
        let mut clock = LeaseClock::granted(start, 9 * SECOND);
        clock.pinged(start + 3 * SECOND);
        clock.reconnected();
        clock.pinged(start + 5 * SECOND);
        assert_eq!(clock.answered(9), Answer::Renewed);
        assert_eq!(clock.deadline(), start + 14 * SECOND);
        assert_eq!(clock.answered(9), Answer::Renewed, "an answer nobody asked for");
        assert_eq!(clock.deadline(), start + 14 * SECOND);
    }

    #[test]
    fn server_may_change_the_time_to_live() {
        let start = Instant::now();
        let mut clock = LeaseClock::granted(start, 9 * SECOND);
        clock.pinged(start + SECOND);
        assert_eq!(clock.answered(30), Answer::Renewed);
        assert_eq!(clock.deadline(), start + 31 * SECOND);
        assert_eq!(clock.next_ping(), start + 11 * SECOND);
    }
}
