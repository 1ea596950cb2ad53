//! `mq`: the command line tool. Here only: arguments, the runtime, and how the process ends.

mod args;
mod bench;
mod cluster;
mod connect;
mod consume;
mod fail;
mod group;
mod output;
mod produce;
mod topic;
mod txn;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};
use fail::{Failure, Outcome};
use output::{Output, remark};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Quiet unless asked: what matters to the person is said by the command itself.
    let filter = EnvFilter::try_from_env("MQ_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("no runtime: {error}")))
        .and_then(|runtime| {
            // On a worker, where what a command wakes runs next: this thread would have to be woken by one.
            let running = runtime.spawn(run(cli));
            runtime
                .block_on(running)
                .unwrap_or_else(|error| Err(Failure::new(format!("the command panicked: {error}"))))
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                remark(&format!("mq: {text}"));
            }
            ExitCode::from(failure.exit_status())
        }
    }
}

async fn run(cli: Cli) -> Outcome {
    let mut output = Output::new(cli.global.output);
    let client = connect::connect(&cli.global).await?;
    let outcome = match cli.command {
        Command::Topic(command) => topic::run(command, &client, &mut output).await,
        Command::Produce(arguments) => produce::run(arguments, &client, &mut output).await,
        Command::Consume(arguments) => consume::run(arguments, &client, &mut output).await,
        Command::Group(command) => group::run(command, &client, &mut output).await,
        Command::Txn(command) => txn::run(command, &client, &mut output).await,
        Command::Cluster(command) => cluster::run(command, &client, &mut output).await,
        Command::Bench(command) => bench::run(command, &client, &mut output).await,
    };
    client.shutdown().await;
    outcome
}
