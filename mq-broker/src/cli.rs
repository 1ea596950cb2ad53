//! The command line. It only translates flags into settings.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::{Config, Error, Given, Source, environment, file};
use crate::inspect::Output;

const EXAMPLES: &str = "\
Examples:
  mq-broker                                                   data in ./data
  mq-broker --data-dir /var/lib/hc-mq --listen 0.0.0.0:7070 \\
      --advertise broker-a.example:7070 --auth-token-file /etc/hc-mq/token
  mq-broker --registry etcd://10.0.0.1:2379,10.0.0.2:2379     register in etcd
  mq-broker --registry mq://10.0.0.1:7070,10.0.0.2:7070       register with these brokers
  mq-broker --listen 127.0.0.1:0 --http 127.0.0.1:0           free ports, printed on standard output
  mq-broker --config broker.toml --check-config               check the settings and print them all

Settings come from the TOML file, the environment (MQ__SECTION__KEY, such as MQ__NETWORK__LISTEN)
and the flags; later sources override earlier ones. Sizes and times take units: 512MiB, 7d.
Once the broker serves, it prints one line: `ready listen=<addr> http=<addr> name=<name>`.
It logs to standard error. SIGTERM stops it gracefully within 10 s.

Exit status: 0 stopped on request, 1 could not start or stop, 2 wrong usage or settings,
74 the disk failed.";

const VERIFY_EXAMPLES: &str = "\
Examples:
  mq-broker verify --data-dir /var/lib/hc-mq
  mq-broker verify --data-dir /var/lib/hc-mq --output json | jq 'select(.standing != \"ok\")'

Standings: ok, torn_tail (not known to be synced; the next start truncates it), damaged, missing,
later_version.

Exit status: 0 no damage, 1 damage found or the folder cannot be read, 2 wrong usage.";

const DUMP_EXAMPLES: &str = "\
Examples:
  mq-broker dump /var/lib/hc-mq/journal/0000000000000001.journal
  mq-broker dump /var/lib/hc-mq/journal/0000000000000002.journal --from 1200 --output json
  mq-broker dump /tmp/0000000000000002.journal --seed-from /var/lib/hc-mq/journal/0000000000000001.journal
  mq-broker dump /var/lib/hc-mq/queues/orders-17/0/queue_data.00000000000000000000
  mq-broker dump /var/lib/hc-mq/queues/orders-17/0/queue_index.00000000000000000000
  mq-broker dump /var/lib/hc-mq/state.db

Exit status: 0 done, 1 the file cannot be read, 2 wrong usage.";

const BACKUP_EXAMPLES: &str = "\
Examples:
  mq-broker backup --to /backup/monday          the broker of ./data, running or stopped
  mq-broker backup --to /backup/monday --broker 10.0.0.1:7070 --auth-token-file /etc/hc-mq/token
  mq-broker restore --from /backup/monday --data-dir /var/lib/hc-mq

A running broker keeps serving; it writes the folder itself, on its machine and as its user.
On the file system of the data folder, the backup consists of hard links (copy it to another
disk: one broken disk would take both); on any other, of copies. The folder gets its final
name only when the backup is complete.

Exit status: 0 the backup is complete, 1 no backup was made, 2 wrong usage.";

const RESTORE_EXAMPLES: &str = "\
Examples:
  mq-broker restore --from /backup/monday --data-dir /var/lib/hc-mq
  mq-broker --data-dir /var/lib/hc-mq

A broker started on the restored folder has the name of the original broker: do not run both
at the same time.

Exit status: 0 restored, 1 not restored (no broker starts on the folder), 2 wrong usage.";

/// The hc-mq message broker.
#[derive(Debug, Parser)]
#[command(name = "mq-broker", version, about, after_help = EXAMPLES)]
pub struct Cli {
    /// Settings file (TOML)
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Name of this broker [default: the one stored in the data folder, initially a random one]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Data folder, created if it is missing [default: ./data]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Address for clients; port 0 = any free port [default: 127.0.0.1:7070]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address announced to clients, required with 0.0.0.0 [default: the address of --listen]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Address of health checks and metrics over HTTP; port 0 = any free port [default: 127.0.0.1:7071]
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// Where to register: embedded, mq://a,b, etcd://host:port,.. [default: embedded]
    #[arg(long, value_name = "URL")]
    registry: Option<String>,
    /// File whose only line is the token that clients must present
    #[arg(long, visible_alias = "token-file", value_name = "FILE")]
    auth_token_file: Option<String>,
    /// Allow listening beyond loopback without a token
    #[arg(long)]
    insecure_listen: bool,
    /// Check all settings, print them, and exit
    #[arg(long)]
    pub check_config: bool,
    /// A command to run instead of the broker
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands other than serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// List the plug-ins linked into this binary: kind, name, origin
    Plugins,
    /// Check every file of a data folder and report damage; changes nothing
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify {
        /// Data folder; while its broker runs, the newest entries are not checked [default: ./data]
        #[arg(long, value_name = "FOLDER")]
        data_dir: Option<PathBuf>,
        /// A table for people, or one JSON object per file for scripts
        #[arg(long, value_enum, value_name = "FORM", default_value_t)]
        output: Output,
    },
    /// Save everything a broker holds, as it is at one moment, in a new folder
    #[command(after_help = BACKUP_EXAMPLES)]
    Backup {
        /// Folder to create, on the broker's machine
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
        /// Running broker to back up [default: the broker of --data-dir, at its address for clients]
        #[arg(long, value_name = "HOST:PORT")]
        broker: Option<String>,
        /// Data folder of the broker [default: ./data]
        #[arg(long, value_name = "FOLDER")]
        data_dir: Option<PathBuf>,
        /// File whose only line is the broker's token
        #[arg(long, visible_alias = "token-file", value_name = "FILE")]
        auth_token_file: Option<PathBuf>,
    },
    /// Create a data folder from a backup
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore {
        /// Folder of the backup
        #[arg(long, value_name = "FOLDER")]
        from: PathBuf,
        /// Data folder to create, new or empty [default: ./data]
        #[arg(long, value_name = "FOLDER")]
        data_dir: Option<PathBuf>,
    },
    /// Show the content of a journal segment, a queue file, its index or `state.db`; changes nothing
    #[command(after_help = DUMP_EXAMPLES)]
    Dump {
        /// File to show
        file: PathBuf,
        /// First entry to show of a journal segment
        #[arg(long, value_name = "LSN")]
        from: Option<u64>,
        /// Segment that precedes FILE, to read a FILE whose header is damaged [default: the one before it in
        /// its folder]
        #[arg(long, value_name = "SEGMENT")]
        seed_from: Option<PathBuf>,
        /// Lines for people, or JSON objects for scripts
        #[arg(long, value_enum, value_name = "FORM", default_value_t)]
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
