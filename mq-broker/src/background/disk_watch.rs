//! Checks the free space of the data folder periodically. The log refuses commands and the metrics report by
//! the result.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::telemetry::Metrics;

/// Checks every `every` until `stop`. A check that the system does not answer is waited for; no second one is
/// started.
pub(crate) async fn watch(core: Arc<Core>, metrics: Metrics, every: Duration, stop: CancellationToken) {
    loop {
        let space = core.space().clone();
        let looking = tokio::task::spawn_blocking(move || space.look());
        let Some(looked) = stop.run_until_cancelled(looking).await else {
            return;
        };
        match looked {
            Ok(standing) => metrics.show_disk(&standing),
            Err(error) => tracing::error!(%error, "checking the free space of the disk panicked"),
        }
        if stop
            .run_until_cancelled(tokio::time::sleep(every))
            .await
            .is_none()
        {
            return;
        }
    }
}
