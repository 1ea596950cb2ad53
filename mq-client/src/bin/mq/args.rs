//! The command line as clap sees it: global flags, command families, and the texts of `--help`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use mq_common::units;

use crate::{bench, cluster, consume, group, produce, topic, txn};

const EXAMPLES: &str = "\
Examples:
  mq topic create orders --queues 8
  printf 'first\\nsecond\\n' | mq produce orders
  mq consume orders --group billing --count 2 --timeout 5s
  mq group describe billing
  mq --registry etcd://127.0.0.1:2379 cluster status
  mq --output json topic list

On a terminal, tables have a header and aligned columns. Otherwise they are meant for scripts: the same
columns, separated by one tab, without a header, `-` for a missing value. `--output json` prints one
object per line with stable field names.

Exit status: 0 success, 1 failure or a count not reached, 2 wrong usage.";

/// Command-line client for hc-mq brokers: topics, messages, consumer groups, transactions, benchmarks.
#[derive(Debug, Parser)]
#[command(name = "mq", version, after_help = EXAMPLES, propagate_version = true, infer_subcommands = false)]
pub(crate) struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// The command.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Brokers to contact, as host:port; one that answers suffices to discover all others.
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT[,HOST:PORT]",
        value_delimiter = ',',
        default_value = "127.0.0.1:7070",
        conflicts_with = "registry",
        help_heading = "Global options"
    )]
    pub(crate) broker: Vec<String>,
    /// Registry to discover brokers in, such as etcd://127.0.0.1:2379 or mq://a:7070,b:7070.
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    pub(crate) registry: Option<String>,
    /// Output format.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "table",
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub(crate) output: Format,
    /// File with the token that the brokers require.
    #[arg(
        long,
        global = true,
        visible_alias = "auth-token-file",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) token_file: Option<PathBuf>,
}

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns on a terminal, tab-separated otherwise.
    Table,
    /// One JSON object per line.
    Json,
}

/// The families of commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create, list, describe, alter and delete topics; export and import them.
    #[command(subcommand)]
    Topic(topic::Command),
    /// Send messages: lines of stdin or of a file, or a whole file as one message.
    Produce(produce::Arguments),
    /// Receive the messages of a topic as a member of a consumer group.
    Consume(consume::Arguments),
    /// Show consumer groups and their progress.
    #[command(subcommand)]
    Group(group::Command),
    /// List undecided transactions, and commit, roll back or resume them.
    #[command(subcommand)]
    Txn(txn::Command),
    /// Show the brokers and their state.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Measure produce, consume and end-to-end latency.
    #[command(subcommand)]
    Bench(bench::Command),
}

/// Parses a duration: `20s`, `150ms`, `2m`, `1h 30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; expected a number with a unit, as in `20s` or `150ms`"))
}

/// Parses a number of bytes: `1024`, `16KiB`, `1MB`.
pub(crate) fn byte_count(text: &str) -> Result<usize, units::Error> {
    usize::try_from(units::bytes(text)?).map_err(|_| units::Error::TooLarge)
}

/// Parses a number that is at least 1.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".to_owned()),
        parsed => parsed.map_err(|error: std::num::ParseIntError| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_that_does_something_has_an_example() {
        fn walk(command: &clap::Command) {
            let example = command
                .get_after_help()
                .is_some_and(|help| help.to_string().contains("mq "));
            assert!(
                example || command.has_subcommands(),
                "`{}` has no example",
                command.get_name()
            );
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn every_command_has_a_description() {
        fn walk(command: &clap::Command) {
            assert!(
                command.get_about().is_some(),
                "`{}` has no description",
                command.get_name()
            );
            for argument in command.get_arguments() {
                let known = ["help", "version"].contains(&argument.get_id().as_str());
                assert!(
                    known || argument.get_help().is_some(),
                    "`{}` has no help",
                    argument.get_id()
                );
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }
}
