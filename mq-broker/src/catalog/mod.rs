//! The catalog in PostgreSQL: the views `catalog_*` of this broker's `state.db`, beside those of all others in one
//! database, so that a cluster's management asks in one place (docs/catalog.md).
//!
//! It is a projection: written after each checkpoint, off the core and off the checkpoint's way, in one transaction
//! with the checkpoint's lsn; never read by the broker but to see whether it is still there. Not here: the checkpoint,
//! which is the truth.
//!
//! The one invariant: nothing that happens to that database reaches anybody whom the broker serves.

mod error;
mod feed;
mod rows;
mod schema;
mod session;
mod task;
mod url;

use std::path::Path;
use std::time::Duration;

use mq_common::ids::ShardName;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use feed::Feed;
pub use url::DatabaseUrl;
pub(crate) use url::without_password;

use crate::config;
use crate::state::rows::Counters;
use crate::telemetry::Metrics;

/// A projection that may be started.
#[derive(Debug)]
pub(crate) struct Catalog {
    projection: task::Projection,
}

impl Catalog {
    /// The projection that the settings ask for; `last` is the checkpoint that the broker starts from.
    pub(crate) fn new(
        settings: &config::Catalog,
        broker: &ShardName,
        state_file: &Path,
        last: &Counters,
        metrics: &Metrics,
    ) -> Option<Self> {
        let url = settings.url.clone()?;
        let projection = task::Projection {
            feed: Feed::new(last),
            url,
            broker: broker.clone(),
            state_file: state_file.to_owned(),
            limit: Duration::from_millis(settings.timeout_ms),
            check_every: Duration::from_millis(settings.check_ms),
            metrics: metrics.clone(),
        };
        Some(Self { projection })
    }

    /// Where checkpoints are told.
    pub(crate) fn feed(&self) -> Feed {
        self.projection.feed.clone()
    }

    /// Runs it in a task that ends within about two seconds after `stop`.
    pub(crate) fn start(self, tasks: &TaskTracker, stop: CancellationToken) {
        tasks.spawn(self.projection.run(stop));
    }
}
