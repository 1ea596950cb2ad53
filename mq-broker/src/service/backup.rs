//! Backups of the running broker: one at a time, in the background; the client need not stay connected.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mq_common::api::admin::{BackupState, BackupStatus};
use mq_common::{Error, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use super::Services;
use crate::background::disk_share::Pacer;
use crate::background::upkeep::StageRequest;
use crate::store::Pace as _;
use crate::store::backup;

/// The backups of a broker.
#[derive(Debug)]
pub struct Backups {
    data: PathBuf,
    /// The share of wall time in which a backup uses the disk while producers are active.
    disk_percent: u64,
    upkeep: mpsc::Sender<StageRequest>,
    last: Mutex<Option<BackupStatus>>,
}

impl Backups {
    /// Backups of this data folder; the receiver gets the requests for their files.
    pub(crate) fn new(data: PathBuf, disk_percent: u64) -> (Arc<Self>, mpsc::Receiver<StageRequest>) {
        let (upkeep, requests) = mpsc::channel(1);
        let backups = Self {
            data,
            disk_percent,
            upkeep,
            last: Mutex::default(),
        };
        (Arc::new(backups), requests)
    }

    /// The status of the last backup.
    pub(super) fn last(&self) -> Option<BackupStatus> {
        self.lock().clone()
    }

    /// Starts a backup, unless the very same one is running.
    pub(super) fn start(self: &Arc<Self>, services: &Services, to: String) -> Result<BackupStatus, Error> {
        services.check_alive()?;
        let mut last = self.lock();
        if let Some(running) = last.as_ref().filter(|last| last.state == BackupState::Running) {
            if running.to == to {
                return Ok(running.clone());
            }
            let message = format!(
                "a backup to `{}` is running; start the next one when it has finished",
                running.to
            );
            return Err(Error::new(ErrorCode::Overloaded, message));
        }
        let begun = BackupStatus {
            to: to.clone(),
            state: BackupState::Running,
            lsn: None,
            bytes_done: 0,
            bytes_total: 0,
            reason: None,
        };
        *last = Some(begun.clone());
        drop(last);
        let (own, broker) = (Arc::clone(self), services.shard.to_string());
        let pacer = Pacer::new(&services.core, &services.stopping, self.disk_percent);
        services.tasks.spawn(async move {
            let running = Running(own);
            let done = Arc::clone(&running.0).run(PathBuf::from(to), broker, pacer).await;
            running.ended(done);
        });
        Ok(begun)
    }

    async fn run(self: Arc<Self>, to: PathBuf, broker: String, mut pacer: Pacer) -> Result<(), String> {
        let (own, place) = (Arc::clone(&self), to.clone());
        blocking(move || backup::is_free(&own.data, &place)).await?;
        let (reply, answer) = oneshot::channel();
        let stopping = |_| "the broker is stopping".to_owned();
        self.upkeep
            .send(StageRequest { reply })
            .await
            .map_err(|error| stopping(error.to_string()))?;
        let staged = answer.await.map_err(|error| stopping(error.to_string()))??;
        self.note(|status| {
            status.lsn = Some(staged.lsn);
            status.bytes_total = staged.stage.files().iter().map(|(_, bytes)| bytes).sum();
        });
        let own = Arc::clone(&self);
        let manifest = blocking(move || {
            let mut since = Instant::now();
            backup::finish(&to, &broker, staged, |bytes| {
                own.note(|status| status.bytes_done += bytes);
                let goes_on = pacer.pause(since.elapsed());
                since = Instant::now();
                goes_on.then_some(()).ok_or(backup::Error::Stopped)
            })
        })
        .await?;
        tracing::info!(lsn = %manifest.lsn, bytes = manifest.bytes(), "took a backup");
        Ok(())
    }

    fn note(&self, change: impl FnOnce(&mut BackupStatus)) {
        if let Some(status) = self.lock().as_mut() {
            change(status);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<BackupStatus>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The backup under way. Dropped before it ended, it failed: else no other one could ever begin.
struct Running(Arc<Backups>);

impl Running {
    fn ended(&self, done: Result<(), String>) {
        self.0.note(|status| match done {
            Ok(()) => status.state = BackupState::Done,
            Err(reason) => {
                tracing::warn!(to = status.to, reason, "a backup failed");
                status.state = BackupState::Failed;
                status.reason = Some(reason);
            }
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let last = self.0.last();
        if last.is_some_and(|last| last.state == BackupState::Running) {
            self.ended(Err("the backup broke; the log may say why".to_owned()));
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, backup::Error> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(format!("the backup broke: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn a_backup_whose_task_panics_failed_and_leaves_room_for_another_one() {
        let (backups, _requests) = Backups::new(PathBuf::from("data"), 25);
        *backups.lock() = Some(BackupStatus {
            to: "there".to_owned(),
            state: BackupState::Running,
            lsn: None,
            bytes_done: 0,
            bytes_total: 0,
            reason: None,
        });
        let running = Running(Arc::clone(&backups));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _running = running;
            panic!("told to");
        });
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_panic());
        let last = backups.last().unwrap();
        assert_eq!(last.state, BackupState::Failed);
        assert_eq!(
            last.reason.as_deref(),
            Some("the backup broke; the log may say why")
        );
    }
}
