//! The broker's settings: typed, merged from defaults < TOML file < environment < flags.
//!
//! Not here: flags themselves (`cli.rs`). The one invariant: the table of `keys.rs` has every key once, with
//! its meaning and default. Any other key is refused at the start, with its name and source.

pub mod kept;
mod keys;
mod shares;
mod source;

use std::path::PathBuf;

use mq_common::units::{show_bytes, show_milliseconds};

pub use crate::catalog::DatabaseUrl;
pub use keys::{KEYS, Key};
pub use shares::Shares;
pub use source::{Given, Source, environment, file};

/// Default of [`Config::full_bytes`], in journal segments.
const FULL_SEGMENTS: u64 = 8;
/// Least value of [`Config::full_bytes`], in journal segments.
const RESERVE_SEGMENTS: u64 = 3;

/// All settings, built by [`Config::merge`]. What each one means is in docs/config.md.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Who this broker is and where its data is stored.
    pub broker: Broker,
    /// Where it listens and whom it admits.
    pub network: Network,
    /// Where it registers.
    pub registry: Registry,
    /// How it keeps its topics in step with those of the other brokers.
    pub cluster: Cluster,
    /// How much memory it uses.
    pub memory: Memory,
    /// The journal.
    pub journal: Journal,
    /// The newest batches in memory, and the queue files.
    pub store: Store,
    /// Reading for consumers.
    pub fetch: Fetch,
    /// How full its disk may become.
    pub disk: Disk,
    /// Checkpoints of the state.
    pub checkpoint: Checkpoint,
    /// The catalog in PostgreSQL.
    pub catalog: Catalog,
    /// Reading stored data again, to find damage.
    pub scrub: Scrub,
    /// Deleting old messages.
    pub retention: Retention,
    /// Consumer groups.
    pub group: Group,
    /// Check-back of open transactions.
    pub transaction: Transaction,
    /// The graceful stop.
    pub stop: Stop,
    /// Logging.
    pub telemetry: Telemetry,
}

/// Section `[broker]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Broker {
    /// Name of the broker; `None` = the one stored in the data folder, or a random one.
    pub name: Option<mq_common::ids::ShardName>,
    /// The data folder.
    pub data_dir: PathBuf,
    /// Where the broker runs, shown in the registry.
    pub zone: Option<String>,
}

/// Section `[network]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// `host:port` for clients; port 0 = any free port.
    pub listen: String,
    /// `host:port` announced to clients; `None` = where the broker listens.
    pub advertise: Option<String>,
    /// `host:port` of the HTTP server; port 0 = any free port.
    pub http: String,
    /// File with the token that clients must present.
    pub auth_token_file: Option<PathBuf>,
    /// Allows listening beyond loopback without a token.
    pub insecure_listen: bool,
    /// Requests in progress at once, over all connections.
    pub in_flight_max: usize,
    /// A connection without traffic is closed after this time.
    pub idle_timeout_ms: u64,
}

/// Section `[registry]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    /// `embedded` or a registry URL.
    pub url: String,
}

/// Section `[cluster]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Interval between comparisons with the topics of the other brokers.
    pub compare_ms: u64,
}

/// Section `[memory]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Memory for messages, requests, answers and caches together.
    pub budget_bytes: u64,
}

/// Section `[journal]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Journal {
    /// Size of one segment.
    pub segment_bytes: u64,
    /// Memory for requests that wait for the core; 0 = a share of the memory budget.
    pub inbox_bytes_max: usize,
    /// Idle time after which an empty entry is appended.
    pub idle_entry_ms: u64,
    /// Size of the journal above which messages are moved into queue files; 0 = by the free space.
    pub budget_bytes: u64,
    /// Size of the journal from which on messages are refused; 0 = twice the budget.
    pub bytes_max: u64,
}

/// Section `[store]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Store {
    /// Memory for the newest batches of all queues together; 0 = a share of the memory budget.
    pub tail_bytes_max: usize,
    /// Share of wall time for compaction, and likewise for a backup, while producers are active.
    pub compaction_disk_percent: u64,
    /// A queue file is rewritten when less than this share of it is valid.
    pub rewrite_valid_percent: u64,
    /// A queue's keys are compacted when at least this share of its files has not been compacted yet.
    pub key_compaction_dirty_percent: u64,
    /// Memory for the key table of one key-compaction pass; 0 = a share of the memory budget.
    pub key_compaction_map_bytes: usize,
    /// How long a tombstone is retained after it was appended.
    pub tombstone_ms: u64,
}

/// Section `[fetch]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fetch {
    /// Disk reads at once.
    pub disk_threads: usize,
    /// Share of wall time that disk reads may take, all of them together, while producers are active.
    pub disk_share_percent: u64,
    /// What cannot be read from the disk is an error to consumers for this long, then a hole.
    pub unreadable_ms: u64,
}

/// Section `[disk]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// Free space below which no messages are accepted; `None` = eight journal segments.
    pub full_bytes: Option<u64>,
    /// The same in percent of the disk; the larger of the two wins.
    pub full_percent: u8,
    /// Interval between checks of the free space.
    pub check_ms: u64,
}

