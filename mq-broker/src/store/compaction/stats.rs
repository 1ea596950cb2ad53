//! When the statistics of queues are written into their `queue_stat.txt`: at most once a minute per queue, a
//! few at a time, during rounds and without any.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mq_common::ids::Offset;

use crate::ids::QueueKey;
use crate::store::Store;
use crate::store::queue_files::{View, write_stat};

/// Changes are collected and written at most this often.
const EVERY: Duration = Duration::from_secs(60);
/// Files written at once.
const AT_ONCE: usize = 256;
/// The most files written when the broker stops, so that the stop completes.
const AT_STOP: usize = 10_000;

/// Queues whose statistics changed, with their first valid offset.
#[derive(Debug, Default)]
pub(super) struct Stats {
    /// Changed since the last write.
    changed: BTreeMap<QueueKey, Offset>,
    /// Being written.
    due: BTreeMap<QueueKey, Offset>,
    since: Option<Instant>,
}

impl Stats {
    pub(super) fn changed(&mut self, queues: impl IntoIterator<Item = (QueueKey, Offset)>) {
        self.changed.extend(queues);
    }

    fn is_due(&self, now: Instant) -> bool {
        let waited = |since| now.saturating_duration_since(since) >= EVERY;
        !self.due.is_empty() || (!self.changed.is_empty() && self.since.is_none_or(waited))
    }

    /// Those to write now.
    fn take(&mut self, now: Instant) -> Vec<(QueueKey, Offset)> {
        if self.due.is_empty() && self.is_due(now) {
            self.due = std::mem::take(&mut self.changed);
            self.since = Some(now);
        }
        std::iter::from_fn(|| self.due.pop_first())
            .take(AT_ONCE)
            .collect()
    }
}

impl Store {
    /// Whether [`Store::write_stats`] would write anything.
    #[must_use]
    pub fn has_stats(&self, now: Instant) -> bool {
        self.rounds().stats.is_due(now)
    }

    /// Writes the statistics of some queues whose files changed. Blocks.
    pub fn write_stats(&self, now: Instant) {
        let taken = self.rounds().stats.take(now);
        self.write_stats_of(taken);
    }

    /// Writes the remaining ones at the broker's stop, if they are not too many. Blocks.
    pub fn write_last_stats(&self) {
        let mut rounds = self.rounds();
        let stats = std::mem::take(&mut rounds.stats);
        drop(rounds);
        let mut left = stats.due;
        left.extend(stats.changed);
        self.write_stats_of(left.into_iter().take(AT_STOP));
    }

    /// They are for people: a failed write is logged, and repeated at the next change.
    fn write_stats_of(&self, queues: impl IntoIterator<Item = (QueueKey, Offset)>) {
        for (queue, start) in queues {
            let segments: Vec<View> = self.lock().index.files.of(queue).collect();
            if let Err(error) = write_stat(&self.folder, &segments, start) {
                tracing::warn!(queue = queue.0, %error, "the statistics of a queue's files cannot be written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(numbers: std::ops::Range<u32>) -> impl Iterator<Item = (QueueKey, Offset)> {
        numbers.map(|number| (QueueKey(number), Offset(0)))
    }

    #[test]
    fn some_are_written_at_a_time_and_what_changes_meanwhile_a_minute_later() {
        let (mut stats, now) = (Stats::default(), Instant::now());
        assert!(!stats.is_due(now));
        stats.changed(queues(0..300));
        assert!(stats.take(now).into_iter().eq(queues(0..256)));
        stats.changed([(QueueKey(7), Offset(1))]);
        assert!(stats.is_due(now));
        assert!(stats.take(now).into_iter().eq(queues(256..300)));
        let before = now + EVERY - Duration::from_secs(1);
        assert!(!stats.is_due(before));
        assert_eq!(stats.take(before), []);
        assert!(stats.is_due(now + EVERY));
        assert_eq!(stats.take(now + EVERY), [(QueueKey(7), Offset(1))]);
        assert!(!stats.is_due(now + EVERY * 2));
    }
}
