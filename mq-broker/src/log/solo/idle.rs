//! When the log has work although no command waits: an empty entry that covers the last one, a sync that is
//! overdue, a look at the helper thread. Pure: time is an argument.

use std::time::Duration;

use mq_common::ids::Timestamp;

/// The timing of a log without commands. Its times are the log's, in milliseconds.
#[derive(Debug)]
pub(super) struct IdleTimer {
    idle_ms: u64,
    /// The last entry is empty: once it is synced, no entry before it is in doubt.
    last_is_empty: bool,
    /// No empty entry before this time: there was no space for one.
    empty_from: Timestamp,
    /// When the first entry that is not synced was written.
    unsynced_since: Option<Timestamp>,
    turned_at: Timestamp,
}

impl IdleTimer {
    /// Nothing is unsynced, and the last entry is not covered by an empty one.
    pub(super) fn new(idle: Duration, now: Timestamp) -> Self {
        Self {
            idle_ms: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX),
            last_is_empty: false,
            empty_from: Timestamp(0),
            unsynced_since: None,
            turned_at: now,
        }
    }

    /// A turn begins.
    pub(super) const fn turned(&mut self, now: Timestamp) {
        self.turned_at = now;
    }

    /// Entries with this time were written. Returns whether they are overdue for a sync: one that no command
    /// asked for waits at most until the log would count as idle.
    pub(super) fn wrote(&mut self, time: Timestamp) -> bool {
        self.last_is_empty = false;
        let since = *self.unsynced_since.get_or_insert(time);
        time.0.saturating_sub(since.0) >= self.idle_ms
    }

    /// What was written last is an empty entry.
    pub(super) const fn wrote_empty(&mut self) {
        self.last_is_empty = true;
    }

    /// There was no space for an empty entry: the next try comes later, because each one asks the system for
    /// a file.
    pub(super) fn found_no_space(&mut self, now: Timestamp) {
        self.empty_from = self.after_idle(now);
    }

    /// Everything written is synced.
    pub(super) const fn synced(&mut self) {
        self.unsynced_since = None;
    }

    /// Whether an empty entry is due, after a last entry with time `last`.
    pub(super) fn is_empty_entry_due(&self, last: Timestamp, now: Timestamp) -> bool {
        !self.last_is_empty && self.quiet_until(last).is_some_and(|until| now >= until)
    }

    /// When a turn is due after a last entry with time `last`; `None` = it is covered by an empty entry, and
    /// synced. `is_watched`: the helper thread may have failed, which only a turn notices.
    pub(super) fn wake_at(&self, last: Timestamp, is_watched: bool) -> Option<Timestamp> {
        let watch = is_watched.then(|| self.after_idle(self.turned_at));
        self.quiet_until(last).into_iter().chain(watch).min()
    }

    /// Until when the last entry may stay as it is.
    fn quiet_until(&self, last: Timestamp) -> Option<Timestamp> {
        let is_covered = self.last_is_empty && self.unsynced_since.is_none();
        (!is_covered).then(|| self.after_idle(last).max(self.empty_from))
    }

    fn after_idle(&self, time: Timestamp) -> Timestamp {
        Timestamp(time.0.saturating_add(self.idle_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(10_000);

    fn at(ms: u64) -> Timestamp {
        Timestamp(START.0 + ms)
    }

    fn timer() -> IdleTimer {
        IdleTimer::new(Duration::from_secs(1), START)
    }

    #[test]
    fn an_empty_entry_covers_the_last_one_after_the_idle_time_and_then_there_is_peace() {
        let mut timer = timer();
        assert!(!timer.wrote(at(0)));
        timer.synced();
        assert_eq!(timer.wake_at(at(0), false), Some(at(1000)));
        assert!(!timer.is_empty_entry_due(at(0), at(999)));
        assert!(timer.is_empty_entry_due(at(0), at(1000)));
        timer.wrote(at(1000));
        timer.wrote_empty();
        // Written, but not synced: a turn is due, and no second empty entry.
        assert_eq!(timer.wake_at(at(1000), false), Some(at(2000)));
        assert!(!timer.is_empty_entry_due(at(1000), at(2000)));
        timer.synced();
        assert_eq!(timer.wake_at(at(1000), false), None);
        assert!(!timer.is_empty_entry_due(at(1000), at(1_000_000)));
    }

    #[test]
    fn each_entry_puts_the_empty_one_off() {
        let mut timer = timer();
        timer.wrote(at(0));
        timer.wrote_empty();
        timer.wrote(at(700));
        assert!(!timer.is_empty_entry_due(at(700), at(1500)));
        assert!(timer.is_empty_entry_due(at(700), at(1700)));
    }

    #[test]
    fn entries_that_no_command_syncs_are_overdue_after_the_idle_time_however_many_follow() {
        let mut timer = timer();
        assert!(!timer.wrote(at(0)));
        assert!(!timer.wrote(at(999)));
        assert!(timer.wrote(at(1000)), "counted from the first one");
        timer.synced();
        assert!(!timer.wrote(at(1001)), "counted from the sync on");
        assert!(timer.wrote(at(2001)));
    }

    #[test]
    fn an_empty_entry_without_space_is_tried_again_after_the_idle_time() {
        let mut timer = timer();
        timer.wrote(at(0));
        timer.synced();
        timer.found_no_space(at(1000));
        assert_eq!(timer.wake_at(at(0), false), Some(at(2000)));
        assert!(!timer.is_empty_entry_due(at(0), at(1999)));
        assert!(timer.is_empty_entry_due(at(0), at(2000)));
    }

    #[test]
    fn a_watched_log_turns_once_per_idle_time_though_all_is_covered() {
        let mut timer = timer();
        timer.wrote(at(0));
        timer.wrote_empty();
        timer.synced();
        timer.turned(at(300));
        assert_eq!(timer.wake_at(at(0), true), Some(at(1300)));
        timer.turned(at(1300));
        assert_eq!(timer.wake_at(at(0), true), Some(at(2300)));
        assert_eq!(timer.wake_at(at(0), false), None);
    }
}
