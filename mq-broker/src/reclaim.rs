//! One pass over the segments of the journal that a checkpoint left dead: each is forgotten by the store, then its file
//! becomes a spare or goes. Blocks.

use crate::core::Core;
use crate::log::{FreeError, Freed, Recycler};
use crate::store::Dead;
use crate::telemetry::Metrics;

/// Frees `dead`, which the last checkpoint on disk says of the journal; answers whether something is left for the next
/// one.
pub fn reclaim(core: &Core, metrics: &Metrics, dead: &Dead) -> bool {
    let (store, recycler) = (&core.published().store, core.recycler());
    let mut again = false;
    for segment in &dead.segments {
        if !store.free(*segment) {
            // Somebody reads it just now.
            again = true;
            continue;
        }
        match recycler.free(*segment) {
            Ok(freed) => {
                tracing::info!(segment = segment.0, ?freed, "freed a journal segment");
                match freed {
                    Freed::Recycled => drop(metrics.segments_recycled.inc()),
                    Freed::Unlinked => drop(metrics.segments_unlinked.inc()),
                }
            }
            Err(FreeError::Poisoned(poisoned)) => {
                core.fail(&poisoned.to_string());
                return false;
            }
            Err(error) => {
                tracing::warn!(%error, "a journal segment that nothing needs stays; it is tried again");
                again = true;
            }
        }
    }
    for segment in &dead.unknown {
        match store.learn(*segment) {
            Ok(()) => again = true,
            Err(error) => {
                tracing::warn!(%error, "older journal segments stay: what this one needs of them is unknown");
            }
        }
    }
    count(recycler, metrics);
    again
}

/// Says how many segments and spares there are.
pub(crate) fn count(recycler: &Recycler, metrics: &Metrics) {
    let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    // The one being written is not sealed.
    metrics.segments.set(gauge(recycler.sealed().len() + 1));
    metrics.segments_spare.set(gauge(recycler.spares()));
}
