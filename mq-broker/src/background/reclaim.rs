//! Frees what a checkpoint no longer needs: the store forgets each dead segment of the journal, then its file
//! becomes a spare or is deleted; dead queue files are removed. Blocks.

use crate::core::Core;
use crate::log::{FreeError, Freed, Recycler};
use crate::store::Dead;
use crate::telemetry::Metrics;

/// Queue files removed at once, because each removal takes some of the journal's disk time and no checkpoint
/// is saved meanwhile. The rest are removed after the next checkpoint.
const REMOVED_MAX: usize = 500;

/// Frees `dead`, the parts of the journal that the last checkpoint on disk no longer needs; returns whether
/// something is left for the next one.
pub fn reclaim(core: &Core, metrics: &Metrics, dead: &Dead) -> bool {
    let (store, recycler) = (&core.published().store, core.recycler());
    let mut again = false;
    for segment in &dead.segments {
        if !store.free(*segment) {
            // A reader is using it.
            again = true;
            continue;
        }
        match recycler.free(*segment) {
            Ok(freed) => {
                tracing::info!(segment = segment.0, ?freed, "freed a journal segment");
                let counter = match freed {
                    Freed::Recycled => &metrics.segments_recycled,
                    Freed::Unlinked => &metrics.segments_unlinked,
                };
                counter.inc();
            }
            Err(FreeError::Poisoned(poisoned)) => {
                core.fail(&poisoned.to_string());
                return false;
            }
            Err(error) => {
                tracing::warn!(%error, "a journal segment that nothing needs could not be freed; it is tried again");
                again = true;
            }
        }
    }
    again |= dead.files.len() > REMOVED_MAX;
    for row in dead.files.iter().take(REMOVED_MAX) {
        match store.remove_file(row) {
            Ok(()) => {
                let (topic, queue) = (&row.name.topic, row.name.number);
                tracing::info!(%topic, %queue, first = %row.first, "removed a queue file");
                metrics.queue_files_removed.inc();
            }
            Err(error) => {
                tracing::warn!(%error, "a queue file that nothing needs could not be removed; it is tried again");
                again = true;
            }
        }
    }
    for segment in &dead.unknown {
        match store.learn(*segment) {
            Ok(()) => again = true,
            Err(error) => {
                tracing::warn!(%error, "older journal segments are kept: which of them this one needs is unknown");
            }
        }
    }
    count(recycler, metrics);
    again
}

/// Updates the metrics for segments and spares.
pub(crate) fn count(recycler: &Recycler, metrics: &Metrics) {
    let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    // The current segment is not sealed.
    metrics.segments.set(gauge(recycler.sealed().len() + 1));
    metrics.segments_spare.set(gauge(recycler.spares()));
}
