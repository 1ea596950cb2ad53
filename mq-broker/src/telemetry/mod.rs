//! The format of the log, and every metric with its name. Metrics have base units (seconds, bytes) and label
//! values from closed sets; the registry is a value, never a global.

mod background;
mod rpc_calls;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};
use tracing_subscriber::EnvFilter;

use self::background::{Checkpoints, KeyCounters};
use self::rpc_calls::Calls;
use crate::log::{Level, Standing};

/// Why a log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("`telemetry.log_filter` = `{filter}`: {reason}; expected `info` or `info,mq_broker=debug`")]
pub struct InvalidFilter {
    /// The filter as it was given.
    pub filter: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Sends the log to standard error, once per process.
///
/// # Errors
/// The filter is invalid.
pub fn log_to_stderr(filter: &str) -> Result<(), InvalidFilter> {
    let invalid = |reason: String| InvalidFilter {
        filter: filter.to_owned(),
        reason,
    };
    let parsed = EnvFilter::try_new(filter).map_err(|error| invalid(error.to_string()))?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(parsed)
        .try_init()
        .map_err(|error| invalid(error.to_string()))
}

/// An error code of the broker as a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    /// The code's name.
    pub code: String,
}

impl From<mq_common::ErrorCode> for CodeLabel {
    fn from(code: mq_common::ErrorCode) -> Self {
        Self {
            code: format!("{code:?}"),
        }
    }
}

/// Where an answer's batches were read, as a label. Of several places the slowest is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReadLabel {
    from: &'static str,
}

impl ReadLabel {
    /// The broker's own memory.
    pub const MEMORY: Self = Self { from: "memory" };
    /// The system's page cache, read on the caller's thread.
    pub const PAGE_CACHE: Self = Self { from: "page_cache" };
    /// A thread that waited for the disk.
    pub const DISK: Self = Self { from: "disk" };
}

/// Every metric of the broker. All names start with `hc_mq_`.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Batches appended, those of half messages too.
    pub produced_batches: Counter,
    /// Records appended.
    pub produced_records: Counter,
    /// Bytes of batches appended.
    pub produced_bytes: Counter,
    /// Requests or batches refused, by error code.
    pub refused: Family<CodeLabel, Counter>,
    /// Batches served.
    pub fetched_batches: Counter,
    /// Bytes of batches served.
    pub fetched_bytes: Counter,
    /// Bytes among them that came from files.
    pub fetched_file_bytes: Counter,
    /// Answers with batches, by where these were read.
    pub fetch_reads: Family<ReadLabel, Counter>,
    /// Fetches waiting for new messages.
    pub fetches_waiting: Gauge,
    /// Turns of the core.
    pub turns: Counter,
    /// Commands per turn.
    pub turn_commands: Histogram,
    /// Length of a turn: write, apply, sync.
    pub turn_seconds: Histogram,
    /// Length of a sync of the journal.
    pub sync_seconds: Histogram,
    /// Bytes waiting for the core.
    pub inbox_bytes: Gauge,
    /// Last journal entry on disk.
    pub synced_lsn: Gauge<u64, AtomicU64>,
    /// Segments of the journal.
    pub segments: Gauge,
    /// Spare segments, ready to be written.
    pub segments_spare: Gauge,
    /// Segments freed whose files became spares.
    pub segments_recycled: Counter,
    /// Segments freed whose files were removed.
    pub segments_unlinked: Counter,
    /// Completed rounds of compaction.
    pub compaction_rounds: Counter,
    /// Bytes that compaction copied into queue files.
    pub compaction_bytes: Counter,
    /// Runs of damaged batches that compaction left out.
    pub compaction_holes: Counter,
    /// Key compaction.
    pub keys: KeyCounters,
    /// Bytes of queue files.
    pub queue_file_bytes: Gauge,
    /// Journal segments with messages of undecided transactions.
    pub segments_held: Gauge,
    /// Queue files removed.
    pub queue_files_removed: Counter,
    /// Bytes free on the disk of the data folder.
    pub disk_free_bytes: Gauge,
    /// Bytes of the disk of the data folder.
    pub disk_total_bytes: Gauge,
    /// 0 = everything is accepted, 1 = no messages, 2 = only what frees space.
    pub disk_full: Gauge,
    /// Checkpoints.
    pub checkpoints: Checkpoints,
    /// Log sequence number of the checkpoint that the catalog in PostgreSQL shows.
    pub catalog_lsn: Gauge<u64, AtomicU64>,
    /// 1 while the catalog in PostgreSQL shows the last checkpoint.
    pub catalog_current: Gauge,
    /// Failed attempts to update the catalog in PostgreSQL.
    pub catalog_failures: Counter,
    /// Times that all rows of this broker were rewritten there.
    pub catalog_rewrites: Counter,
    /// Bytes read by the scrub.
    pub scrub_bytes: Counter,
    /// Damaged places found by the scrub.
    pub scrub_damaged: Counter,
    /// Passes of the scrub over all stored data.
    pub scrub_passes: Counter,
    /// Holes served to consumers instead of damaged messages.
    pub fetched_holes: Counter,
    /// Records deleted by retention.
    pub trimmed_records: Counter,
    /// Records among them that some group had not acknowledged, once for each such group.
    pub expired_unread_records: Counter,
    /// Undecided transactions.
    pub transactions_open: Gauge,
    /// 1 once the broker serves and is registered.
    pub ready: Gauge,
    /// The calls that the broker's port has served.
    pub calls: Calls,
}

