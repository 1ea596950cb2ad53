//! The table of settings: name, meaning, default, and how a text becomes a value. docs/config.md repeats it
//! for people; a test compares the two.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use mq_common::units;

use super::source::Source;
use super::{Config, Error};

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// `section.key`.
    pub name: &'static str,
    /// What it sets, in words that stand alone.
    pub meaning: &'static str,
    /// Its default as text, with its unit; empty = not set.
    pub default: &'static str,
    set: fn(&mut Config, &str) -> Result<(), String>,
    /// Its value as text.
    pub(super) show: fn(&Config) -> String,
}

impl Key {
    /// The setting called `name`.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    pub(super) fn apply(&self, config: &mut Config, value: &str, source: &Source) -> Result<(), Error> {
        (self.set)(config, value).map_err(|reason| Error::Value {
            key: self.name,
            value: crate::catalog::without_password(value),
            source_name: source.to_string(),
            reason,
        })
    }
}

macro_rules! keys {
    ($($section:ident . $key:ident = $default:literal, $meaning:literal, $parse:expr, $show:expr;)*) => {
        /// Every setting, in the order of docs/config.md.
        pub const KEYS: &[Key] = &[$(Key {
            name: concat!(stringify!($section), ".", stringify!($key)),
            meaning: $meaning,
            default: $default,
            set: |config, text| { config.$section.$key = $parse(text)?; Ok(()) },
            show: |config| $show(&config.$section.$key),
        }),*];
    };
}

