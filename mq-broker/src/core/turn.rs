//! One turn of the core: one cycle of the group commit. It takes the waiting commands, writes and applies
//! them, syncs if any of them asks for it, publishes, answers, and runs visits.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::replies::{Answer, Reply};
use super::{Core, Holder};
use crate::log::{GROUP_BYTES_MAX, Log as _, Poisoned};

impl Holder {
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
            match self.log.propose(proposal.command, proposal.want) {
                Ok(ticket) => drop(self.pending.insert(ticket, proposal.reply)),
                Err(refused) => proposal.reply.send(Answer::Refused(refused)),
            }
        }
        self.taken = taken;
    }

    /// The completed commands, to be answered after the core has been released.
    pub(super) fn completed(&mut self) -> Vec<(Reply, Answer)> {
        let Self { log, pending, .. } = self;
        let answers = log
            .completions()
            .filter_map(|(ticket, answer)| Some((pending.remove(&ticket)?, answer)));
        answers.collect()
    }
}

impl Core {
    /// One turn: takes the waiting commands, writes, applies, syncs if one asks for it, publishes, answers,
    /// runs visits.
    pub(super) fn turn(&self, holder: &mut Holder) {
        let guard = PanicGuard { core: self };
        holder.propose(self);
        loop {
            self.turn_log(holder);
            // Commands that did not fit into one group follow immediately.
            if holder.log.bytes_waiting() == 0 || self.failed.is_cancelled() {
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
        // Commands that want no sync are answered, and batches that need none become visible, before the
        // sync.
        let has_answered = self.conclude(holder, &wants_sync);
        if matches!(wants_sync, Ok(true)) {
            if has_answered && let Ok(runtime) = tokio::runtime::Handle::try_current() {
                // The last of the tasks just woken sits in a slot that only this worker polls; it must not
                // wait for the sync.
                drop(runtime.spawn(async {}));
            }
            let started = Instant::now();
            wants_sync = holder.log.sync().map(|()| false);
            self.metrics.sync_seconds.observe(started.elapsed().as_secs_f64());
            let _ = self.conclude(holder, &wants_sync);
        }
        self.metrics.turns.inc();
        self.metrics.turn_seconds.observe(started.elapsed().as_secs_f64());
        self.metrics.turn_commands.observe(f64::from(commands));
    }

    /// Publishes and answers after half a turn; returns whether any command was answered.
    fn conclude<T>(&self, holder: &mut Holder, done: &Result<T, Poisoned>) -> bool {
        match done {
            Ok(_) => self.publish(holder),
            // Pending tickets are `Unknown` among the completions. Visible ends are no longer published.
            Err(poisoned) => self.fail(&poisoned.to_string()),
        }
        let completed = holder.completed();
        let has_answered = !completed.is_empty();
        for (reply, answer) in completed {
            reply.send(answer);
        }
        has_answered
    }

    /// Publishes the log's progress.
    pub(super) fn publish(&self, holder: &mut Holder) {
        let marks = holder.log.watermarks();
        let applied = holder.applier.state.at().lsn;
        assert!(
            applied <= marks.flushed,
            "entry {applied} is applied and not written: {marks:?}"
        );
        holder.applier.publish_ends(marks.synced);
        self.published.set_watermarks(marks);
        if holder.segment != holder.log.segment() {
            holder.segment = holder.log.segment();
            self.count_journal();
        }
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

/// A panic in a turn means that an invariant of ours is broken: handled like a broken disk.
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
