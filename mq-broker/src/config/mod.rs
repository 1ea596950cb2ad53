//! What the broker can be told: typed settings, merged from defaults < TOML file < environment < flags.
//!
//! Not here: flags themselves (`cli.rs`). The one invariant: every key stands once, in the table of `keys.rs`, with its
//! meaning, unit and default; whatever is not in it refuses to start, naming key and source.

pub mod kept;
mod keys;
mod shares;
mod source;

use std::path::PathBuf;

pub use crate::catalog::DatabaseUrl;
pub use keys::{KEYS, Key};
pub use shares::Shares;
pub use source::{Given, Source, environment, file};

/// With fewer segments' bytes free no messages are taken, unless something else is set.
const FULL_SEGMENTS: u64 = 8;
/// It may not be set lower than this.
const RESERVE_SEGMENTS: u64 = 3;

/// All settings. Build one with [`Config::merge`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Who this broker is and where its data lies.
    pub broker: Broker,
    /// Where it listens and whom it lets in.
    pub network: Network,
    /// Where it announces itself.
    pub registry: Registry,
    /// How it keeps in step with the other brokers.
    pub cluster: Cluster,
    /// How much memory it takes.
    pub memory: Memory,
    /// The journal.
    pub journal: Journal,
    /// What is kept in memory, and what in queue files.
    pub store: Store,
    /// How it is read for consumers.
    pub fetch: Fetch,
    /// How full its disk may become.
    pub disk: Disk,
    /// Checkpoints of the state.
    pub checkpoint: Checkpoint,
    /// The catalog's database.
    pub catalog: Catalog,
    /// The scrub.
    pub scrub: Scrub,
    /// Deleting what topics let go.
    pub retention: Retention,
    /// Consumer groups.
    pub group: Group,
    /// Transactions.
    pub transaction: Transaction,
    /// How it stops.
    pub stop: Stop,
    /// What it says of itself.
    pub telemetry: Telemetry,
}

/// Section `[broker]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Broker {
    /// Its name; empty = the one in the data folder, or a random one.
    pub name: Option<mq_common::ids::ShardName>,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// Where it runs, for the registry.
    pub zone: Option<String>,
}

/// Section `[network]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// `host:port` for clients; port 0 = any free one.
    pub listen: String,
    /// `host:port` that clients are told.
    pub advertise: Option<String>,
    /// `host:port` of the HTTP server.
    pub http: String,
    /// File with the token that clients must show.
    pub auth_token_file: Option<PathBuf>,
    /// Allows to listen beyond loopback without a token.
    pub insecure_listen: bool,
    /// Requests being worked on at once, over all connections.
    pub in_flight_max: usize,
    /// A connection without traffic is closed after this many milliseconds.
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
    /// The topics of the other brokers are compared with its own every so many milliseconds.
    pub compare_ms: u64,
}

/// Section `[memory]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes for messages, requests, answers and caches, all together.
    pub budget_bytes: u64,
}

/// Section `[journal]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Journal {
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// Bytes of requests waiting for the core, of which more are refused; 0 = by the memory's budget.
    pub inbox_bytes_max: usize,
    /// An empty entry follows the last one after this many milliseconds without another.
    pub idle_entry_ms: u64,
}

/// Section `[store]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Store {
    /// Bytes of the newest batches kept in memory, all queues together; 0 = by the memory's budget.
    pub tail_bytes_max: usize,
    /// Journal from which on compaction runs; 0 = by the space there is.
    pub journal_budget_bytes: u64,
    /// Journal from which on messages are refused; 0 = twice the budget.
    pub journal_bytes_max: u64,
    /// Share of the disk's time for compaction, and for backups, while producers need it.
    pub compaction_disk_percent: u64,
    /// Queue files of which less is valid are rewritten.
    pub rewrite_valid_percent: u64,
    /// A queue is compacted by its keys when so much of its files was not yet, percent.
    pub compact_dirty_percent: u64,
    /// Bytes of memory in which that remembers keys; 0 = by the memory's budget.
    pub compact_map_bytes: usize,
    /// Tombstones stay for this long, milliseconds.
    pub tombstone_ms: u64,
}