/// Section `[checkpoint]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// A checkpoint is saved after this much journal.
    pub every_bytes: u64,
    /// A checkpoint is saved this long after the first unsaved change.
    pub every_ms: u64,
}

/// Section `[catalog]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// The PostgreSQL database that also gets the catalog.
    pub url: Option<DatabaseUrl>,
    /// Time limit of a statement in PostgreSQL.
    pub timeout_ms: u64,
    /// Interval at which an idle broker verifies its rows in PostgreSQL.
    pub check_ms: u64,
}

/// Section `[scrub]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrub {
    /// Bytes per second at which stored data is read again; 0 = never.
    pub bytes_per_s: u64,
    /// Time from the end of one pass to the start of the next; 0 = never.
    pub every_ms: u64,
}

/// Section `[retention]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// Interval between runs of retention.
    pub check_ms: u64,
}

/// Section `[group]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Interval between the heartbeats of a member.
    pub heartbeat_ms: u32,
    /// A member is considered dead after this time without a heartbeat.
    pub session_ms: u32,
    /// How long acks are collected into one command.
    pub ack_merge_ms: u64,
}

/// Section `[transaction]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Age of an open transaction at which its producers are first asked.
    pub check_first_ms: u32,
    /// Time from the first question to the second; each further wait is twice as long as the one before.
    pub check_again_ms: u32,
    /// Longest time between two questions.
    pub check_interval_ms_max: u32,
}

/// Section `[stop]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stop {
    /// How long requests in progress may take to finish.
    pub drain_ms: u64,
}

/// Section `[telemetry]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Telemetry {
    /// What is logged, in the notation of `tracing`'s `EnvFilter`.
    pub log_filter: String,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No setting has this name.
    #[error("unknown key `{key}` {source_name}; {hint}")]
    UnknownKey {
        /// As given.
        key: String,
        /// Where it was given, as in "in file `x.toml`".
        source_name: String,
        /// The known keys or sections.
        hint: String,
    },
    /// The value does not fit the key.
    #[error("`{key}` = `{value}` {source_name}: {reason}")]
    Value {
        /// Which setting.
        key: &'static str,
        /// As given.
        value: String,
        /// Where it was given.
        source_name: String,
        /// What was expected.
        reason: String,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration file `{path}`: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        error: std::io::Error,
    },
    /// The file is not TOML of the expected shape.
    #[error("configuration file `{path}`: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line and what was expected.
        reason: String,
    },
    /// Two settings contradict each other.
    #[error("{0}")]
    Conflict(String),
}

