//! The upkeep task, off the core: saves checkpoints, frees the parts of the journal that they made
//! superfluous, and starts moving messages from the journal into queue files.

mod backup_stage;
mod housekeeping;
mod schedule;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mq_common::ids::Lsn;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::catalog;
use crate::checkpoint::{self, Checkpoint};
use crate::compaction::Compactor;
use crate::config;
use crate::core::{Core, Holder, Snapshot};
use crate::store::Dead;
use crate::telemetry::Metrics;

use self::schedule::Schedule;

pub(crate) use self::backup_stage::StageRequest;

/// How often the upkeep checks whether a checkpoint is due.
const TICK: Duration = Duration::from_millis(200);

/// Saves checkpoints until stopped.
#[derive(Debug)]
pub(crate) struct Upkeep {
    core: Arc<Core>,
    checkpoint: Checkpoint,
    schedule: Schedule,
    metrics: Metrics,
    compactor: Compactor,
    /// The data folder, and the requests for backups of it.
    backups: Option<(PathBuf, mpsc::Receiver<StageRequest>)>,
    /// The projection of the catalog, if it is configured.
    catalog: Option<catalog::Feed>,
    /// The entry of the last checkpoint.
    saved: Lsn,
    /// Some segments could not be freed: the next checkpoint is due even if nothing changed.
    reclaim_again: bool,
    /// Files that a crash left of deleted topics have been removed: once, some time after the start.
    is_swept: bool,
    /// Taken but not saved: it must be saved as it is before anything newer.
    unsaved: Option<Snapshot>,
}

impl Upkeep {
    pub(crate) fn new(
        core: Arc<Core>,
        checkpoint: Checkpoint,
        settings: config::Checkpoint,
        metrics: Metrics,
        compactor: Compactor,
        saved: Lsn,
    ) -> Self {
        Self {
            core,
            checkpoint,
            schedule: Schedule::new(settings, Instant::now()),
            metrics,
            compactor,
            backups: None,
            catalog: None,
            saved,
            reclaim_again: false,
            is_swept: false,
            unsaved: None,
        }
    }

    /// Sends each checkpoint to the catalog.
    pub(crate) fn told_to(mut self, catalog: Option<catalog::Feed>) -> Self {
        self.catalog = catalog;
        self
    }

    /// Gathers the files of backups of this data folder.
    pub(crate) fn asked_for_backups(mut self, data: PathBuf, asked: mpsc::Receiver<StageRequest>) -> Self {
        self.backups = Some((data, asked));
        self
    }

    /// Waits for the next check, or serves a request for a backup; `false` = stop.
    async fn wait(&mut self, stop: &CancellationToken) -> bool {
        let asked = async {
            match &mut self.backups {
                Some((_, asked)) => asked.recv().await,
                None => None,
            }
        };
        let request = tokio::select! {
            () = stop.cancelled() => return false,
            Some(request) = asked => request,
            () = tokio::time::sleep(TICK) => return true,
        };
        let staged = self.stage().await;
        if let Err(unasked) = request.reply.send(staged.map_err(|error| error.to_string())) {
            // The caller has gone away, so the stage is removed.
            drop(tokio::task::spawn_blocking(move || drop(unasked)).await);
        }
        !stop.is_cancelled()
    }

