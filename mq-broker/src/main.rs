//! The binary `mq-broker`: settings, log, then [`mq_broker::cli`]'s command.

use std::process::ExitCode;

use clap::Parser as _;
use mq_broker::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    drop(cli);
    ExitCode::SUCCESS
}