impl Config {
    /// The defaults, overlaid by `given`, later ones winning.
    ///
    /// # Errors
    /// An unknown key, a value that does not fit, or settings that contradict each other.
    pub fn merge(given: &[Given]) -> Result<Self, Error> {
        let mut config = Self::default();
        for key in KEYS {
            key.apply(&mut config, key.default, &Source::Default)?;
        }
        for Given { key, value, source } in given {
            match Key::find(key) {
                Some(key) => key.apply(&mut config, value, source)?,
                None => return Err(source.unknown(key)),
            }
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Error> {
        let conflict = |text: String| Err(Error::Conflict(text));
        if self.group.session_ms < self.group.heartbeat_ms.saturating_mul(2) {
            return conflict(format!(
                "`group.session_ms` = {} is less than twice `group.heartbeat_ms` = {}: one lost heartbeat would end a membership",
                show_milliseconds(self.group.session_ms.into()),
                show_milliseconds(self.group.heartbeat_ms.into())
            ));
        }
        let (budget, max) = (self.journal.budget_bytes, self.journal.bytes_max);
        if max > 0 && (budget == 0 || max < budget) {
            return conflict(format!(
                "`journal.bytes_max` = {} needs a `journal.budget_bytes` between 1 byte and that size, but it is {}",
                show_bytes(max),
                show_bytes(budget)
            ));
        }
        self.check_shares().or_else(conflict)?;
        let reserve = self.journal.segment_bytes.saturating_mul(RESERVE_SEGMENTS);
        if self.full_bytes() < reserve {
            return conflict(format!(
                "`disk.full_bytes` = {} is less than {RESERVE_SEGMENTS} times `journal.segment_bytes` = {}: two segments are \
                 the reserve of a full disk, and checkpoints need space too",
                show_bytes(self.full_bytes()),
                show_bytes(self.journal.segment_bytes)
            ));
        }
        if self.transaction.check_again_ms > self.transaction.check_interval_ms_max {
            return conflict(format!(
                "`transaction.check_again_ms` = {} is above `transaction.check_interval_ms_max` = {}",
                show_milliseconds(self.transaction.check_again_ms.into()),
                show_milliseconds(self.transaction.check_interval_ms_max.into())
            ));
        }
        Ok(())
    }

    /// Free space on the disk, in bytes, below which no messages are accepted.
    #[must_use]
    pub fn full_bytes(&self) -> u64 {
        let default = self.journal.segment_bytes.saturating_mul(FULL_SEGMENTS);
        self.disk.full_bytes.unwrap_or(default)
    }

    /// All keys with their values, one `section.key = value` a line, as `--check-config` shows them.
    #[must_use]
    pub fn render(&self) -> String {
        let lines = KEYS
            .iter()
            .map(|key| format!("{} = {}\n", key.name, (key.show)(self)));
        lines.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(key: &str, value: &str) -> Given {
        Given {
            key: key.to_owned(),
            value: value.to_owned(),
            source: Source::Flag,
        }
    }

    #[test]
    fn later_sources_win() {
        let config = Config::merge(&[
            given("network.listen", "127.0.0.1:1"),
            given("network.listen", "127.0.0.1:2"),
        ]);
        assert_eq!(config.unwrap().network.listen, "127.0.0.1:2");
    }

    #[test]
    fn unknown_key_names_key_source_and_neighbours() {
        let error = Config::merge(&[Given {
            key: "network.lisen".into(),
            value: "x".into(),
            source: Source::File("b.toml".into()),
        }]);
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("`network.lisen`") && text.contains("`b.toml`"),
            "{text}"
        );
        assert!(text.contains("listen"), "{text}");
    }

    #[test]
    fn value_that_does_not_fit_says_what_was_expected() {
        for (key, value, expected) in [
            ("checkpoint.every_ms", "soon", "a time, such as"),
            ("checkpoint.every_bytes", "7d", "a number of bytes, such as"),
            ("checkpoint.every_bytes", "0", "more than 0"),
            ("group.heartbeat_ms", "50d", "too large"),
            ("journal.segment_bytes", "2GiB", "1MiB to 1GiB"),
            ("stop.drain_ms", "9s", "0 to 8s"),
            ("fetch.disk_threads", "two", "a whole number"),
            ("fetch.disk_threads", "0", "1 to 64"),
            ("network.insecure_listen", "yes", "`true` or `false`"),
        ] {
            let text = Config::merge(&[given(key, value)]).unwrap_err().to_string();
            assert!(
                text.contains(&format!("`{key}` = `{value}`")) && text.contains(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes_and_times_take_units_and_are_shown_with_them() {
        let given = [
            ("memory.budget_bytes", "1GiB", "1073741824"),
            ("disk.full_bytes", "700 MB", "700000000"),
            ("store.key_compaction_map_bytes", "16m", "16777216"),
            ("scrub.every_ms", "14d", "1209600000"),
            ("group.session_ms", "1m 30s", "90000"),
        ];
        let merged =
            |index: fn(&(&'static str, &'static str, &'static str)) -> (&'static str, &'static str)| {
                let given = given
                    .each_ref()
                    .map(index)
                    .map(|(key, value)| self::given(key, value));
                Config::merge(&given).unwrap()
            };
        let with_units = merged(|(key, value, _)| (key, value));
        assert_eq!(with_units, merged(|(key, _, number)| (key, number)));
        let shown = with_units.render();
        for line in [
            "memory.budget_bytes = 1GiB",
            "disk.full_bytes = 700000000",
            "scrub.every_ms = 14d",
            "group.session_ms = 90s",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
        }
    }

    #[test]
    fn default_is_written_as_it_is_shown() {
        let config = Config::merge(&[]).unwrap();
        for key in KEYS {
            assert_eq!((key.show)(&config), key.default, "{}", key.name);
        }
    }

    #[test]
    fn every_key_shows_what_was_set() {
        let config = Config::merge(&[]).unwrap();
        for key in KEYS {
            let shown = (key.show)(&config);
            let again = Config::merge(&[given(key.name, &shown)]).unwrap();
            assert_eq!(again, config, "{}", key.name);
        }
    }

    #[test]
    fn docs_name_every_key_with_its_default() {
        let docs = include_str!("../../../docs/config.md");
        for key in KEYS {
            let (_, short) = key.name.split_once('.').unwrap();
            let row = format!("| `{short}` |");
            let line = docs
                .lines()
                .find(|line| line.starts_with(&row) && line.contains(key.meaning));
            let line = line.unwrap_or_else(|| panic!("docs/config.md has no row for {}", key.name));
            assert!(
                line.contains(&format!("`{}`", key.default)) || key.default.is_empty(),
                "{line}"
            );
        }
    }

    #[test]
    fn the_reserve_of_a_full_disk_must_fit_below_its_mark() {
        let segment = given("journal.segment_bytes", "1048576");
        let low = given("disk.full_bytes", "3145727");
        let error = Config::merge(&[segment.clone(), low]).unwrap_err();
        assert!(error.to_string().contains("disk.full_bytes"), "{error}");
        assert_eq!(Config::merge(&[segment]).unwrap().full_bytes(), 8 << 20);
    }

    #[test]
    fn heartbeat_must_fit_twice_into_a_session() {
        let error = Config::merge(&[given("group.session_ms", "4000")]).unwrap_err();
        assert!(error.to_string().contains("group.session_ms"), "{error}");
    }
}