    /// Saves a checkpoint whenever one is due, until `stop`. Afterwards [`Upkeep::finish`] saves the last
    /// one.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Self {
        let _guard = PanicGuard(Arc::clone(&self.core));
        while self.wait(&stop).await && self.look().await {}
        self.compactor.stop().await;
        self
    }

    /// Saves a checkpoint if one is due; `false` = the log failed or was stopped: nothing more can be saved
    /// here.
    async fn look(&mut self) -> bool {
        let now = Instant::now();
        if self.core.watermarks().flushed > self.saved || self.reclaim_again {
            self.schedule.changed(now);
        }
        housekeeping::write_stats(&self.core, now).await;
        // Queue files that a checkpoint leaves dead are removed once it is saved: no compaction round may
        // start in between.
        let is_wanted = self.compactor.tick(self.unsaved.is_none()).await;
        let is_due = self.unsaved.is_some() || self.schedule.is_due(now, self.core.journal_growth());
        if !self.schedule.allows(now) || !(is_wanted || is_due) {
            return true;
        }
        let snapshot = match self.unsaved.take() {
            Some(snapshot) => Ok(snapshot),
            None => self.core.visit_for_upkeep(Holder::snapshot).await,
        };
        let Ok(snapshot) = snapshot else { return false };
        self.schedule.taken();
        let dead = snapshot.dead.clone();
        if let Err(error) = self.save(snapshot).await {
            if error.is_failed_sync() {
                // After a failed sync, nothing the system reports about these pages can be believed.
                self.core.fail(&error.to_string());
                return false;
            }
            tracing::error!(%error, "the checkpoint could not be saved; it is tried again");
            self.schedule.retry(now, Instant::now());
            return true;
        }
        self.reclaim(dead).await;
        self.sweep().await;
        true
    }

    /// Removes files that no manifest lists. No compaction round starts meanwhile: this task starts those,
    /// too.
    async fn sweep(&mut self) {
        if self.is_swept || self.compactor.is_running() {
            return;
        }
        self.is_swept = true;
        housekeeping::sweep(&self.core).await;
    }

    /// Saves the last checkpoint after the core has stopped, so that the next start has nothing to replay.
    pub(crate) async fn finish(mut self) -> Result<(), checkpoint::Error> {
        if let Some(snapshot) = self.unsaved.take() {
            self.save(snapshot).await?;
        }
        if let Some(snapshot) = self.core.last_snapshot() {
            self.save(snapshot).await?;
        }
        let store = Arc::clone(&self.core.published().store);
        // For people: nothing depends on it.
        drop(tokio::task::spawn_blocking(move || store.write_last_stats()).await);
        self.checkpoint.close().await
    }

    async fn save(&mut self, snapshot: Snapshot) -> Result<(), checkpoint::Error> {
        let started = Instant::now();
        loop {
            let saving = self
                .checkpoint
                .save(&snapshot.state, &snapshot.store, snapshot.synced);
            match saving.await {
                Ok(()) => break,
                // Without a checkpoint nothing is freed: the reserve serves this purpose, too.
                Err(error) if error.is_full() && housekeeping::give_up_spare(&self.core).await => {}
                Err(error) => {
                    self.unsaved = Some(snapshot);
                    self.note_failure(Instant::now());
                    return Err(error);
                }
            }
        }
        let lsn = snapshot.state.rows.counters.lsn;
        self.saved = lsn;
        self.schedule.saved(snapshot.journal_growth);
        self.metrics
            .checkpoints
            .seconds
            .observe(started.elapsed().as_secs_f64());
        self.metrics.checkpoints.lsn.set(lsn.0);
        self.metrics.checkpoints.overdue.set(0);
        tracing::debug!(%lsn, took = ?started.elapsed(), "checkpoint saved");
        if let Some(catalog) = &self.catalog {
            catalog.saved(snapshot.state);
        }
        Ok(())
    }

    /// Frees what the saved checkpoint left dead, and tells compaction what it could do next.
    async fn reclaim(&mut self, dead: Dead) {
        let (is_partial, hints) = (dead.is_partial, dead.hints.clone());
        self.reclaim_again = housekeeping::reclaim(&self.core, &self.metrics, dead).await || is_partial;
        self.compactor.saved(&hints);
    }

    fn note_failure(&mut self, now: Instant) {
        self.metrics.checkpoints.failures.inc();
        if self.schedule.failed(now) {
            self.metrics.checkpoints.overdue.set(1);
        }
    }
}

/// Without checkpoints nothing is freed: a broker whose upkeep panicked must not continue as if nothing had
/// happened.
struct PanicGuard(Arc<Core>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the upkeep panicked");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
