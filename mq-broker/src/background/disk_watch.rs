//! Looks at the free space of the data folder now and then, and says what it sees: the log refuses by it, the metrics
//! show it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::telemetry::Metrics;

/// Looks every so often until `stop`. A look that the system does not answer is waited for, never doubled.
pub(crate) async fn watch(core: Arc<Core>, metrics: Metrics, every: Duration, stop: CancellationToken) {
    loop {
        let space = core.space().clone();
        let looking = tokio::task::spawn_blocking(move || space.look());
        let Some(looked) = stop.run_until_cancelled(looking).await else {
            return;
        };
        match looked {
            Ok(standing) => metrics.show_disk(&standing),
            Err(error) => tracing::error!(%error, "looking at the disk broke"),
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
