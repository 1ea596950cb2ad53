//! The command line: flags become settings; nothing else is decided here.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::{Config, Error, Given, Source, environment, file};
use crate::inspect::Output;

const EXAMPLES: &str = "\
Examples:
  mq-broker                                                   one broker on this machine, data in ./data
  mq-broker --data-dir /var/lib/hc-mq --listen 0.0.0.0:7070 \\
      --advertise broker-a.example:7070 --auth-token-file /etc/hc-mq/token
  mq-broker --registry etcd://10.0.0.1:2379,10.0.0.2:2379     register in etcd
  mq-broker --registry mq://10.0.0.1:7070,10.0.0.2:7070       register at these brokers
  mq-broker --listen 127.0.0.1:0 --http 127.0.0.1:0           free ports, named on standard output
  mq-broker --config broker.toml --check-config               check the settings and show them all

Settings: the TOML file < environment (MQ__SECTION__KEY, as in MQ__NETWORK__LISTEN) < flags.
When it serves, one line goes to standard output: `ready listen=<addr> http=<addr> name=<name>`.
Logs go to standard error. SIGTERM stops gracefully within 10 s.
Exit codes: 0 stopped as asked, 1 could not start, 2 wrong usage or settings, 74 the disk failed.";

const VERIFY_EXAMPLES: &str = "\
Examples:
  mq-broker verify --data-dir /var/lib/hc-mq
  mq-broker verify --data-dir /var/lib/hc-mq --output json | jq 'select(.standing != \"ok\")'

Standings: ok, torn_tail (not known to be synced, the next start cuts it off), damaged, missing, later_version.
Exit codes: 0 all is well, 1 damage found or the folder cannot be read, 2 wrong usage.";

const DUMP_EXAMPLES: &str = "\
Examples:
  mq-broker dump /var/lib/hc-mq/journal/0000000000000001.journal
  mq-broker dump /var/lib/hc-mq/journal/0000000000000002.journal --from 1200 --output json
  mq-broker dump /tmp/0000000000000002.journal --seed-from /var/lib/hc-mq/journal/0000000000000001.journal
  mq-broker dump /var/lib/hc-mq/queues/orders-17/0/queue_data.00000000000000000000
  mq-broker dump /var/lib/hc-mq/queues/orders-17/0/queue_index.00000000000000000000
  mq-broker dump /var/lib/hc-mq/state.db";

const BACKUP_EXAMPLES: &str = "\
Examples:
  mq-broker backup --to /backup/monday          the broker of ./data, whether it runs or not
  mq-broker backup --to /backup/monday --broker 10.0.0.1:7070 --auth-token-file /etc/hc-mq/token
  mq-broker restore --from /backup/monday --data-dir /var/lib/hc-mq

A running broker goes on; the folder is written on its machine, by its user. On the file
system of the data its files are linked (copy them elsewhere: one broken disk has both),
onto another one they are copied. Once there is a folder of that name, it is whole.
Exit codes: 0 the backup is whole, 1 there is none, 2 wrong usage.";

const RESTORE_EXAMPLES: &str = "\
Examples:
  mq-broker restore --from /backup/monday --data-dir /var/lib/hc-mq
  mq-broker --data-dir /var/lib/hc-mq

The broker that starts there has the backup's name: do not run it beside the one that the
backup was taken of.
Exit codes: 0 all is restored, 1 it is not (then no broker starts on the folder), 2 wrong usage.";