impl Metrics {
    /// New metrics, and the registry that encodes them.
    #[must_use]
    pub fn new() -> (Self, Arc<Registry>) {
        let mut registry = Registry::with_prefix("hc_mq");
        let seconds = || Histogram::new(exponential_buckets(50e-6, 2.0, 18));
        let metrics = Self {
            produced_batches: Counter::default(),
            produced_records: Counter::default(),
            produced_bytes: Counter::default(),
            refused: Family::default(),
            fetched_batches: Counter::default(),
            fetched_bytes: Counter::default(),
            fetched_file_bytes: Counter::default(),
            fetch_reads: Family::default(),
            fetches_waiting: Gauge::default(),
            turns: Counter::default(),
            turn_commands: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            turn_seconds: seconds(),
            sync_seconds: seconds(),
            inbox_bytes: Gauge::default(),
            synced_lsn: Gauge::default(),
            segments: Gauge::default(),
            segments_spare: Gauge::default(),
            segments_recycled: Counter::default(),
            segments_unlinked: Counter::default(),
            compaction_rounds: Counter::default(),
            compaction_bytes: Counter::default(),
            compaction_holes: Counter::default(),
            keys: KeyCounters::default(),
            queue_file_bytes: Gauge::default(),
            segments_held: Gauge::default(),
            queue_files_removed: Counter::default(),
            disk_free_bytes: Gauge::default(),
            disk_total_bytes: Gauge::default(),
            disk_full: Gauge::default(),
            checkpoints: Checkpoints::new(seconds()),
            catalog_lsn: Gauge::default(),
            catalog_current: Gauge::default(),
            catalog_failures: Counter::default(),
            catalog_rewrites: Counter::default(),
            scrub_bytes: Counter::default(),
            scrub_damaged: Counter::default(),
            fetched_holes: Counter::default(),
            scrub_passes: Counter::default(),
            trimmed_records: Counter::default(),
            expired_unread_records: Counter::default(),
            transactions_open: Gauge::default(),
            ready: Gauge::default(),
            calls: Calls::default(),
        };
        metrics.register(&mut registry);
        (metrics, Arc::new(registry))
    }

    fn register(&self, registry: &mut Registry) {
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The broker's version", build);
        registry.register_collector(Box::new(self.calls.clone()));
        self.register_traffic(registry);
        self.register_segments(registry);
        self.register_queue_files(registry);
        self.register_catalog(registry);
        self.register_disk(registry);
        self.register_checkpoints(registry);
        self.register_keys(registry);
        self.register_scrub(registry);
        self.register_damage(registry);
        let r = &mut *registry;
        put(r, "core_turns", "Turns of the core", &self.turns);
        put(
            r,
            "core_turn_commands",
            "Commands in one turn",
            &self.turn_commands,
        );
        bytes(
            r,
            "core_inbox",
            "Bytes of requests waiting for the core",
            &self.inbox_bytes,
        );
        seconds(
            r,
            "core_turn",
            "Length of a turn: write, apply, sync",
            &self.turn_seconds,
        );
        seconds(
            r,
            "journal_sync",
            "Length of a sync of the journal",
            &self.sync_seconds,
        );
        put(
            r,
            "journal_synced_lsn",
            "Last journal entry on disk",
            &self.synced_lsn,
        );
        put(
            r,
            "trimmed_records",
            "Records deleted by retention",
            &self.trimmed_records,
        );
        put(
            r,
            "expired_unread_records",
            "Records deleted before a group acknowledged them, once for each such group",
            &self.expired_unread_records,
        );
        put(
            r,
            "transactions_open",
            "Undecided transactions",
            &self.transactions_open,
        );
        put(
            r,
            "ready",
            "1 once the broker serves and is registered",
            &self.ready,
        );
    }

