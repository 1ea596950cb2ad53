//! The table of settings: name, meaning, default, and how a text becomes a value. docs/config.md repeats it for people;
//! a test compares the two.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use super::source::Source;
use super::{Config, Error};

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// `section.key`.
    pub name: &'static str,
    /// What it is, with its unit.
    pub meaning: &'static str,
    /// Its default as text; empty = not set.
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
    broker.name = "", "name in the registry and in transaction ids; empty = the one kept in the data folder, at first a random one", optional, or_empty;
    broker.data_dir = "./data", "data folder; made if missing", path, shown_path;
    broker.zone = "", "where the broker runs, shown in the registry", optional, or_empty;
    network.listen = "127.0.0.1:7070", "`host:port` for clients; port 0 = any free one", host_port, text_of;
    network.advertise = "", "`host:port` that clients are told; needed when listening on all interfaces", optional_host_port, or_empty;
    network.http = "127.0.0.1:7071", "`host:port` of health and metrics; port 0 = any free one", host_port, text_of;
    network.auth_token_file = "", "file whose one line is the token that clients must show", optional_path, or_empty_path;
    network.insecure_listen = "false", "`true` allows to listen beyond loopback without a token", number, text_of;
    network.in_flight_max = "65536", "requests being worked on at once, all connections together", at_least_one, text_of;
    network.idle_timeout_ms = "60000", "a connection without traffic is closed after this time, milliseconds", at_least_one, text_of;
    registry.url = "embedded", "where the broker registers: `embedded`, `mq://a,b`, `etcd://a,b` or another registry's URL", not_empty, text_of;
    cluster.compare_ms = "30000", "topics are compared with those of the other brokers at start and then this often, milliseconds", at_least_one, text_of;
    memory.budget_bytes = "536870912", "memory for messages, requests, answers and caches, all together, bytes, 64 MiB to 1 TiB", budget_bytes, text_of;
    journal.segment_bytes = "67108864", "size of one journal segment, bytes, 1 MiB to 1 GiB; a batch must fit in one, whatever else it may have", segment_bytes, text_of;
    journal.inbox_bytes_max = "0", "requests waiting for the journal, bytes, of which more are refused as overloaded; 0 = an eighth of `memory.budget_bytes`", number, text_of;
    journal.idle_entry_ms = "1000", "after this idle time an empty entry covers the last one, milliseconds", at_least_one, text_of;
    store.tail_bytes_max = "0", "newest batches kept in memory, all queues together, bytes; 0 = an eighth of `memory.budget_bytes`", number, text_of;
    store.journal_budget_bytes = "0", "journal from which on messages are moved into queue files, bytes; 0 = the smaller of 8 GiB and a quarter of free space and journal", number, text_of;
    store.journal_bytes_max = "0", "journal from which on messages are refused as overloaded, bytes; 0 = twice the budget", number, text_of;
    store.compaction_disk_percent = "25", "share of the time in which compaction and backups use the disk while producers do, percent, 1 to 100", percent, text_of;
    store.rewrite_valid_percent = "30", "a queue file of which less is valid is rewritten, percent, at most 90; 0 = never", valid_percent, text_of;
    store.compact_dirty_percent = "50", "a queue of a compacting topic is compacted by its keys when so much of its files was not yet, percent, 1 to 100", percent, text_of;
    store.compact_map_bytes = "0", "memory in which that remembers keys, bytes; with more keys than fit it takes several rounds; 0 = a 32nd of `memory.budget_bytes`", number, text_of;
    store.tombstone_ms = "86400000", "a deleted key's last message, which has no payload, stays for this long after it was appended, milliseconds; on a broker at rest up to six hours more", number, text_of;
    fetch.disk_threads = "2", "reads for consumers that wait for the disk at once, 1 to 64; what the system's page cache holds needs none", disk_threads, text_of;
    fetch.disk_share_percent = "50", "share of the time in which they read while producers send, all of them together, 1 to 100 percent", percent, text_of;
    fetch.unreadable_ms = "30000", "what cannot be read from the disk is an error to consumers for this long, then a hole, milliseconds", number, text_of;
    disk.full_bytes = "", "with fewer bytes free on the disk no messages are taken; empty = eight journal segments, at least three", optional, or_empty;
    disk.full_percent = "0", "the same in percent of the disk, 0 to 90; the larger of the two counts", full_percent, text_of;
    disk.check_ms = "1000", "the free space is looked at this often, milliseconds", at_least_one, text_of;
    checkpoint.every_bytes = "268435456", "a checkpoint after this many bytes of journal", at_least_one, text_of;
    checkpoint.every_ms = "10000", "and this long after the first change since the last one, milliseconds", at_least_one, text_of;
    catalog.url = "", "PostgreSQL database that gets the catalog of this broker too, as `postgres://user:password@host:port/database`", optional, or_empty;
    catalog.timeout_ms = "5000", "a statement there may take this long, milliseconds", at_least_one, text_of;
    catalog.check_ms = "10000", "and when nothing changed it is compared with the checkpoint this often, milliseconds", at_least_one, text_of;
    scrub.bytes_per_s = "5242880", "what is stored is read again at this rate, to find what the disk has damaged, bytes a second; 0 = never", number, text_of;
    scrub.every_ms = "604800000", "a pass begins this long after the end of the last one, milliseconds; 0 = never", number, text_of;
    retention.check_ms = "10000", "it is looked this often which messages their topics let go, milliseconds", at_least_one, text_of;
    group.heartbeat_ms = "3000", "members of consumer groups report this often, milliseconds", at_least_one, text_of;
    group.session_ms = "12000", "without a report for this long a member is taken to be dead, milliseconds", at_least_one, text_of;
    group.ack_merge_ms = "5", "acks are gathered for this long into one journal command, milliseconds", number, text_of;
    transaction.check_first_ms = "6000", "first question to the producers about an open transaction after this time, milliseconds", at_least_one, text_of;
    transaction.check_again_ms = "30000", "second question this much later, each further one after twice the time before, milliseconds", at_least_one, text_of;
    transaction.check_interval_ms_max = "600000", "longest time between two questions, milliseconds", at_least_one, text_of;
    stop.drain_ms = "5000", "at a graceful stop, requests being worked on may end within this time, milliseconds, at most 8000", drain_ms, text_of;
    telemetry.log_filter = "info", "what is logged, as `level` or `target=level,..`", not_empty, text_of;
}

