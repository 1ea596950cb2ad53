//! The core's mutable half: log, applier and pending replies. Whoever holds the core is alone with it; `turn` runs it.

use std::collections::HashMap;
use std::sync::Arc;

use mq_common::ids::{Lsn, Offset};

use super::Core;
use super::applier::Applier;
use super::inbox::Proposal;
use super::replies::Reply;
use crate::ids::QueueKey;
use crate::log::{Log as _, Poisoned, Purpose, Refused, Role, Solo, Ticket, Watermarks};
use crate::state::rows::Dirty;
use crate::state::{Outcome, State, Transaction};
use crate::store::{Dead, Plan, PlannedQueue, QueueName, Rows, SegmentId};

/// Log, state, and the requests that wait for an answer. Whoever has it is alone with it.
#[derive(Debug)]
pub struct Holder {
    pub(super) log: Solo<Outcome>,
    pub(super) applier: Applier,
    pub(super) pending: HashMap<Ticket, Reply>,
    pub(super) taken: Vec<Proposal>,
}

/// All that changed since the last checkpoint, as of one entry that is on the disk.
#[derive(Debug)]
pub struct Snapshot {
    /// Changed rows of the state.
    pub state: Dirty,
    /// Changed rows of the store.
    pub store: Rows,
    /// The log was synced up to here.
    pub synced: Lsn,
    /// Bytes the journal had grown by since the start.
    pub journal_growth: u64,
    /// What of the journal nothing needs any more, once this is saved.
    pub dead: Dead,
}

impl Holder {
    pub(super) fn new(log: Solo<Outcome>, applier: Applier) -> Self {
        Self {
            log,
            applier,
            pending: HashMap::new(),
            taken: Vec::new(),
        }
    }

    /// The state as of the last entry.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.applier.state
    }

    /// See [`State::take_touched`].
    pub fn take_touched(&mut self, max: usize) -> Vec<QueueKey> {
        self.applier.state.take_touched(max)
    }

    /// See [`State::touched`].
    #[must_use]
    pub fn touched(&self) -> usize {
        self.applier.state.touched()
    }

    /// Who leads.
    #[must_use]
    pub fn role(&self) -> Role {
        self.log.role()
    }

    /// How far the log has come.
    #[must_use]
    pub fn watermarks(&self) -> Watermarks {
        self.log.watermarks()
    }

    /// Syncs the log, then takes what changed since the last call.
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
            dead.dirty = store.dirty(state.at().time, compacts);
        } else {
            store.none_is_dirty();
        }
        Ok(Snapshot {
            dead,
            state: self.applier.state.take_dirty(),
            store: self.applier.store.take_rows(),
            synced: marks.synced,
            journal_growth: core.journal_growth(),
        })
    }

    /// Seals the segment of the journal that is being written, if it placed anything: then a round can move that.
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

    /// A snapshot at whose entry the journal goes on in another segment, and the sealed segments as of then: with the
    /// checkpoint made of it, they are all there is.
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

    /// Plans a round of compaction: see [`crate::store::Store::plan`].
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

    /// Plans a round that compacts queues by their keys: see [`crate::store::Store::plan_passes`].
    #[must_use]
    pub fn plan_passes(&self, dirty: &[QueueKey]) -> Option<Plan> {
        let now = self.applier.state.at().time;
        let known = |key| self.planned(key);
        self.applier.store.plan_passes(dirty, now, known)
    }

    /// What a round has to know of a queue.
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