    fn register_segments(&self, r: &mut Registry) {
        put(r, "journal_segments", "Segments of the journal", &self.segments);
        put(
            r,
            "journal_segments_spare",
            "Spare segments, ready to be written",
            &self.segments_spare,
        );
        put(
            r,
            "journal_segments_held",
            "Segments with messages of undecided transactions, which are neither moved nor freed",
            &self.segments_held,
        );
        put(
            r,
            "journal_segments_recycled",
            "Segments freed whose files became spares",
            &self.segments_recycled,
        );
        put(
            r,
            "journal_segments_unlinked",
            "Segments freed whose files were removed",
            &self.segments_unlinked,
        );
    }

    fn register_queue_files(&self, r: &mut Registry) {
        put(
            r,
            "compaction_rounds",
            "Completed rounds of compaction (from the journal into queue files)",
            &self.compaction_rounds,
        );
        bytes(
            r,
            "compaction",
            "Bytes that compaction copied into queue files",
            &self.compaction_bytes,
        );
        put(
            r,
            "compaction_holes",
            "Runs of damaged batches that compaction left out",
            &self.compaction_holes,
        );
        bytes(r, "queue_files", "Bytes of queue files", &self.queue_file_bytes);
        put(
            r,
            "queue_files_removed",
            "Queue files removed",
            &self.queue_files_removed,
        );
    }

    fn register_disk(&self, r: &mut Registry) {
        bytes(
            r,
            "disk_free",
            "Bytes free on the disk of the data folder",
            &self.disk_free_bytes,
        );
        bytes(
            r,
            "disk_total",
            "Bytes of the disk of the data folder",
            &self.disk_total_bytes,
        );
        put(
            r,
            "disk_full",
            "0 = everything is accepted, 1 = no messages, 2 = only what frees space",
            &self.disk_full,
        );
    }

    fn register_traffic(&self, r: &mut Registry) {
        put(
            r,
            "produced_batches",
            "Batches appended, visible or half",
            &self.produced_batches,
        );
        put(r, "produced_records", "Records appended", &self.produced_records);
        bytes(
            r,
            "produced",
            "Bytes of batches appended, as they are stored",
            &self.produced_bytes,
        );
        put(
            r,
            "refused",
            "Requests or batches refused, by error code",
            &self.refused,
        );
        put(r, "fetched_batches", "Batches served", &self.fetched_batches);
        bytes(
            r,
            "fetched",
            "Bytes of batches served, stamps included",
            &self.fetched_bytes,
        );
        bytes(
            r,
            "fetched_file",
            "Bytes of batches read from files to be served",
            &self.fetched_file_bytes,
        );
        put(
            r,
            "fetch_reads",
            "Answers with batches, by where these were read",
            &self.fetch_reads,
        );
        put(
            r,
            "fetches_waiting",
            "Fetches waiting for new messages",
            &self.fetches_waiting,
        );
    }

    /// Shows the state of the disk.
    pub fn show_disk(&self, standing: &Standing) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.disk_free_bytes.set(gauge(standing.free));
        self.disk_total_bytes.set(gauge(standing.total));
        self.disk_full.set(match standing.level {
            Level::Open => 0,
            Level::Full => 1,
            Level::ReadOnly => 2,
        });
    }

    /// Counts one refusal.
    pub fn refuse(&self, error: &mq_common::Error) {
        self.refused.get_or_create(&error.code.into()).inc();
    }
}

pub(crate) fn put(registry: &mut Registry, name: &str, help: &str, metric: &(impl Metric + Clone)) {
    registry.register(name, help, metric.clone());
}

pub(crate) fn bytes(registry: &mut Registry, name: &str, help: &str, metric: &(impl Metric + Clone)) {
    registry.register_with_unit(name, help, Unit::Bytes, metric.clone());
}

pub(crate) fn seconds(registry: &mut Registry, name: &str, help: &str, metric: &Histogram) {
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
}

/// Resident memory of this process in bytes, if the system reports it.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_prefix_and_base_units() {
        let (metrics, registry) = Metrics::new();
        metrics.produced_bytes.inc_by(7);
        metrics.refuse(&mq_common::Error::new(mq_common::ErrorCode::Overloaded, "x"));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("hc_mq_produced_bytes_total 7"), "{text}");
        assert!(
            text.contains("hc_mq_refused_total{code=\"Overloaded\"} 1"),
            "{text}"
        );
        assert!(text.contains("hc_mq_core_turn_seconds_bucket"), "{text}");
        let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
        let of_bytes: Vec<_> = helps
            .filter_map(|help| help.split_once(' '))
            .filter(|(name, _)| name.ends_with("_bytes"))
            .collect();
        assert!(of_bytes.len() >= 4, "{text}");
        for (name, help) in of_bytes {
            assert!(help.starts_with("Bytes"), "{name}: {help}");
        }
    }

    #[test]
    fn invalid_filter_is_named() {
        let error = log_to_stderr("mq_broker=loud=quiet").unwrap_err();
        assert!(error.to_string().contains("mq_broker=loud=quiet"));
    }
}