/// Section `[fetch]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fetch {
    /// Reads that wait for the disk at once.
    pub disk_threads: usize,
    /// The share of the time in which they read while producers send, all of them together, percent.
    pub disk_share_percent: u64,
    /// What cannot be read from the disk is an error to consumers for so many milliseconds, then a hole.
    pub unreadable_ms: u64,
}

/// Section `[disk]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// With fewer bytes free no messages are taken; `None` = eight journal segments.
    pub full_bytes: Option<u64>,
    /// The same in percent of the disk; the larger of the two counts.
    pub full_percent: u8,
    /// The free space is looked at every so many milliseconds.
    pub check_ms: u64,
}

/// Section `[checkpoint]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// A checkpoint after this many bytes of journal ..
    pub every_bytes: u64,
    /// .. or this many milliseconds after a change.
    pub every_ms: u64,
}

/// Section `[catalog]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// The PostgreSQL database that gets the catalog's tables too.
    pub url: Option<DatabaseUrl>,
    /// Time-out of a statement there, milliseconds.
    pub timeout_ms: u64,
    /// It is compared with the checkpoint every so many milliseconds.
    pub check_ms: u64,
}

/// Section `[scrub]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrub {
    /// What is stored is read again at this rate, bytes a second; 0 = never.
    pub bytes_per_s: u64,
    /// A pass begins this many milliseconds after the last one; 0 = never.
    pub every_ms: u64,
}

/// Section `[retention]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// It is looked every so many milliseconds which messages their topics let go.
    pub check_ms: u64,
}

/// Section `[group]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Members send a heartbeat every so many milliseconds.
    pub heartbeat_ms: u32,
    /// Without one for this long a member is taken to be dead, milliseconds.
    pub session_ms: u32,
    /// Acks are gathered for this long into one command, milliseconds.
    pub ack_merge_ms: u64,
}

/// Section `[transaction]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// First question to the producers after this many milliseconds.
    pub check_first_ms: u32,
    /// Second one this much later; each further one after twice the time before.
    pub check_again_ms: u32,
    /// The longest time between two questions, milliseconds.
    pub check_interval_ms_max: u32,
}

/// Section `[stop]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stop {
    /// Requests being worked on may end within this many milliseconds.
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
        /// What is known.
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
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// The file is not TOML of the expected shape.
    #[error("configuration file `{path}`: {reason}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Line and what was expected.
        reason: String,
    },
    /// Two settings do not go together.
    #[error("{0}")]
    Conflict(String),
}

impl Config {
    /// The defaults, overlaid by `given`, later ones winning.
    ///
    /// # Errors
    /// An unknown key, a value that does not fit, or settings that do not go together.
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
                self.group.session_ms, self.group.heartbeat_ms
            ));
        }
        let (budget, max) = (self.store.journal_budget_bytes, self.store.journal_bytes_max);
        if max > 0 && (budget == 0 || max < budget) {
            return conflict(format!(
                "`store.journal_bytes_max` = {max} needs a `store.journal_budget_bytes` of at most as much, it is {budget}"
            ));
        }
        self.check_shares().or_else(conflict)?;
        let reserve = self.journal.segment_bytes.saturating_mul(RESERVE_SEGMENTS);
        if self.full_bytes() < reserve {
            return conflict(format!(
                "`disk.full_bytes` = {} is less than {RESERVE_SEGMENTS} times `journal.segment_bytes` = {}: two segments are \
                 the reserve of a full disk, and checkpoints need space too",
                self.full_bytes(),
                self.journal.segment_bytes
            ));
        }
        if self.transaction.check_again_ms > self.transaction.check_interval_ms_max {
            return conflict(format!(
                "`transaction.check_again_ms` = {} is above `transaction.check_interval_ms_max` = {}",
                self.transaction.check_again_ms, self.transaction.check_interval_ms_max
            ));
        }
        Ok(())
    }

    /// Bytes below which no messages are taken.
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
        let text = Config::merge(&[given("checkpoint.every_ms", "soon")])
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("checkpoint.every_ms") && text.contains("`soon`"),
            "{text}"
        );
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
