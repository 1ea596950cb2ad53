//! Metrics of background work; the others are in `telemetry`.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::telemetry::{Metrics, bytes, put, seconds};

/// Metrics of checkpoints.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    /// Length of each.
    pub seconds: Histogram,
    /// Log sequence number of the last one.
    pub lsn: Gauge<u64, AtomicU64>,
    /// Checkpoints that could not be saved.
    pub failures: Counter,
    /// 1 while no checkpoint could be saved for so long that the broker is not ready.
    pub overdue: Gauge,
}

impl Checkpoints {
    pub(crate) fn new(seconds: Histogram) -> Self {
        Self {
            seconds,
            lsn: Gauge::default(),
            failures: Counter::default(),
            overdue: Gauge::default(),
        }
    }
}

/// Metrics of key compaction.
#[derive(Debug, Clone, Default)]
pub struct KeyCounters {
    /// Passes over a queue.
    pub passes: Counter,
    /// Messages deleted.
    pub messages: Counter,
    /// Queue files that were not compacted because they are damaged.
    pub files_left: Counter,
}

impl Metrics {
    pub(crate) fn register_scrub(&self, r: &mut Registry) {
        bytes(r, "scrub", "Bytes read again by the scrub", &self.scrub_bytes);
        put(
            r,
            "scrub_damaged",
            "Damaged places found by the scrub; a place counts again in each pass",
            &self.scrub_damaged,
        );
        put(
            r,
            "scrub_passes",
            "Passes of the scrub over all stored data",
            &self.scrub_passes,
        );
    }

    pub(crate) fn register_checkpoints(&self, r: &mut Registry) {
        let Checkpoints {
            seconds: took,
            lsn,
            failures,
            overdue,
        } = &self.checkpoints;
        seconds(r, "checkpoint", "Length of a checkpoint", took);
        put(
            r,
            "checkpoint_lsn",
            "Log sequence number of the last checkpoint",
            lsn,
        );
        put(
            r,
            "checkpoint_failures",
            "Checkpoints that could not be saved",
            failures,
        );
        put(
            r,
            "checkpoint_overdue",
            "1 while no checkpoint could be saved for five minutes: the broker is not ready",
            overdue,
        );
    }

    pub(crate) fn register_keys(&self, r: &mut Registry) {
        put(
            r,
            "key_compaction_passes",
            "Key-compaction passes over a queue",
            &self.keys.passes,
        );
        put(
            r,
            "key_compaction_messages",
            "Messages deleted because a later one has the same key",
            &self.keys.messages,
        );
        put(
            r,
            "key_compaction_files_left",
            "Queue files that key compaction skipped because they are damaged",
            &self.keys.files_left,
        );
    }

    pub(crate) fn register_damage(&self, r: &mut Registry) {
        put(
            r,
            "fetched_holes",
            "Holes served to consumers instead of damaged messages; a place counts again with each fetch",
            &self.fetched_holes,
        );
    }

    pub(crate) fn register_catalog(&self, r: &mut Registry) {
        put(
            r,
            "catalog_lsn",
            "Log sequence number of the checkpoint that the catalog in PostgreSQL shows",
            &self.catalog_lsn,
        );
        put(
            r,
            "catalog_current",
            "1 while the catalog in PostgreSQL shows the last checkpoint",
            &self.catalog_current,
        );
        put(
            r,
            "catalog_failures",
            "Failed attempts to update the catalog in PostgreSQL",
            &self.catalog_failures,
        );
        put(
            r,
            "catalog_rewrites",
            "Times that all rows of this broker were rewritten in PostgreSQL",
            &self.catalog_rewrites,
        );
    }
}
