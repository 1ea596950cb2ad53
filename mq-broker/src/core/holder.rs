//! The core's mutable half: log, applier and pending replies. Only the holder of the core has access; `turn`
//! runs it.

use std::collections::HashMap;
use std::sync::Arc;

use mq_common::ids::{Lsn, Offset};

use super::Core;
use super::applier::Applier;
use super::inbox::Proposal;
use super::replies::Reply;
use crate::ids::QueueKey;
use crate::log::{Log as _, Poisoned, Purpose, Refused, Role, Solo, Ticket, Watermarks};
use crate::state::rows::Changes;
use crate::state::{Outcome, State, Transaction};
use crate::store::{Dead, Plan, PlannedQueue, QueueName, Rows, SegmentId};

/// The log, the state, and the requests that wait for an answer, for exclusive use by the holder of the core.
#[derive(Debug)]
pub struct Holder {
    pub(super) log: Solo<Outcome>,
    pub(super) applier: Applier,
    pub(super) pending: HashMap<Ticket, Reply>,
    pub(super) taken: Vec<Proposal>,
    /// The segment that was being written when the journal's segments were counted last.
    pub(super) segment: SegmentId,
}

/// All changes since the last checkpoint, at one entry that is synced.
#[derive(Debug)]
pub struct Snapshot {
    /// Changed rows of the state.
    pub state: Changes,
    /// Changed rows of the store.
    pub store: Rows,
    /// The log was synced up to this entry.
    pub synced: Lsn,
    /// Bytes by which the journal had grown since the start.
    pub journal_growth: u64,
    /// Parts of the journal that are no longer needed once this is saved.
    pub dead: Dead,
}

impl Holder {
    pub(super) fn new(log: Solo<Outcome>, applier: Applier) -> Self {
        Self {
            segment: log.segment(),
            log,
            applier,
            pending: HashMap::new(),
            taken: Vec::new(),
        }
    }

    /// The state after the last entry.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.applier.state
    }

    /// See [`State::take_touched`].
    pub fn take_touched(&mut self, max: usize) -> Vec<QueueKey> {
        self.applier.state.take_touched(max)
    }

    /// See [`State::touch_filled`].
    pub fn touch_filled(&mut self) {
        self.applier.state.touch_filled();
    }

    /// See [`State::touched`].
    #[must_use]
    pub fn touched(&self) -> usize {
        self.applier.state.touched()
    }

    /// Whether this broker is the leader.
    #[must_use]
    pub fn role(&self) -> Role {
        self.log.role()
    }

    /// The log's watermarks.
    #[must_use]
    pub fn watermarks(&self) -> Watermarks {
        self.log.watermarks()
    }

    /// Syncs the log, then takes the changes since the last call.
    ///
    /// # Errors
    /// The log failed.
    pub fn snapshot(&mut self, core: &Core) -> Result<Snapshot, Poisoned> {
        if self.log.watermarks().synced < self.applier.state.at().lsn {
            self.log.request_sync();
            let turned = self.log.turn(core.clock.now(), &mut self.applier);
            core.publish(self);
            turned?;
        }
        let marks = self.log.watermarks();
        let lsn = self.applier.state.at().lsn;
        assert!(
            marks.synced >= lsn,
            "a checkpoint at {lsn} needs the log on disk, it is at {marks:?}"
        );
        let state = &self.applier.state;
        let ends = |key| state.queue(key).map(|queue| (queue.start, queue.end));
        let mut dead = self.applier.store.dead(&core.recycler.sealed(), ends);
        let store = &self.applier.store;
        if state.topics().any(|topic| topic.declaration.settings.compact) {
            let compacts = |key| self.planned(key).is_some_and(|planned| planned.compacts);
            dead.hints.candidates = store.compaction_candidates(state.at().time, compacts);
        } else {
            store.no_compaction_candidates();
        }
        Ok(Snapshot {
            dead,
            state: self.applier.state.take_changes(),
            store: self.applier.store.take_rows(),
            synced: marks.synced,
            journal_growth: core.journal_growth(),
        })
    }

    /// Seals the current segment of the journal if it placed any batch, so that compaction can move its
    /// messages.
    ///
    /// # Errors
    /// The log failed.
    pub fn seal_segment(&mut self, core: &Core) -> Result<(), Poisoned> {
        if self.applier.store.has_unsealed() {
            let sealed = self.log.seal_segment(&mut self.applier, Purpose::Frees);
            core.publish(self);
            sealed?;
        }
        Ok(())
    }

    /// A snapshot at whose entry the journal continues in a new segment, with the segments that are sealed at
    /// that point. Together with the checkpoint made from it, these segments are complete.
    ///
    /// # Errors
    /// The log failed.
    pub fn sealed_snapshot(
        &mut self,
        core: &Core,
    ) -> Result<Result<(Snapshot, Vec<SegmentId>), Refused>, Poisoned> {
        let sealed = self.log.seal_segment(&mut self.applier, Purpose::Notes);
        core.publish(self);
        if let Some(refused) = sealed? {
            return Ok(Err(refused));
        }
        let snapshot = self.snapshot(core)?;
        Ok(Ok((snapshot, core.recycler.sealed())))
    }

    /// The undecided transactions whose half messages lie in these entries.
    #[must_use]
    pub fn undecided_in(&self, entries: &[Lsn]) -> Vec<Transaction> {
        let state = &self.applier.state;
        let found = entries.iter().flat_map(|entry| state.transactions_in(*entry));
        found.cloned().collect()
    }

    /// Plans a compaction round: see [`crate::store::Store::plan`].
    #[must_use]
    pub fn plan_round(
        &self,
        core: &Core,
        segments_max: usize,
        sparse: &[(QueueKey, Offset)],
    ) -> Option<Plan> {
        let sealed = core.recycler.sealed();
        let known = |key| self.planned(key);
        self.applier.store.plan(&sealed, segments_max, sparse, known)
    }

    /// Plans a round of key compaction: see [`crate::store::Store::plan_passes`].
    #[must_use]
    pub fn plan_passes(&self, dirty: &[QueueKey]) -> Option<Plan> {
        let now = self.applier.state.at().time;
        let known = |key| self.planned(key);
        self.applier.store.plan_passes(dirty, now, known)
    }

    /// What a compaction round has to know about a queue.
    fn planned(&self, key: QueueKey) -> Option<PlannedQueue> {
        let state = &self.applier.state;
        let queue = state.queue(key)?;
        let topic = state.topic(&queue.topic)?;
        Some(PlannedQueue {
            name: QueueName {
                topic: Arc::clone(&queue.topic),
                topic_id: topic.declaration.id,
                number: queue.number,
            },
            start: queue.start,
            compacts: topic.declaration.settings.compact,
        })
    }
}
