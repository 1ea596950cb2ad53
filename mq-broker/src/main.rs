//! The binary `mq-broker`: settings, log, then serve until a signal or a failed disk.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use mq_broker::backup_command;
use mq_broker::broker::{Broker, StartError};
use mq_broker::cli::{Cli, Command};
use mq_broker::config::Config;
use mq_broker::{inspect, telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Could not start, or did not stop cleanly.
const EXIT_FAILED: u8 = 1;
/// Wrong usage or settings.
const EXIT_USAGE: u8 = 2;
/// The disk failed (`EX_IOERR`).
const EXIT_IO: u8 = 74;
/// A graceful stop takes at most this long.
const STOP_MAX: Duration = Duration::from_millis(9500);
/// Answers `unknown` still leave in this time after the journal failed.
const FAREWELL: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match cli.settings(std::env::vars()) {
        Ok(config) => config,
        Err(error) => return complain(&error, EXIT_USAGE),
    };
    if cli.check_config {
        return match Broker::check(&config) {
            Ok(()) => print(&config.render()),
            Err(error) => complain(&error, EXIT_USAGE),
        };
    }
    if let Some(command) = cli.command {
        return other(command, &config);
    }
    if let Err(error) = telemetry::log_to_stderr(&config.telemetry.log_filter) {
        return complain(&error, EXIT_USAGE);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, EXIT_FAILED),
    };
    let code = runtime.block_on(run(config));
    // What still blocks after everything was closed is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(200));
    code
}

fn say(done: &Result<String, backup_command::Error>) -> ExitCode {
    match done {
        Ok(text) => print(text),
        Err(error) => complain(error, EXIT_FAILED),
    }
}

/// Does something else than to serve.
fn other(command: Command, config: &Config) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, EXIT_FAILED),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let done = match command {
        Command::Plugins => {
            return match mq_broker::plugins() {
                Ok(text) => print(&text),
                Err(error) => complain(&error, EXIT_FAILED),
            };
        }
        Command::Verify { data_dir, output } => {
            let data = data_dir.unwrap_or_else(|| config.broker.data_dir.clone());
            runtime.block_on(inspect::verify(&data, output, &mut out))
        }
        Command::Backup {
            to,
            broker,
            data_dir,
            auth_token_file,
        } => {
            let mut config = config.clone();
            config.broker.data_dir = data_dir.unwrap_or(config.broker.data_dir);
            config.network.auth_token_file = auth_token_file.or(config.network.auth_token_file);
            return say(&runtime.block_on(backup_command::take(&config, &to, broker)));
        }
        Command::Restore { from, data_dir } => {
            let mut config = config.clone();
            config.broker.data_dir = data_dir.unwrap_or(config.broker.data_dir);
            return say(&backup_command::restore(&config, &from));
        }
        Command::Dump {
            file,
            from,
            seed_from,
            output,
        } => runtime
            .block_on(inspect::dump(&file, from, seed_from.as_deref(), output, &mut out))
            .map(|()| true),
    };
    let written = out.flush();
    match done {
        Ok(well) if written.is_ok() => ExitCode::from(if well { 0 } else { EXIT_FAILED }),
        Ok(_) => ExitCode::from(EXIT_FAILED),
        Err(error) => complain(&error, EXIT_FAILED),
    }
}

async fn run(config: Config) -> ExitCode {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        return complain(&"signals cannot be handled", EXIT_FAILED);
    };
    let broker = tokio::select! {
        broker = Broker::start(config) => broker,
        () = either(&mut terminate, &mut interrupt) => return ExitCode::SUCCESS,
    };
    let broker = match broker {
        Ok(broker) => broker,
        Err(error @ (StartError::Listen(_) | StartError::Registry(_))) => {
            return complain(&error, EXIT_USAGE);
        }
        Err(error) => return complain(&error, EXIT_FAILED),
    };
    let line = format!(
        "ready listen={} http={} name={}\n",
        broker.address(),
        broker.http_address(),
        broker.name()
    );
    if print(&line) != ExitCode::SUCCESS {
        tracing::warn!("nobody reads the `ready` line on standard output");
    }
    tokio::select! {
        () = broker.failed() => {
            tokio::time::sleep(FAREWELL).await;
            std::process::exit(EXIT_IO.into());
        }
        () = either(&mut terminate, &mut interrupt) => {}
    }
    tracing::info!("stopping");
    match tokio::time::timeout(STOP_MAX, broker.stop()).await {
        Ok(Ok(())) => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        Ok(Err(error @ mq_broker::broker::StopError::Journal)) => complain(&error, EXIT_IO),
        Ok(Err(error)) => complain(&error, EXIT_FAILED),
        Err(_) => complain(
            &"the stop took too long; what was acknowledged is safe",
            EXIT_FAILED,
        ),
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EXIT_FAILED),
    }
}

fn complain(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    // With standard error gone there is nobody left to tell.
    drop(writeln!(std::io::stderr(), "mq-broker: {error}"));
    ExitCode::from(code)
}
