//! The settings of the broker's components, derived from its configuration.

use std::sync::Arc;
use std::time::Duration;

use rpc_core::ProviderBuilder;
use tokio_util::task::TaskTracker;

use crate::config::{self, Config};
use crate::fetch::{DiskPool, DiskPoolSettings};
use crate::log;
use crate::telemetry::Metrics;
use crate::volatile;

/// Memory that a row of the segment being written takes at most, about: in the index (130 bytes), for the next
/// checkpoint (80 to 160), and while the segment is sealed for its footer, beside that of the segment before (64
/// each).
const ROW_MEMORY_BYTES: usize = 400;

pub(crate) fn journal_settings(config: &Config) -> log::Settings {
    let journal = &config.journal;
    log::Settings {
        full_bytes: config.full_bytes(),
        full_percent: config.disk.full_percent,
        segment_bytes: u32::try_from(journal.segment_bytes).unwrap_or(u32::MAX),
        segment_rows_max: config.shares().rows / ROW_MEMORY_BYTES,
        idle: Duration::from_millis(journal.idle_entry_ms),
        // The limit that counts is that of the inbox in front of it.
        waiting_bytes_max: usize::MAX,
        chain_start: fastrand::u32(..),
        ..log::Settings::default()
    }
}

pub(crate) fn disk_pool(fetch: &config::Fetch, tasks: &TaskTracker, metrics: &Metrics) -> Arc<DiskPool> {
    let settings = DiskPoolSettings {
        threads: fetch.disk_threads,
        share_percent: u32::try_from(fetch.disk_share_percent).unwrap_or(100),
    };
    Arc::new(DiskPool::new(
        settings,
        tasks.clone(),
        metrics.produced_batches.clone(),
    ))
}

pub(crate) fn member_settings(group: &config::Group) -> volatile::Settings {
    volatile::Settings {
        heartbeat: Duration::from_millis(u64::from(group.heartbeat_ms)),
        session: Duration::from_millis(u64::from(group.session_ms)),
        ..volatile::Settings::default()
    }
}

pub(crate) fn check_schedule(transaction: &config::Transaction) -> volatile::Schedule {
    volatile::Schedule {
        again: Duration::from_millis(u64::from(transaction.check_again_ms)),
        again_max: Duration::from_millis(u64::from(transaction.check_interval_ms_max)),
        ..volatile::Schedule::default()
    }
}

/// A provider with the limits that the settings name.
pub(crate) fn bounded(builder: ProviderBuilder, config: &Config) -> ProviderBuilder {
    let shares = config.shares();
    builder
        .idle_timeout(Duration::from_millis(config.network.idle_timeout_ms))
        .in_flight_max(config.network.in_flight_max)
        .in_flight_bytes_max(shares.requests)
        .reading_bytes_max(shares.reading)
        .backlog_bytes_max(shares.backlog)
        .unwritten_bytes_max(shares.connection)
        // Long polls all wait in one method and cost next to nothing.
        .method_in_flight_max(config.network.in_flight_max)
        // And a method is not slow because of that, or because it waits for the disk together with a thousand
        // others: that is group commit.
        .slow_methods(None)
}
