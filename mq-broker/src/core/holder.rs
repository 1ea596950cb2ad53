//! What the holder of the core has in hand, and one turn of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use mq_common::ids::{Lsn, Offset};

use super::Core;
use super::applier::Applier;
use super::inbox::Proposal;
use super::replies::{Answer, Reply};
use crate::ids::QueueKey;
use crate::log::{
    Completion, GROUP_BYTES_MAX, Log, Poisoned, Purpose, Refused, Role, Solo, Ticket, Watermarks,
};
use crate::state::rows::Dirty;
use crate::state::{Outcome, State, Transaction};
use crate::store::{Dead, Plan, PlannedQueue, QueueName, Rows, SegmentId};

/// Log, state, and the requests that wait for an answer. Whoever has it is alone with it.
#[derive(Debug)]
pub struct Holder {
    pub(super) log: Solo<Outcome>,
    pub(super) applier: Applier,
    pending: HashMap<Ticket, Reply>,
    taken: Vec<Proposal>,
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
        self.log().role()
    }

    /// How far the log has come.
    #[must_use]
    pub fn watermarks(&self) -> Watermarks {
        self.log().watermarks()
    }

    /// Syncs the log, then takes what changed since the last call.
    ///
    /// # Errors
    /// The log failed.
    pub fn snapshot(&mut self, core: &Core) -> Result<Snapshot, Poisoned> {
        if self.log().watermarks().synced < self.applier.state.at().lsn {
            self.log_mut().request_sync();
            let turned = self.log.turn(core.clock.now(), &mut self.applier);
            core.publish(self);
            turned?;
        }
        let marks = self.log().watermarks();
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

    // The log is one for any applier of its result; these say which.
    pub(super) fn log(&self) -> &impl Log<Applier> {
        &self.log
    }

    fn log_mut(&mut self) -> &mut impl Log<Applier> {
        &mut self.log
    }

    fn propose(&mut self, core: &Core) {
        let mut taken = std::mem::take(&mut self.taken);
        core.inbox.take(GROUP_BYTES_MAX, &mut taken);
        for proposal in taken.drain(..) {
            if let Some(refused) = proposal.reply.refused_before() {
                proposal.reply.send(Answer::Refused(refused));
                continue;
            }
            core.growth
                .fetch_add(proposal.command.bytes() as u64, Ordering::Relaxed);
            match self.log_mut().propose(proposal.command, proposal.want) {
                Ok(ticket) => drop(self.pending.insert(ticket, proposal.reply)),
                Err(refused) => proposal.reply.send(Answer::Refused(refused)),
            }
        }
        self.taken = taken;
    }

    /// What completed: to be sent when nobody holds the core.
    pub(super) fn completed(&mut self) -> Vec<(Reply, Answer)> {
        let Self { log, pending, .. } = self;
        let completed = <Solo<Outcome> as Log<Applier>>::completions(log);
        let answers = completed.filter_map(|(ticket, completion)| {
            let answer = match completion {
                Completion::Applied { result, lsn, reached } => Answer::Applied {
                    outcome: result,
                    lsn,
                    reached,
                },
                Completion::Refused(refused) => Answer::Refused(refused),
                Completion::Unknown => Answer::Unknown,
            };
            Some((pending.remove(&ticket)?, answer))
        });
        answers.collect()
    }
}

impl Core {
    /// One turn: takes what waits, writes, applies, syncs if somebody asks for it, publishes, answers, lets visitors in.
    pub(super) fn turn(&self, holder: &mut Holder) {
        let guard = PanicGuard { core: self };
        holder.propose(self);
        loop {
            self.turn_log(holder);
            // What did not fit into one group goes on at once.
            if holder.log().bytes_waiting() == 0 || self.failed.is_cancelled() {
                break;
            }
        }
        if !self.failed.is_cancelled() {
            for visit in self.inbox.take_visits() {
                visit(holder, self);
            }
        }
        drop(guard);
    }

    fn turn_log(&self, holder: &mut Holder) {
        let commands = u32::try_from(holder.pending.len()).unwrap_or(u32::MAX);
        let started = Instant::now();
        let mut wants_sync = holder.log.write(self.clock.now(), &mut holder.applier);
        // Who wants no sync is answered, and what needs none is shown, before the sync of the others.
        let has_answered = self.conclude(holder, &wants_sync);
        if matches!(wants_sync, Ok(true)) {
            if has_answered && let Ok(runtime) = tokio::runtime::Handle::try_current() {
                // Of the tasks that were woken, the last one stands where only this worker finds it: not for a sync.
                drop(runtime.spawn(async {}));
            }
            let started = Instant::now();
            wants_sync = holder.log_mut().sync().map(|()| false);
            self.metrics.sync_seconds.observe(started.elapsed().as_secs_f64());
            let _ = self.conclude(holder, &wants_sync);
        }
        self.metrics.turns.inc();
        self.metrics.turn_seconds.observe(started.elapsed().as_secs_f64());
        self.metrics.turn_commands.observe(f64::from(commands));
    }

    /// Publishes and answers after half a turn; says whether anybody was answered.
    fn conclude<T>(&self, holder: &mut Holder, done: &Result<T, Poisoned>) -> bool {
        match done {
            Ok(_) => self.publish(holder),
            // Pending tickets are `Unknown` among the completions. Ends are not published any more.
            Err(poisoned) => self.fail(&poisoned.to_string()),
        }
        let completed = holder.completed();
        let has_answered = !completed.is_empty();
        for (reply, answer) in completed {
            reply.send(answer);
        }
        has_answered
    }

    /// Publishes how far the log has come.
    pub(super) fn publish(&self, holder: &mut Holder) {
        let marks = holder.log().watermarks();
        let applied = holder.applier.state.at().lsn;
        assert!(
            applied <= marks.flushed,
            "entry {applied} is applied and not written: {marks:?}"
        );
        holder.applier.publish_ends(marks.synced);
        self.published.set_watermarks(marks);
        self.metrics.synced_lsn.set(marks.synced.0);
        let open = holder.applier.state.transactions().len();
        self.metrics
            .transactions_open
            .set(i64::try_from(open).unwrap_or(i64::MAX));
        self.metrics
            .inbox_bytes
            .set(i64::try_from(self.inbox.bytes()).unwrap_or(i64::MAX));
    }
}

/// A panic in a turn is a broken invariant of ours: treated like a broken disk.
struct PanicGuard<'a> {
    core: &'a Core,
}

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.core.fail("the core panicked");
        }
    }
}
