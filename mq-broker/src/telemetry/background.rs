//! The names of the metrics of what goes on beside serving; the others are in `telemetry`.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::telemetry::{Metrics, bytes, put, seconds};

/// How checkpoints go.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    /// How long each took.
    pub seconds: Histogram,
    /// Log sequence number of the last one.
    pub lsn: Gauge<u64, AtomicU64>,
    /// Times that one could not be saved.
    pub failures: Counter,
    /// 1 when none could be saved for so long that the broker is not ready.
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

/// What compacting queues by their keys came to.
#[derive(Debug, Clone, Default)]
pub struct KeyCounters {
    /// Queues compacted.
    pub passes: Counter,
    /// Messages that went.
    pub messages: Counter,
    /// Queue files that were left as they are, because they do not hold.
    pub files_left: Counter,
}

impl Metrics {
    pub(crate) fn register_scrub(&self, r: &mut Registry) {
        bytes(r, "scrub", "Bytes read again by the scrub", &self.scrub_bytes);
        put(
            r,
            "scrub_damaged",
            "Damaged places that the scrub found; one place counts again in each pass",
            &self.scrub_damaged,
        );
        put(
            r,
            "scrub_passes",
            "Passes of the scrub over all that is stored",
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
            "Times that a checkpoint could not be saved",
            failures,
        );
        put(
            r,
            "checkpoint_overdue",
            "1 when no checkpoint could be saved for five minutes: the broker is not ready",
            overdue,
        );
    }

    pub(crate) fn register_keys(&self, r: &mut Registry) {
        put(
            r,
            "key_compaction_passes",
            "Queues compacted by their keys",
            &self.keys.passes,
        );
        put(
            r,
            "key_compaction_messages",
            "Messages that were let go for later ones of their keys",
            &self.keys.messages,
        );
        put(
            r,
            "key_compaction_files_left",
            "Queue files that were not compacted because they do not hold",
            &self.keys.files_left,
        );
    }

    pub(crate) fn register_damage(&self, r: &mut Registry) {
        put(
            r,
            "fetched_holes",
            "Holes in place of damaged messages that consumers got; one place counts with each fetch",
            &self.fetched_holes,
        );
    }

    pub(crate) fn register_catalog(&self, r: &mut Registry) {
        put(
            r,
            "catalog_lsn",
            "Log sequence number of the checkpoint that the catalog's database shows",
            &self.catalog_lsn,
        );
        put(
            r,
            "catalog_current",
            "1 while the catalog's database shows the last checkpoint",
            &self.catalog_current,
        );
        put(
            r,
            "catalog_failures",
            "Times that the catalog's database could not be brought up to date",
            &self.catalog_failures,
        );
        put(
            r,
            "catalog_full",
            "Times that the catalog's database got all rows anew",
            &self.catalog_full,
        );
    }
}