keys! {
    broker.name = "", "name in the registry and in transaction ids; empty = the name stored in the data folder, initially a random one", optional, or_empty;
    broker.data_dir = "./data", "data folder; created if it is missing", path, shown_path;
    broker.zone = "", "where the broker runs, shown in the registry", optional, or_empty;
    network.listen = "127.0.0.1:7070", "`host:port` for clients; port 0 = any free port", host_port, text_of;
    network.advertise = "", "`host:port` announced to clients; required when listening on all interfaces", optional_host_port, or_empty;
    network.http = "127.0.0.1:7071", "`host:port` of health checks and metrics; port 0 = any free port", host_port, text_of;
    network.auth_token_file = "", "file whose only line is the token that clients must present", optional_path, or_empty_path;
    network.insecure_listen = "false", "`true` allows listening beyond loopback without a token", flag, text_of;
    network.in_flight_max = "65536", "requests in progress at once, over all connections", at_least_one, text_of;
    network.idle_timeout_ms = "1m", "a connection without traffic is closed after this time", some_ms, shown_ms;
    registry.url = "embedded", "where the broker registers: `embedded`, `mq://a,b`, `etcd://a,b` or another registry's URL", not_empty, text_of;
    cluster.compare_ms = "30s", "how often the broker compares its topics with those of the other brokers; the first time is at its start", some_ms, shown_ms;
    memory.budget_bytes = "512MiB", "memory for messages, requests, answers and caches together, 64 MiB to 1 TiB", memory_budget, shown_bytes;
    journal.segment_bytes = "64MiB", "size of a journal segment, 1 MiB to 1 GiB; a batch must fit in one, whatever other limits allow", segment_bytes, shown_bytes;
    journal.inbox_bytes_max = "0", "memory for requests that wait for the journal; when it is full, more are refused as overloaded; 0 = an eighth of `memory.budget_bytes`", bytes, shown_bytes;
    journal.idle_entry_ms = "1s", "a journal that has been idle for this long gets an empty entry, which proves that everything before it was synced", some_ms, shown_ms;
    journal.budget_bytes = "0", "size of the journal above which messages are moved into queue files; 0 = the smaller of 8 GiB and a quarter of (free space + current journal), at least four segments", bytes, shown_bytes;
    journal.bytes_max = "0", "size of the journal from which on messages are refused as overloaded; 0 = twice the size at which messages are moved", bytes, shown_bytes;
    store.tail_bytes_max = "0", "memory for the newest batches of all queues together; 0 = an eighth of `memory.budget_bytes`", bytes, shown_bytes;
    store.compaction_disk_percent = "25", "share of wall time that compaction, and likewise a backup, may use the disk while producers are active, 1 to 100 percent", percent, text_of;
    store.rewrite_valid_percent = "30", "a queue file is rewritten when less than this share of it is valid, 0 to 90 percent; 0 = never", valid_percent, text_of;
    store.key_compaction_dirty_percent = "50", "a queue's keys are compacted when at least this share of its files has not been compacted yet, 1 to 100 percent", percent, text_of;
    store.key_compaction_map_bytes = "0", "memory for the key table of one key-compaction pass; more keys take several passes; 0 = a 32nd of `memory.budget_bytes`", bytes, shown_bytes;
    store.tombstone_ms = "1d", "how long a deleted key's last message, which has no payload, is retained after it was appended; an idle broker may retain it up to six hours longer", ms, shown_ms;
    fetch.disk_threads = "2", "disk reads for consumers at once, 1 to 64; reads from the system's page cache need none of them", disk_threads, text_of;
    fetch.disk_share_percent = "50", "share of wall time that disk reads for consumers may take, all of them together, while producers are active, 1 to 100 percent", percent, text_of;
    fetch.unreadable_ms = "30s", "what cannot be read from the disk is an error to consumers for this long, then a hole", ms, shown_ms;
    disk.full_bytes = "", "free space on the disk below which no messages are accepted; empty = eight journal segments, the least is three", optional_bytes, or_empty_bytes;
    disk.full_percent = "0", "like `disk.full_bytes`, in percent of the disk, 0 to 90; the larger of the two wins", full_percent, text_of;
    disk.check_ms = "1s", "how often the free space is checked", some_ms, shown_ms;
    checkpoint.every_bytes = "256MiB", "a checkpoint is saved after this much journal", some_bytes, shown_bytes;
    checkpoint.every_ms = "10s", "a checkpoint is saved this long after the first unsaved change", some_ms, shown_ms;
    catalog.url = "", "PostgreSQL database that also gets the catalog of this broker, as `postgres://user:password@host:port/database`", optional, or_empty;
    catalog.timeout_ms = "5s", "time limit of a statement in PostgreSQL", some_ms, shown_ms;
    catalog.check_ms = "10s", "how often an idle broker verifies its rows in PostgreSQL", some_ms, shown_ms;
    scrub.bytes_per_s = "5MiB", "bytes per second at which stored data is read again to find damage; 0 = never", bytes, shown_bytes;
    scrub.every_ms = "7d", "a pass of the scrub starts this long after the end of the previous one; 0 = never", ms, shown_ms;
    retention.check_ms = "10s", "how often retention runs", some_ms, shown_ms;
    group.heartbeat_ms = "3s", "how often members of consumer groups send a heartbeat", some_ms, shown_ms;
    group.session_ms = "12s", "a member of a consumer group is considered dead after this time without a heartbeat", some_ms, shown_ms;
    group.ack_merge_ms = "5ms", "how long acks are collected into one journal command", ms, shown_ms;
    transaction.check_first_ms = "6s", "age of an open transaction at which its producers are first asked for a decision", some_ms, shown_ms;
    transaction.check_again_ms = "30s", "time from the first question about an open transaction to the second; each further wait is twice as long as the one before", some_ms, shown_ms;
    transaction.check_interval_ms_max = "10m", "longest time between two questions about an open transaction", some_ms, shown_ms;
    stop.drain_ms = "5s", "how long requests in progress may take to finish at a graceful stop, at most 8 s", drain_ms, shown_ms;
    telemetry.log_filter = "info", "what is logged, as `level` or `target=level,..`", not_empty, text_of;
}

fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "expected `true` or `false`".into())
}

/// The setting's type may hold less than the unit's parser does.
fn fitting<T: TryFrom<u64>>(value: Result<u64, units::Error>) -> Result<T, String> {
    let value = value.map_err(|error| error.to_string())?;
    T::try_from(value).map_err(|_| units::Error::TooLarge.to_string())
}

