//! The upkeep task, off the core: saves checkpoints, frees the parts of the journal that they made
//! superfluous, and starts moving messages from the journal into queue files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mq_common::ids::Lsn;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::reclaim;
use crate::catalog;
use crate::checkpoint::{self, Checkpoint};
use crate::compaction::Compactor;
use crate::config;
use crate::core::{Core, Holder, Snapshot};
use crate::log::Refused;
use crate::store::Dead;
use crate::store::backup::{self, Stage, Staged};
use crate::telemetry::Metrics;

/// How often the upkeep checks whether a checkpoint is due.
const TICK: Duration = Duration::from_millis(200);
/// After a checkpoint that could not be saved, the next attempt waits this long.
const RETRY: Duration = Duration::from_secs(5);

/// Why the files of a backup could not be gathered.
#[derive(Debug, thiserror::Error)]
enum StageError {
    #[error("the broker is stopping, or its journal failed")]
    Stopping,
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    #[error(transparent)]
    Backup(#[from] backup::Error),
}

/// When no checkpoint could be saved for this long, the broker is not ready.
const OVERDUE: Duration = Duration::from_secs(5 * 60);

/// A request to gather the files of a backup.
#[derive(Debug)]
pub(crate) struct StageRequest {
    /// Receives the files, or why there are none.
    pub(crate) reply: oneshot::Sender<Result<Staged, String>>,
}

/// Saves checkpoints until stopped.
#[derive(Debug)]
pub(crate) struct Upkeep {
    core: Arc<Core>,
    checkpoint: Checkpoint,
    settings: config::Checkpoint,
    metrics: Metrics,
    compactor: Compactor,
    /// The data folder, and the requests for backups of it.
    backups: Option<(PathBuf, mpsc::Receiver<StageRequest>)>,
    /// The projection of the catalog, if it is configured.
    catalog: Option<catalog::Feed>,
    /// The entry of the last checkpoint, and the bytes by which the journal had grown by then.
    saved: (Lsn, u64),
    /// Some segments could not be freed: the next checkpoint is due even if nothing changed.
    reclaim_again: bool,
    /// Files that a crash left of deleted topics have been removed: once, some time after the start.
    is_swept: bool,
    /// Taken but not saved: it must be saved as it is before anything newer.
    unsaved: Option<Snapshot>,
    /// When the first change happened that is not in the checkpoint.
    changed_at: Option<Instant>,
    /// After a failure, nothing is saved before this time.
    not_before: Instant,
    failing_since: Option<Instant>,
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
            settings,
            metrics,
            compactor,
            backups: None,
            catalog: None,
            saved: (saved, 0),
            reclaim_again: false,
            is_swept: false,
            unsaved: None,
            changed_at: None,
            not_before: Instant::now(),
            failing_since: None,
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

    /// Makes a checkpoint at which the journal continues in a new segment, and links to all files of the
    /// store.
    async fn stage(&mut self) -> Result<Staged, StageError> {
        let Some(data) = self.backups.as_ref().map(|(data, _)| data.clone()) else {
            return Err(StageError::Stopping);
        };
        if let Some(snapshot) = self.unsaved.take() {
            self.save_or_fail(snapshot).await?;
        }
        let visited = self.core.attend(Holder::sealed_snapshot).await;
        let (snapshot, segments) = visited.map_err(|_| StageError::Stopping)??;
        let dead = snapshot.dead.clone();
        self.save_or_fail(snapshot).await?;
        let queue_files = self.checkpoint.store_rows().await?.files;
        let staging = move || Stage::make(&data, &segments, None, &queue_files);
        let staged = tokio::task::spawn_blocking(staging).await;
        let mut stage = staged.map_err(|_| StageError::Stopping)??;
        if let Err(error) = self.copy_checkpoint(&mut stage).await {
            drop(tokio::task::spawn_blocking(move || drop(stage)).await);
            return Err(error);
        }
        // Only now: the dead files of the checkpoint have been linked.
        self.reclaim_again = self.reclaim(dead.clone()).await || dead.is_partial;
        self.compactor.saved(&dead.hints);
        Ok(Staged {
            lsn: self.saved.0,
            stage,
        })
    }

    async fn copy_checkpoint(&mut self, stage: &mut Stage) -> Result<(), StageError> {
        self.checkpoint.copy_to(&stage.checkpoint_file()).await?;
        Ok(stage.add_checkpoint()?)
    }

