//! The limits of this machine's disk and loopback socket, and of the journal on them: sequential writes and
//! reads, fdatasync after small writes into a prefilled file, a stream, an echo and an echo with such a sync,
//! then the broker's journal and store without any network. Prints one JSON line per figure.
//!
//! `store_limits [--folder F] [--seconds S] [--bare | --backlog]`

mod consume;
mod disk;
mod journal;
mod socket;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mq_broker::log::Want;
use serde_json::Value;

use journal::Load;

type Failure = Box<dyn std::error::Error>;

/// Payload bytes of a batch of many records.
const BATCH_BYTES: usize = 64 * 1024;
/// Bytes of the backlog for each second of a figure.
const BACKLOG_BYTES_PER_S: f64 = 128e6;

#[derive(Debug, Parser)]
#[command(about = "Measures the disk's limits and the journal beside them.")]
struct Arguments {
    /// Where to write; a folder in it is created and removed.
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    /// Seconds for each figure.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only the bare disk and socket.
    #[arg(long)]
    bare: bool,
    /// Only reading: the bare disk in sequence, then a backlog.
    #[arg(long, conflicts_with = "bare")]
    backlog: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&format!(
                "cannot measure in `{}`: {failure}",
                arguments.folder.display()
            ));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "stdout is for the result")]
fn report(failure: &str) {
    eprintln!("{failure}");
}

fn print(figure: &Value) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{figure}")
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let folder = tempfile::tempdir_in(&arguments.folder)?;
    let time = Duration::from_secs_f64(arguments.seconds);
    let backlog_bytes = whole(time.as_secs_f64() * BACKLOG_BYTES_PER_S);
    if arguments.backlog {
        print(&disk::sequential_read(folder.path(), time)?)?;
        return consume::consume(folder.path(), backlog_bytes, &mut |figure| print(&figure));
    }
    print(&disk::sequential(folder.path(), time)?)?;
    print(&disk::sequential_read(folder.path(), time)?)?;
    for bytes in [128, 1024, 65536] {
        print(&disk::fdatasync(folder.path(), bytes, time)?)?;
    }
    print(&socket::stream(time)?)?;
    print(&socket::echo(1024, time)?)?;
    print(&socket::synced_echo(folder.path(), 1024, time)?)?;
    if arguments.bare {
        return Ok(());
    }
    for load in loads() {
        print(&journal::journal(folder.path(), load, time)?)?;
    }
    consume::consume(folder.path(), backlog_bytes, &mut |figure| print(&figure))
}

/// Single messages in groups of several sizes, then batches of 64 KiB over few and many queues.
fn loads() -> Vec<Load> {
    let single = |commands, want| Load {
        record_bytes: 1024,
        records: 1,
        commands,
        queues: 8,
        want,
    };
    let mut loads: Vec<_> = [1, 8, 64, 512]
        .map(|commands| single(commands, Want::Synced))
        .into();
    loads.extend([1, 64].map(|commands| single(commands, Want::Flushed)));
    for want in [Want::Synced, Want::Flushed] {
        for record_bytes in [100, 1024] {
            for queues in [1, 10_000] {
                loads.push(Load {
                    record_bytes,
                    records: BATCH_BYTES / record_bytes,
                    commands: 64,
                    queues,
                    want,
                });
            }
        }
    }
    loads
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a size that goes with some seconds, far from both ends"
)]
const fn whole(number: f64) -> usize {
    number as usize
}

/// Drops a synced file from the page cache.
fn forget_cached(path: &Path) -> Result<(), Failure> {
    let file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn rate(count: u64, seconds: f64) -> f64 {
    (count as f64 / seconds).round()
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn megabytes(bytes: usize, seconds: f64) -> f64 {
    (bytes as f64 / seconds / 1e5).round() / 10.0
}
