//! Power cuts under a real file system and a real broker: `cargo xtask power-cut` (as root, on Linux).
//!
//! The broker works on an ext4 file system whose disk logs every write and flush (`tests/shim/blklog.c`).
//! Afterwards disks are built as the cut of the power at random moments would have left them: everything up
//! to the last flush, and a random half of the sectors written since. On each the file system recovers, the
//! broker recovers, and is compared with the ledger of what had been answered until then. Load, ledger and
//! comparison are those of the tests that kill.
//!
//! With `--ignore-syncs` the broker runs with syncs that do nothing: that run must find losses, else the
//! check is none.

#![expect(clippy::unwrap_used, reason = "a run that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "its result")]

mod audit;
mod machine;
#[expect(dead_code, reason = "shared with the tests in `it`")]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use fastrand::Rng;

use audit::Audit;
use machine::{Log, Machine, Mounted, image};
use support::mixed::{Ledger, Load, TOMBSTONE_MS, now};
use support::{BrokerProcess, Client, Options};

/// Cuts the power of a broker at random moments and checks what is left.
#[derive(Debug, Parser)]
struct Arguments {
    /// The broker's binary.
    #[arg(long)]
    broker: PathBuf,
    /// Cuts of the power.
    #[arg(long, default_value_t = 100)]
    cuts: usize,
    /// Seconds of work.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Begins the random choices; a random one by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Settings of the broker beside those of the run, as `section.key=value`.
    #[arg(long = "set")]
    settings: Vec<String>,
    /// The broker's syncs do nothing: losses are expected, and none is a failure.
    #[arg(long)]
    ignore_syncs: bool,
}

/// Small segments, few batches in memory; checkpoints, rounds of compaction, passes over keys, trims and
/// rewrites of queue files all the time.
fn options(arguments: &Arguments) -> Options {
    let mut options = Options::default()
        .binary(arguments.broker.to_str().unwrap())
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576")
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
        .variable("MQ__JOURNAL__BUDGET_BYTES", "4194304")
        .variable("MQ__JOURNAL__BYTES_MAX", "67108864")
        .variable("MQ__STORE__COMPACTION_DISK_PERCENT", "100")
        .variable("MQ__STORE__REWRITE_VALID_PERCENT", "90")
        .variable("MQ__STORE__KEY_COMPACTION_DIRTY_PERCENT", "1")
        .variable("MQ__STORE__KEY_COMPACTION_MAP_BYTES", "800")
        .variable("MQ__STORE__TOMBSTONE_MS", TOMBSTONE_MS.to_string())
        .variable("MQ__CHECKPOINT__EVERY_MS", "100")
        .variable("MQ__RETENTION__CHECK_MS", "20")
        .variable("MQ__TRANSACTION__CHECK_AGAIN_MS", "50")
        .variable("MQ__TELEMETRY__LOG_FILTER", "error");
    for setting in &arguments.settings {
        let (name, value) = setting.split_once('=').expect("--set section.key=value");
        let name = format!("MQ__{}", name.to_uppercase().replace('.', "__"));
        options = options.variable(&name, value);
    }
    options
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let mut random = Rng::with_seed(seed);
    let mut machine = Machine::start(128 << 20);
    let mut preloaded = options(&arguments);
    if arguments.ignore_syncs {
        let library = machine.build("ignore_sync.c", "ignore_sync.so", &["-shared", "-fPIC"]);
        preloaded = preloaded.variable("LD_PRELOAD", library.to_str().unwrap());
    }
    let started = now();
    let broker = BrokerProcess::start_with(&machine.data(), &preloaded);
    let ledger = work(&broker, Duration::from_secs(arguments.seconds), seed).await;
    let [rounds, passes, removed, compacted, trimmed] = [
        "compaction_rounds",
        "key_compaction_passes",
        "queue_files_removed",
        "key_compaction_messages",
        "trimmed_records",
    ]
    .map(|name| metric(&broker, &format!("hc_mq_{name}_total ")));
    broker.kill();
    let log = machine.stop();
    let deleted = ledger.topics.iter().filter(|topic| topic.deletion.is_some());
    println!(
        "{} messages, {} transactions and {} topics acknowledged, {} of these deleted again; {rounds} rounds of compaction, \
         {passes} passes over keys, {removed} queue files removed, {trimmed} messages let go, {compacted} for later ones of \
         their keys; {} writes and {} flushes of the disk",
        ledger.acknowledged,
        ledger.transactions.len(),
        ledger.topics.len(),
        deleted.count(),
        log.writes(),
        log.flushes()
    );
    let moments = moments(&log, started, arguments.cuts, &mut random);
    let mut lossy = 0;
    let checking = Instant::now();
    let mut disk = image::Disk::new(&log);
    let audit = Audit {
        ledger: &ledger,
        // Nothing is let go while it is looked at, but for later messages of a key.
        options: options(&arguments)
            .variable("MQ__RETENTION__CHECK_MS", "3600000")
            .variable("MQ__STORE__TOMBSTONE_MS", "86400000"),
    };
    for (number, moment) in moments.iter().enumerate() {
        let file = disk.cut_at(*moment, &mut random, machine.folder());
        let at = log.records[*moment].at;
        let outcome = match Mounted::new(&file, &machine.folder().join("crashed")) {
            Ok(mounted) => audit.run(&mounted.path().join("data"), at).await,
            Err(reason) => Err(format!("the file system does not come back: {reason}")),
        };
        if let Err(reason) = outcome {
            lossy += 1;
            println!("cut {number}, after {moment} operations of the disk: {reason}");
        }
    }
    println!(
        "{} cuts of the power, {lossy} with losses, {:?}",
        moments.len(),
        checking.elapsed()
    );
    if (lossy > 0) == arguments.ignore_syncs && !moments.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Everything at once, for so long.
async fn work(broker: &BrokerProcess, time: Duration, seed: u64) -> Ledger {
    let client = Client::connect(broker).await;
    let ledger: Arc<Mutex<Ledger>> = Arc::default();
    let load = Load::new(&client, &ledger, time);
    load.declare().await;
    load.start(seed).join_all().await;
    let ledger = ledger.lock().unwrap();
    ledger.clone()
}

fn metric(broker: &BrokerProcess, name: &str) -> String {
    let (_, text) = broker.get("/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or("no").to_owned()
}

/// Operations of the disk after which the power is cut, in order: from the broker's first start on.
fn moments(log: &Log, begun: u64, cuts: usize, random: &mut Rng) -> Vec<usize> {
    let first = log.records.partition_point(|record| record.at < begun);
    assert!(first + 100 < log.records.len(), "the work was no work");
    let mut moments: Vec<usize> = (0..cuts)
        .map(|_| random.usize(first..log.records.len()))
        .collect();
    moments.sort_unstable();
    moments
}