    async fn save_or_fail(&mut self, snapshot: Snapshot) -> Result<(), StageError> {
        let saved = self.save(snapshot).await;
        if let Err(error) = &saved
            && error.is_failed_sync()
        {
            self.core.fail(&error.to_string());
        }
        saved?;
        // Its dead segments are not freed yet, and the backup may fail before they are.
        self.reclaim_again = true;
        Ok(())
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
        if self.core.watermarks().flushed > self.saved.0 || self.reclaim_again {
            self.changed_at.get_or_insert(now);
        }
        self.write_stats(now).await;
        // Queue files that a checkpoint leaves dead are removed once it is saved: no compaction round may
        // start in between.
        let is_wanted = self.compactor.tick(self.unsaved.is_none()).await;
        if now < self.not_before || !(is_wanted || self.is_due()) {
            return true;
        }
        let snapshot = match self.unsaved.take() {
            Some(snapshot) => Ok(snapshot),
            None => self.core.attend(Holder::snapshot).await,
        };
        let Ok(snapshot) = snapshot else { return false };
        self.changed_at = None;
        let dead = snapshot.dead.clone();
        if let Err(error) = self.save(snapshot).await {
            if error.is_failed_sync() {
                // After a failed sync, nothing the system reports about these pages can be believed.
                self.core.fail(&error.to_string());
                return false;
            }
            tracing::error!(%error, "the checkpoint could not be saved; it is tried again");
            self.not_before = Instant::now() + RETRY;
            self.changed_at = Some(now);
            return true;
        }
        self.reclaim_again = self.reclaim(dead.clone()).await || dead.is_partial;
        self.compactor.saved(&dead.hints);
        self.sweep().await;
        true
    }

    /// Writes the changed statistics of queue files, for people, on a thread that may block.
    async fn write_stats(&self, now: Instant) {
        let store = Arc::clone(&self.core.published().store);
        if !store.has_stats(now) {
            return;
        }
        let writing = tokio::task::spawn_blocking(move || store.write_stats(now));
        if let Err(error) = writing.await {
            tracing::error!(%error, "writing the statistics of queue files panicked");
        }
    }

    /// Removes files that no manifest lists. No compaction round starts meanwhile: this task starts those,
    /// too.
    async fn sweep(&mut self) {
        if self.is_swept || self.compactor.is_running() {
            return;
        }
        self.is_swept = true;
        let store = Arc::clone(&self.core.published().store);
        let swept = tokio::task::spawn_blocking(move || store.sweep()).await;
        if !matches!(swept, Ok(Ok(()))) {
            tracing::warn!(
                ?swept,
                "files that a crash left among the queue files are kept until the next start"
            );
        }
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

    /// Frees what nothing needs, on a thread that may block; returns whether something is left.
    async fn reclaim(&self, dead: Dead) -> bool {
        let (core, metrics) = (Arc::clone(&self.core), self.metrics.clone());
        let pass = move || reclaim::reclaim(&core, &metrics, &dead);
        tokio::task::spawn_blocking(pass).await.unwrap_or_else(|error| {
            tracing::error!(%error, "freeing journal segments panicked");
            false
        })
    }

    /// Makes space on a full disk if there is a spare segment left to give up.
    async fn give_up_spare(&self) -> bool {
        let recycler = self.core.recycler().clone();
        match tokio::task::spawn_blocking(move || recycler.give_up_spare()).await {
            Ok(Ok(given)) => {
                if given {
                    tracing::warn!("a spare journal segment is given up for a checkpoint on a full disk");
                }
                given
            }
            failed => {
                tracing::warn!(?failed, "a spare journal segment could not be given up");
                false
            }
        }
    }

    fn is_due(&self) -> bool {
        if self.unsaved.is_some() {
            return true;
        }
        let every = Duration::from_millis(self.settings.every_ms);
        let waited = self.changed_at.is_some_and(|at| at.elapsed() >= every);
        let grown = self.core.journal_growth().saturating_sub(self.saved.1);
        waited || (self.changed_at.is_some() && grown >= self.settings.every_bytes)
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
                Err(error) if error.is_full() && self.give_up_spare().await => {}
                Err(error) => {
                    self.unsaved = Some(snapshot);
                    self.note_failure(Instant::now());
                    return Err(error);
                }
            }
        }
        let lsn = snapshot.state.rows.counters.lsn;
        self.saved = (lsn, snapshot.journal_growth);
        self.metrics
            .checkpoints
            .seconds
            .observe(started.elapsed().as_secs_f64());
        self.metrics.checkpoints.lsn.set(lsn.0);
        self.failing_since = None;
        self.metrics.checkpoints.overdue.set(0);
        tracing::debug!(%lsn, took = ?started.elapsed(), "checkpoint saved");
        if let Some(catalog) = &self.catalog {
            catalog.saved(snapshot.state);
        }
        Ok(())
    }

    /// A checkpoint that cannot be saved now may be saved later; but an operator must act before the journal
    /// is full or the next start refuses the journal.
    fn note_failure(&mut self, now: Instant) {
        self.metrics.checkpoints.failures.inc();
        let since = *self.failing_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= OVERDUE {
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
#[path = "upkeep_tests.rs"]
mod tests;
