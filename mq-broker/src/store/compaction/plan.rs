//! The plan of a round, made while nothing else happens to the queues.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mq_common::ids::{Offset, Timestamp};

use super::Rounds;
use crate::ids::QueueKey;
use crate::store::queue_files::QueueName;
use crate::store::{SegmentId, Store};

/// A queue at the time of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedQueue {
    /// The names of its folder.
    pub name: QueueName,
    /// Messages below are not copied.
    pub start: Offset,
    /// Only the last message of each key is kept.
    pub compacts: bool,
}

/// What a round is to do. While it exists, no queue file is removed.
#[derive(Debug)]
pub struct Plan {
    /// The segments, oldest first.
    pub segments: Vec<SegmentId>,
    /// The existing queues.
    pub queues: BTreeMap<QueueKey, PlannedQueue>,
    /// Queue files with little valid data: their queues and first offsets.
    pub rewrites: Vec<(QueueKey, Offset)>,
    /// If set, the round only compacts its queues by their keys, and may remove tombstones that were appended
    /// before this time.
    pub tombstones_before: Option<Timestamp>,
    /// Queues of which nothing is removed unless such a tombstone is found.
    pub searches: BTreeSet<QueueKey>,
    pub(super) _running: Running,
}

/// Marks a round as running, until dropped.
#[derive(Debug)]
pub(super) struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Store {
    /// Plans a round over the oldest of the `sealed` segments, at most `segments_max` of them, or else over
    /// the `sparse` queue files. `queue` returns what is known of a queue; `None` = it was deleted. No plan =
    /// nothing to do, or a round is running already.
    #[must_use]
    pub fn plan(
        &self,
        sealed: &[SegmentId],
        segments_max: usize,
        sparse: &[(QueueKey, Offset)],
        queue: impl Fn(QueueKey) -> Option<PlannedQueue>,
    ) -> Option<Plan> {
        let mut rounds = self.rounds();
        if rounds.is_running() {
            return None;
        }
        let inner = self.lock();
        let candidates = inner.index.sealed.iter().filter(|candidate| {
            sealed.binary_search(&candidate.segment).is_ok() && !rounds.stuck.contains(&candidate.segment)
        });
        let chosen: Vec<_> = candidates.take(segments_max).collect();
        let keys = chosen
            .iter()
            .flat_map(|sealed| &sealed.firsts)
            .map(|(key, _)| *key);
        let keys: BTreeSet<QueueKey> = keys.chain(sparse.iter().map(|(key, _)| *key)).collect();
        let segments: Vec<_> = chosen.iter().map(|sealed| sealed.segment).collect();
        // Not while something is appended: the file may be the one that grows.
        let rewrites = if segments.is_empty() {
            sparse.to_vec()
        } else {
            Vec::new()
        };
        if segments.is_empty() && rewrites.is_empty() {
            return None;
        }
        let known = keys.into_iter().filter_map(|key| Some((key, queue(key)?)));
        let queues = known.collect();
        Some(Plan {
            segments,
            rewrites,
            tombstones_before: None,
            searches: BTreeSet::new(),
            _running: rounds.begin(&queues),
            queues,
        })
    }
}

impl Rounds {
    /// A round over these queues is running as long as the result lives.
    pub(super) fn begin(&mut self, queues: &BTreeMap<QueueKey, PlannedQueue>) -> Running {
        let starts = queues.iter();
        self.starts = starts.map(|(key, planned)| (*key, Some(planned.start))).collect();
        self.running.store(true, Ordering::Release);
        Running(Arc::clone(&self.running))
    }
}
