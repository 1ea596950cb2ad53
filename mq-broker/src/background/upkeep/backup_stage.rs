//! Gathering the files of a backup: a checkpoint at which the journal continues in a new segment, and links
//! to all files of the store.

use tokio::sync::oneshot;

use super::Upkeep;
use crate::checkpoint;
use crate::core::{Holder, Snapshot};
use crate::log::Refused;
use crate::store::backup::{self, Stage, Staged};

/// A request to gather the files of a backup.
#[derive(Debug)]
pub(crate) struct StageRequest {
    /// Receives the files, or why there are none.
    pub(crate) reply: oneshot::Sender<Result<Staged, String>>,
}

/// Why the files of a backup could not be gathered.
#[derive(Debug, thiserror::Error)]
pub(super) enum StageError {
    #[error("the broker is stopping, or its journal failed")]
    Stopping,
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    #[error(transparent)]
    Backup(#[from] backup::Error),
}

impl Upkeep {
    /// Makes a checkpoint at which the journal continues in a new segment, and links to all files of the
    /// store.
    pub(super) async fn stage(&mut self) -> Result<Staged, StageError> {
        let Some(data) = self.backups.as_ref().map(|(data, _)| data.clone()) else {
            return Err(StageError::Stopping);
        };
        if let Some(snapshot) = self.unsaved.take() {
            self.save_or_fail(snapshot).await?;
        }
        let visited = self.core.visit_for_upkeep(Holder::sealed_snapshot).await;
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
        self.reclaim(dead).await;
        Ok(Staged {
            lsn: self.saved,
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
}