fn not_zero<T: PartialEq + Default>(value: T) -> Result<T, String> {
    if value == T::default() {
        return Err("expected more than 0".into());
    }
    Ok(value)
}

fn bytes<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    fitting(units::bytes(text))
}

fn some_bytes(text: &str) -> Result<u64, String> {
    bytes(text).and_then(not_zero)
}

fn ms<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    fitting(units::milliseconds(text))
}

fn some_ms<T: TryFrom<u64> + PartialEq + Default>(text: &str) -> Result<T, String> {
    ms(text).and_then(not_zero)
}

fn whole(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "expected a whole number".into())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let value = not_zero(whole(text)?)?;
    usize::try_from(value).map_err(|error| error.to_string())
}

fn within(value: u64, low: u64, high: u64, show: fn(u64) -> String) -> Result<u64, String> {
    if !(low..=high).contains(&value) {
        return Err(format!("expected {} to {}", show(low), show(high)));
    }
    Ok(value)
}

fn segment_bytes(text: &str) -> Result<u64, String> {
    within(bytes(text)?, 1 << 20, 1 << 30, units::show_bytes)
}

fn memory_budget(text: &str) -> Result<u64, String> {
    within(bytes(text)?, 64 << 20, 1 << 40, units::show_bytes)
}

fn drain_ms(text: &str) -> Result<u64, String> {
    within(ms(text)?, 0, 8000, units::show_milliseconds)
}

fn counted(text: &str, low: u64, high: u64) -> Result<u64, String> {
    within(whole(text)?, low, high, |number| number.to_string())
}

fn percent(text: &str) -> Result<u64, String> {
    counted(text, 1, 100)
}

fn valid_percent(text: &str) -> Result<u64, String> {
    counted(text, 0, 90)
}

fn disk_threads(text: &str) -> Result<usize, String> {
    usize::try_from(counted(text, 1, 64)?).map_err(|error| error.to_string())
}

fn full_percent(text: &str) -> Result<u8, String> {
    u8::try_from(counted(text, 0, 90)?).map_err(|error| error.to_string())
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("expected a text".into());
    }
    Ok(text.to_owned())
}

fn path(text: &str) -> Result<PathBuf, String> {
    not_empty(text).map(PathBuf::from)
}

fn optional<T: FromStr<Err: Display>>(text: &str) -> Result<Option<T>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    parsed(text).map(Some)
}

fn optional_bytes(text: &str) -> Result<Option<u64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    bytes(text).map(Some)
}

fn optional_path(text: &str) -> Result<Option<PathBuf>, String> {
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

fn host_port(text: &str) -> Result<String, String> {
    let expected = || "expected `host:port`, as in `127.0.0.1:7070`".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    if host.is_empty() || (host.contains(':') && !host.starts_with('[')) || port.parse::<u16>().is_err() {
        return Err(expected());
    }
    Ok(text.to_owned())
}

fn optional_host_port(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    host_port(text).map(Some)
}

fn text_of(value: &impl Display) -> String {
    value.to_string()
}

fn shown_bytes<T: Copy + TryInto<u64>>(value: &T) -> String {
    units::show_bytes((*value).try_into().unwrap_or(u64::MAX))
}

fn or_empty_bytes(value: &Option<u64>) -> String {
    value.map_or_else(String::new, units::show_bytes)
}

fn shown_ms<T: Copy + TryInto<u64>>(value: &T) -> String {
    units::show_milliseconds((*value).try_into().unwrap_or(u64::MAX))
}

fn or_empty(value: &Option<impl Display>) -> String {
    value.as_ref().map_or_else(String::new, ToString::to_string)
}

fn shown_path(value: &std::path::Path) -> String {
    value.display().to_string()
}

fn or_empty_path(value: &Option<PathBuf>) -> String {
    value.as_deref().map_or_else(String::new, shown_path)
}
