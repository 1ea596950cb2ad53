//! The catalog in PostgreSQL: the views `catalog_*` of this broker's `state.db` and of all other brokers', in
//! one database, so that management tools can query the whole cluster in one place (docs/catalog.md).
//!
//! It is a projection: written after each checkpoint, in one transaction with the checkpoint's lsn, by a task
//! that delays neither the core nor checkpoints. The broker reads it only to verify that its rows are still
//! there. The source of truth is the checkpoint.
//!
//! The one invariant: no failure of that database affects the broker's clients.

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

/// A projection that has not been started yet.
#[derive(Debug)]
pub(crate) struct Catalog {
    projection: task::Projection,
}

impl Catalog {
    /// The projection that the settings configure, if any; `last` is the checkpoint that the broker starts
    /// from.
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

    /// The feed that must be notified of each checkpoint.
    pub(crate) fn feed(&self) -> Feed {
        self.projection.feed.clone()
    }

    /// Runs it in a task that ends within about two seconds after `stop`.
    pub(crate) fn start(self, tasks: &TaskTracker, stop: CancellationToken) {
        tasks.spawn(self.projection.run(stop));
    }
}
