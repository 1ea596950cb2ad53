//! Work that follows a checkpoint, each piece on a thread that may block.

use std::sync::Arc;
use std::time::Instant;

use super::super::reclaim;
use crate::core::Core;
use crate::store::Dead;
use crate::telemetry::Metrics;

/// Writes the changed statistics of queue files, for people, on a thread that may block.
pub(super) async fn write_stats(core: &Core, now: Instant) {
    let store = Arc::clone(&core.published().store);
    if !store.has_stats(now) {
        return;
    }
    let writing = tokio::task::spawn_blocking(move || store.write_stats(now));
    if let Err(error) = writing.await {
        tracing::error!(%error, "writing the statistics of queue files panicked");
    }
}

/// Removes files that no manifest lists. No compaction round may start meanwhile.
pub(super) async fn sweep(core: &Core) {
    let store = Arc::clone(&core.published().store);
    let swept = tokio::task::spawn_blocking(move || store.sweep()).await;
    if !matches!(swept, Ok(Ok(()))) {
        tracing::warn!(
            ?swept,
            "files that a crash left among the queue files are kept until the next start"
        );
    }
}

/// Frees what nothing needs, on a thread that may block; returns whether something is left.
pub(super) async fn reclaim(core: &Arc<Core>, metrics: &Metrics, dead: Dead) -> bool {
    let (core, metrics) = (Arc::clone(core), metrics.clone());
    let pass = move || reclaim::reclaim(&core, &metrics, &dead);
    tokio::task::spawn_blocking(pass).await.unwrap_or_else(|error| {
        tracing::error!(%error, "freeing journal segments panicked");
        false
    })
}

/// Makes space on a full disk if there is a spare segment left to give up.
pub(super) async fn give_up_spare(core: &Core) -> bool {
    let recycler = core.recycler().clone();
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
