//! Which queues are worth a pass over their keys: those whose files have much that was not compacted yet, and
//! those that may have a tombstone whose time is over. Driven by changes: a queue is checked when its files
//! change, or when its time comes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use mq_common::ids::Timestamp;

use super::first_dirty;
use crate::ids::QueueKey;
use crate::store::queue_files::View;
use crate::store::{Plan, Store};

/// In a queue of which nothing is known, as after a start, tombstones are searched this long after it was
/// first seen, milliseconds of the log's time; and again where that failed.
const FIRST_LOOK_MS: u64 = 60 * 60 * 1000;

/// A queue with enough data that no pass has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactionCandidate {
    /// The queue.
    pub queue: QueueKey,
    /// Bytes of its files that no pass has seen.
    pub bytes: u64,
    /// Bytes of all its files: what a pass reads, and may have to write.
    pub all_bytes: u64,
}

/// What is remembered of queues from one check to the next.
#[derive(Debug, Default)]
pub(in crate::store::compaction) struct Choice {
    /// Those to check: worth a pass the last time, or with files that are left alone for a while.
    again: BTreeSet<QueueKey>,
    /// Those that are only worth a pass if they contain a tombstone whose time is over.
    searched: BTreeSet<QueueKey>,
    tombstones: Tombstones,
}

/// When queues have to be searched for tombstones; no time: not before their files change.
#[derive(Debug, Default)]
struct Tombstones {
    of: BTreeMap<QueueKey, Option<Timestamp>>,
    by_time: BTreeSet<(Timestamp, QueueKey)>,
}

impl Tombstones {
    fn forget(&mut self, queue: QueueKey) -> Option<Option<Timestamp>> {
        let known = self.of.remove(&queue)?;
        if let Some(at) = known {
            self.by_time.remove(&(at, queue));
        }
        Some(known)
    }

    fn set(&mut self, queue: QueueKey, at: Option<Timestamp>) {
        self.forget(queue);
        self.of.insert(queue, at);
        self.by_time.extend(at.map(|at| (at, queue)));
    }

    fn due(&self, now: Timestamp) -> impl Iterator<Item = QueueKey> {
        let due = self.by_time.iter().take_while(move |(at, _)| *at <= now);
        due.map(|(_, queue)| *queue)
    }
}

impl Choice {
    /// A pass over this queue begins, or only a search: whatever the result, the next search waits.
    pub(super) fn begin(&mut self, queue: QueueKey, now: Timestamp) {
        if self.tombstones.of.contains_key(&queue) {
            self.tombstones.set(queue, Some(later(now, FIRST_LOOK_MS)));
        }
    }

    /// Whether it is worth a pass only if a tombstone is found.
    pub(super) fn is_searched(&self, queue: QueueKey) -> bool {
        self.searched.contains(&queue)
    }
}

impl Store {
    /// Queues worth a pass at `now` of the log's time: those with the most bytes that no pass has seen first,
    /// then those to be searched for tombstones. `compacts` returns whether a queue's topic is compacted. Of
    /// the queues whose files changed, only those that [`Store::dead`] has checked are considered.
    #[must_use]
    pub fn compaction_candidates(
        &self,
        now: Timestamp,
        compacts: impl Fn(QueueKey) -> bool,
    ) -> Vec<CompactionCandidate> {
        let mut rounds = self.rounds();
        if rounds.is_running() {
            return Vec::new();
        }
        let mut inner = self.lock();
        let changed = std::mem::take(&mut inner.index.changed);
        let of = |queue| inner.index.files.of(queue).collect::<Vec<View>>();
        let rounds = &mut *rounds;
        let choice = &mut rounds.choice;
        for queue in changed.iter().copied() {
            let known = choice.tombstones.forget(queue);
            if compacts(queue) && !of(queue).is_empty() {
                // New data is younger than the known tombstones, if there are any.
                let wait = known.map_or(FIRST_LOOK_MS.min(self.keys.tombstone_ms), |_| {
                    self.keys.tombstone_ms
                });
                let at = known.flatten().into_iter().chain([later(now, wait)]).min();
                choice.tombstones.set(queue, at);
            }
        }
        choice.again.extend(changed);
        let mut dirty = Vec::new();
        choice.again.retain(|queue| {
            if rounds.stuck_queues.contains(queue) {
                return true;
            }
            let mut views = of(*queue);
            let files = views.len();
            views.retain(|view| !rounds.stuck_files.contains(&(*queue, view.first)));
            let found = summary(*queue, &views);
            let is_worth_it = compacts(*queue) && self.is_worth_it(&found);
            dirty.extend(is_worth_it.then_some(found));
            is_worth_it || views.len() < files
        });
        dirty.sort_by_key(|dirty| Reverse(dirty.bytes));
        let due: Vec<QueueKey> = choice.tombstones.due(now).collect();
        choice.searched.clear();
        let worth_it: BTreeSet<QueueKey> = dirty.iter().map(|dirty| dirty.queue).collect();
        for queue in due {
            if !compacts(queue) {
                choice.tombstones.forget(queue);
            } else if !worth_it.contains(&queue) && !rounds.stuck_queues.contains(&queue) {
                choice.searched.insert(queue);
                dirty.push(summary(queue, &of(queue)));
            }
        }
        dirty
    }

    /// Nothing of this is remembered while no topic is compacted. A topic that is later is declared again,
    /// which is a change.
    pub fn no_compaction_candidates(&self) {
        let mut rounds = self.rounds();
        rounds.choice = Choice::default();
        self.lock().index.changed.clear();
    }

    /// What a round found of tombstones. One that is old but was kept, because something below was left
    /// alone, is searched for again when something changes, or later.
    pub(in crate::store::compaction) fn note_tombstones(
        &self,
        plan: &Plan,
        found: Vec<(QueueKey, Option<Timestamp>)>,
    ) {
        let Some(before) = plan.tombstones_before else {
            return;
        };
        let now = later(before, self.keys.tombstone_ms);
        let mut rounds = self.rounds();
        for (queue, first) in found {
            rounds.stuck_queues.remove(&queue);
            let due = first.map(|first| {
                let wait = if first < before { FIRST_LOOK_MS } else { 0 };
                later(first, self.keys.tombstone_ms).max(later(now, wait))
            });
            // At that age it is kept, and removed a moment later.
            rounds.choice.tombstones.set(queue, due.map(|due| later(due, 1)));
        }
    }

    fn is_worth_it(&self, dirty: &CompactionCandidate) -> bool {
        let percent = u128::from(self.keys.dirty_percent);
        let is_much = u128::from(dirty.bytes) * 100 >= u128::from(dirty.all_bytes) * percent;
        dirty.bytes >= u64::from(self.queue_segment_bytes.0) && is_much
    }
}

fn summary(queue: QueueKey, views: &[View]) -> CompactionCandidate {
    let bytes = |views: &[View]| views.iter().map(|view| u64::from(view.segment.bytes)).sum();
    CompactionCandidate {
        queue,
        bytes: first_dirty(views).map_or(0, |first| bytes(&views[first..])),
        all_bytes: bytes(views),
    }
}

const fn later(now: Timestamp, ms: u64) -> Timestamp {
    Timestamp(now.0.saturating_add(ms))
}
