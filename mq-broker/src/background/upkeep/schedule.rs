//! When a checkpoint is due. Pure.

use std::time::{Duration, Instant};

use crate::config;

/// After a checkpoint that could not be saved, the next attempt waits this long.
const RETRY: Duration = Duration::from_secs(5);
/// When no checkpoint could be saved for this long, the broker is not ready.
pub(super) const OVERDUE: Duration = Duration::from_secs(5 * 60);

/// Decides when a checkpoint is due.
#[derive(Debug)]
pub(super) struct Schedule {
    settings: config::Checkpoint,
    /// Bytes by which the journal had grown at the last checkpoint.
    saved_growth: u64,
    /// When the first change happened that is not in a checkpoint.
    changed_at: Option<Instant>,
    /// After a failure, nothing is saved before this time.
    pub(super) not_before: Instant,
    /// When the first of the latest failures happened.
    failing_since: Option<Instant>,
}

impl Schedule {
    pub(super) const fn new(settings: config::Checkpoint, now: Instant) -> Self {
        Self {
            settings,
            saved_growth: 0,
            changed_at: None,
            not_before: now,
            failing_since: None,
        }
    }

    /// Something changed that is not in a checkpoint.
    pub(super) fn changed(&mut self, now: Instant) {
        self.changed_at.get_or_insert(now);
    }

    /// Whether a checkpoint may be saved now: not shortly after a failure.
    pub(super) fn allows(&self, now: Instant) -> bool {
        now >= self.not_before
    }

    /// Whether enough time or `growth` of the journal has passed since the last checkpoint.
    pub(super) fn is_due(&self, now: Instant, growth: u64) -> bool {
        let every = Duration::from_millis(self.settings.every_ms);
        self.changed_at.is_some_and(|at| {
            let grown = growth.saturating_sub(self.saved_growth);
            now.saturating_duration_since(at) >= every || grown >= self.settings.every_bytes
        })
    }

    /// A checkpoint is taken: it contains all changes so far.
    pub(super) fn taken(&mut self) {
        self.changed_at = None;
    }

    /// The checkpoint could not be saved: its changes, noted at `changed`, are still unsaved, and the next
    /// attempt waits.
    pub(super) fn retry(&mut self, changed: Instant, now: Instant) {
        self.changed_at = Some(changed);
        self.not_before = now + RETRY;
    }

    /// Notes a failure; returns whether saving has failed for too long. A checkpoint that cannot be saved now
    /// may be saved later; but an operator must act before the journal is full or the next start refuses it.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        let since = *self.failing_since.get_or_insert(now);
        now.saturating_duration_since(since) >= OVERDUE
    }

    /// A checkpoint was saved, taken when the journal had grown by `growth`.
    pub(super) fn saved(&mut self, growth: u64) {
        self.saved_growth = growth;
        self.failing_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: config::Checkpoint = config::Checkpoint {
        every_bytes: 1000,
        every_ms: 100,
    };

    #[test]
    fn a_checkpoint_is_due_some_time_after_a_change_or_once_the_journal_has_grown() {
        let start = Instant::now();
        let mut schedule = Schedule::new(SETTINGS, start);
        let late = start + Duration::from_millis(100);
        assert!(!schedule.is_due(late, 5000), "nothing changed");
        schedule.changed(start);
        schedule.changed(late);
        assert!(!schedule.is_due(start, 999));
        assert!(schedule.is_due(start, 1000));
        assert!(schedule.is_due(late, 0), "the first change counts");
        schedule.taken();
        schedule.saved(5000);
        schedule.changed(late);
        assert!(!schedule.is_due(late, 5999));
        assert!(schedule.is_due(late, 6000));
    }

    #[test]
    fn a_failure_is_retried_after_a_pause_and_is_overdue_when_it_lasts() {
        let start = Instant::now();
        let mut schedule = Schedule::new(SETTINGS, start);
        assert!(schedule.allows(start));
        schedule.retry(start, start);
        assert!(!schedule.allows(start) && schedule.allows(start + RETRY));
        assert!(schedule.is_due(start + RETRY, 0), "the changes are still unsaved");
        assert!(!schedule.failed(start));
        assert!(!schedule.failed(start + RETRY));
        assert!(schedule.failed(start + OVERDUE));
        schedule.saved(0);
        assert!(!schedule.failed(start + OVERDUE), "a new failure");
    }
}