fn number<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn at_least_one<T: FromStr<Err: Display> + PartialEq + Default>(text: &str) -> Result<T, String> {
    let value: T = number(text)?;
    if value == T::default() {
        return Err("expected at least 1".into());
    }
    Ok(value)
}

fn within(text: &str, low: u64, high: u64) -> Result<u64, String> {
    let value = number(text)?;
    if !(low..=high).contains(&value) {
        return Err(format!("expected {low} to {high}"));
    }
    Ok(value)
}

fn segment_bytes(text: &str) -> Result<u64, String> {
    within(text, 1 << 20, 1 << 30)
}

fn budget_bytes(text: &str) -> Result<u64, String> {
    within(text, 64 << 20, 1 << 40)
}

fn percent(text: &str) -> Result<u64, String> {
    within(text, 1, 100)
}

fn valid_percent(text: &str) -> Result<u64, String> {
    within(text, 0, 90)
}

fn disk_threads(text: &str) -> Result<usize, String> {
    let threads = within(text, 1, 64)?;
    usize::try_from(threads).map_err(|error| error.to_string())
}

fn full_percent(text: &str) -> Result<u8, String> {
    let percent = within(text, 0, 90)?;
    u8::try_from(percent).map_err(|error| error.to_string())
}

fn drain_ms(text: &str) -> Result<u64, String> {
    within(text, 0, 8000)
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
    number(text).map(Some)
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

fn or_empty(value: &Option<impl Display>) -> String {
    value.as_ref().map_or_else(String::new, ToString::to_string)
}

fn shown_path(value: &std::path::Path) -> String {
    value.display().to_string()
}

fn or_empty_path(value: &Option<PathBuf>) -> String {
    value.as_deref().map_or_else(String::new, shown_path)
}