/// The hc-mq message broker.
#[derive(Debug, Parser)]
#[command(name = "mq-broker", version, about, after_help = EXAMPLES)]
pub struct Cli {
    /// Settings file (TOML)
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Name of this broker [default: the one kept in the data folder, at first a random one]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Data folder, made if missing [default: ./data]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Where clients connect; port 0 = any free one [default: 127.0.0.1:7070]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address that clients are told, needed with 0.0.0.0 [default: where it listens]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Health and metrics over HTTP; port 0 = any free one [default: 127.0.0.1:7071]
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// Where to register: embedded, mq://a,b, etcd://host:port,.. [default: embedded]
    #[arg(long, value_name = "URL")]
    registry: Option<String>,
    /// File whose one line is the token that clients must show
    #[arg(long, value_name = "FILE")]
    auth_token_file: Option<String>,
    /// Allow listening beyond loopback without a token
    #[arg(long)]
    insecure_listen: bool,
    /// Check all settings, print them, and exit
    #[arg(long)]
    pub check_config: bool,
    /// Something else than to serve
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What can be done besides serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// List the plug-ins linked into this binary: kind, name, origin
    Plugins,
    /// Check every file of a data folder, and name what does not hold. Changes nothing; exit code 1 = damage
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify {
        /// Data folder of a stopped broker; beside a running one its newest entries are not judged [default: ./data]
        #[arg(long, value_name = "FOLDER")]
        data_dir: Option<PathBuf>,
        /// A table for people, or one JSON object a file for scripts
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Save everything a broker holds, as of one moment, in a new folder
    #[command(after_help = BACKUP_EXAMPLES)]
    Backup {
        /// Folder to make, on the broker's machine
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
        /// Ask this running broker [default: the one of --data-dir, where it listens]
        #[arg(long, value_name = "HOST:PORT")]
        broker: Option<String>,
        /// Data folder of the broker [default: ./data]
        #[arg(long, value_name = "FOLDER")]
        data_dir: Option<PathBuf>,
        /// File whose one line is the broker's token
        #[arg(long, value_name = "FILE")]
        auth_token_file: Option<PathBuf>,
    },
    /// Make a new data folder of a backup
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore {
        /// Folder of the backup
        #[arg(long, value_name = "FOLDER")]
        from: PathBuf,
        /// Data folder to make, new or empty [default: ./data]
        #[arg(long, value_name = "FOLDER")]
        data_dir: Option<PathBuf>,
    },
    /// Show what a journal segment, a queue file, its index or `state.db` holds. Changes nothing
    #[command(after_help = DUMP_EXAMPLES)]
    Dump {
        /// The file
        file: PathBuf,
        /// Of a journal segment only the entries from this one on
        #[arg(long, value_name = "LSN")]
        from: Option<u64>,
        /// Read a segment whose header is damaged as what follows on this one [default: the one before it in its folder]
        #[arg(long, value_name = "SEGMENT")]
        seed_from: Option<PathBuf>,
        /// Lines for people, or JSON objects for scripts
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

impl Cli {
    /// The settings from all sources.
    ///
    /// # Errors
    /// See [`Config::merge`].
    pub fn settings(&self, variables: impl IntoIterator<Item = (String, String)>) -> Result<Config, Error> {
        let mut given = match &self.config {
            Some(path) => file(path)?,
            None => Vec::new(),
        };
        given.extend(environment(variables));
        given.extend(self.flags());
        Config::merge(&given)
    }

    fn flags(&self) -> Vec<Given> {
        let insecure = self.insecure_listen.then(|| "true".to_owned());
        let flags = [
            ("broker.name", &self.name),
            ("broker.data_dir", &self.data_dir),
            ("network.listen", &self.listen),
            ("network.advertise", &self.advertise),
            ("network.http", &self.http),
            ("registry.url", &self.registry),
            ("network.auth_token_file", &self.auth_token_file),
            ("network.insecure_listen", &insecure),
        ];
        let given = flags.into_iter().filter_map(|(key, value)| {
            Some(Given {
                key: key.to_owned(),
                value: value.clone()?,
                source: Source::Flag,
            })
        });
        given.collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_win_over_the_environment() {
        let cli = Cli::parse_from(["mq-broker", "--listen", "127.0.0.1:0"]);
        let config = cli.settings([("MQ__NETWORK__LISTEN".to_owned(), "127.0.0.1:9".to_owned())]);
        assert_eq!(config.unwrap().network.listen, "127.0.0.1:0");
    }

    #[test]
    fn unknown_variable_refuses() {
        let cli = Cli::parse_from(["mq-broker"]);
        let error = cli.settings([("MQ__NETWORK__LISEN".to_owned(), "x".to_owned())]);
        assert!(error.unwrap_err().to_string().contains("MQ__NETWORK__LISEN"));
    }

    #[test]
    fn help_names_every_contract_flag() {
        let help = Cli::command().render_long_help().to_string();
        for flag in [
            "--config",
            "--name",
            "--data-dir",
            "--listen",
            "--advertise",
            "--http",
            "--registry",
        ] {
            assert!(help.contains(flag), "{flag}");
        }
        for flag in [
            "--auth-token-file",
            "--insecure-listen",
            "--check-config",
            "plugins",
            "Examples:",
        ] {
            assert!(help.contains(flag), "{flag}");
        }
    }
}
