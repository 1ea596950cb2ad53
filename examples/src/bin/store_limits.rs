//! What this machine's disk can do, and what the journal makes of it: sequential writes, fdatasync after small writes
//! into a prefilled file, then the broker's journal and store without any network. Prints one JSON line per figure.
//!
//! `store_limits [--folder F] [--seconds S] [--bare]`

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use hdrhistogram::Histogram;
use mq_broker::ids::QueueKey;
use mq_broker::log::{Applier, Command, Entry, Log, PlacedRow, SegmentId, Settings, Solo, Want};
use mq_broker::store::disk::StdDisk;
use mq_broker::store::{Effects, Folder, Placement, Source, Store};
use mq_common::batch::{Batch, Builder, BuilderOptions, Record};
use mq_common::ids::{Lsn, Offset, Timestamp};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

const FILE_BYTES: usize = 64 * 1024 * 1024;

#[derive(Debug, Parser)]
#[command(about = "Measures the disk's limits and the journal beside them.")]
struct Arguments {
    /// Where to write; a folder in it is made and removed.
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    /// Seconds for each figure.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only the bare disk.
    #[arg(long)]
    bare: bool,
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
    print(&sequential(folder.path(), time)?)?;
    for bytes in [128, 1024, 65536] {
        print(&fdatasync(folder.path(), bytes, time)?)?;
    }
    if arguments.bare {
        return Ok(());
    }
    for (body, commands, want) in [
        (1024, 1, Want::Synced),
        (1024, 8, Want::Synced),
        (1024, 64, Want::Synced),
        (1024, 512, Want::Synced),
        (65536, 64, Want::Synced),
        (1024, 1, Want::Flushed),
        (1024, 64, Want::Flushed),
        (65536, 64, Want::Flushed),
    ] {
        print(&journal(folder.path(), body, commands, want, time)?)?;
    }
    Ok(())
}

/// Writes of 1 MiB into new files, each synced when it is full: what the journal is without anything of ours.
fn sequential(folder: &Path, time: Duration) -> Result<Value, Failure> {
    let block = vec![0x5a; 1024 * 1024];
    let started = Instant::now();
    let (mut bytes, mut files) = (0, 0);
    while started.elapsed() < time {
        let path = folder.join(format!("sequential-{files}"));
        let mut file = File::create(&path)?;
        for _ in 0..FILE_BYTES / block.len() {
            file.write_all(&block)?;
            bytes += block.len();
        }
        file.sync_data()?;
        files += 1;
    }
    let seconds = started.elapsed().as_secs_f64();
    // Not while measuring: writes into pages that were just freed are cheaper than the journal's can be.
    for file in 0..files {
        std::fs::remove_file(folder.join(format!("sequential-{file}")))?;
    }
    Ok(
        json!({"figure": "sequential_write", "block_bytes": block.len(), "mb_per_s": megabytes(bytes, seconds)}),
    )
}

/// One write and one fdatasync at a time, one behind the other in a file that is filled and synced before.
fn fdatasync(folder: &Path, write_bytes: usize, time: Duration) -> Result<Value, Failure> {
    let path = folder.join("fdatasync");
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&path)?;
    file.write_all_at(&vec![0; FILE_BYTES], 0)?;
    file.sync_all()?;
    let block = vec![0x5a; write_bytes];
    let mut latency = Histogram::<u64>::new(3)?;
    let started = Instant::now();
    let mut at = 0;
    while started.elapsed() < time {
        let begun = Instant::now();
        file.write_all_at(&block, at as u64)?;
        file.sync_data()?;
        latency.record(micros(begun.elapsed()))?;
        at = (at + write_bytes) % (FILE_BYTES - write_bytes);
    }
    let seconds = started.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(json!({
        "figure": "fdatasync", "write_bytes": write_bytes, "syncs_per_s": rate(latency.len(), seconds),
        "p50_us": latency.value_at_quantile(0.5), "p99_us": latency.value_at_quantile(0.99),
    }))
}

/// Turns of `commands` commands with one batch each, spread over 8 queues, through log and store.
fn journal(
    folder: &Path,
    body_bytes: usize,
    commands: u64,
    want: Want,
    time: Duration,
) -> Result<Value, Failure> {
    let data = folder.join("journal");
    let locked = Folder::open(Arc::new(StdDisk), &data)?;
    let mut applier = Placing::new(&locked);
    let settings = Settings::default();
    let mut log = Solo::open(&locked, settings, Lsn(0), Timestamp(0), &mut applier)?;
    let batch = batch(body_bytes)?;
    let meta = Bytes::from_static(&[0; 16]);
    let mut latency = Histogram::<u64>::new(3)?;
    let started = Instant::now();
    let mut done = 0;
    while started.elapsed() < time {
        let begun = Instant::now();
        for _ in 0..commands {
            let command = Command::new(meta.clone(), vec![batch.clone()]);
            Log::<Placing>::propose(&mut log, command, want)?;
        }
        let mut missing = commands;
        while missing > 0 {
            let now = Timestamp(u64::try_from(started.elapsed().as_millis())?);
            log.turn(now, &mut applier)?;
            missing -= Log::<Placing>::completions(&mut log).count() as u64;
        }
        done += commands;
        latency.record(micros(begun.elapsed()))?;
    }
    let seconds = started.elapsed().as_secs_f64();
    drop((log, applier, locked));
    std::fs::remove_dir_all(&data)?;
    Ok(json!({
        "figure": "journal", "body_bytes": body_bytes, "group": commands, "synced": want == Want::Synced,
        "commands_per_s": rate(done, seconds), "turns_per_s": rate(latency.len(), seconds),
        "mb_per_s": megabytes(usize::try_from(done)? * body_bytes, seconds),
        "p50_us": latency.value_at_quantile(0.5), "p99_us": latency.value_at_quantile(0.99),
    }))
}

fn batch(body_bytes: usize) -> Result<Batch, Failure> {
    let mut random = fastrand::Rng::with_seed(1);
    let body: Vec<u8> = (0..body_bytes).map(|_| random.u8(..)).collect();
    let mut builder = Builder::new(BuilderOptions::default());
    builder.push(&Record::new(&body, Timestamp(0)))?;
    Ok(builder.finish()?)
}

/// Places each batch in one of 8 queues.
struct Placing {
    store: Store,
    ends: [u64; 8],
    next: usize,
    placements: Vec<Placement>,
}

impl Placing {
    fn new(folder: &Arc<Folder>) -> Self {
        Self {
            store: Store::open(folder, mq_broker::store::Settings::default(), Default::default()),
            ends: [0; 8],
            next: 0,
            placements: Vec::new(),
        }
    }
}

impl Applier for Placing {
    type Result = ();

    fn apply(&mut self, entry: &Entry<'_>, results: &mut Vec<()>) {
        self.placements.clear();
        for command in entry.commands() {
            self.next = (self.next + 1) % self.ends.len();
            let queue = u32::try_from(self.next).map_or(QueueKey(0), QueueKey);
            let end = &mut self.ends[self.next];
            self.placements.push(Placement {
                queue,
                base_offset: Offset(*end),
                count: 1,
                source: Source::Here(command.first_batch),
            });
            *end += 1;
            results.push(());
        }
        let effects = Effects {
            placements: &self.placements,
            ..Effects::default()
        };
        self.store.apply(entry, &effects);
    }

    fn seal(&mut self, segment: SegmentId) -> Vec<PlacedRow> {
        let rows = self.store.seal(segment);
        // The checkpoint's part: without it what it would take piles up.
        drop(self.store.take_rows());
        rows
    }
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
