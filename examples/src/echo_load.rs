//! The load of the echo benches, the same for every peer: closed loops over a call, a histogram per thread,
//! processor time of both processes. The peers' own workspace includes this very file, so it uses only std,
//! clap, serde_json and tokio.
//!
//! The measurement must cost little, and the same for all: two clock reads and one relaxed increment per
//! call.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::future::Future;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Which tokio runtime a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuntimeKind {
    /// Set-up D: the runtime of `#[tokio::main]`, one worker per core.
    Default,
    /// Set-up C: everything on one thread.
    Current,
}

impl RuntimeKind {
    /// The runtime.
    ///
    /// # Errors
    /// The system has no threads or descriptors left.
    pub fn build(self) -> std::io::Result<Runtime> {
        match self {
            Self::Default => Builder::new_multi_thread().enable_all().build(),
            Self::Current => Builder::new_current_thread().enable_all().build(),
        }
    }
}

/// Arguments of an echo server.
#[derive(Debug, Clone, Args)]
pub struct ServerArguments {
    /// Where to listen; the address is printed as `ready listen=ADDRESS`.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Which runtime.
    #[arg(long, value_enum, default_value = "default")]
    pub runtime: RuntimeKind,
    /// Count allocations; when stdin ends, print them and exit.
    #[arg(long)]
    pub detail: bool,
}

/// Arguments of an echo client.
#[derive(Debug, Clone, Args)]
pub struct ClientArguments {
    /// The server's address.
    #[arg(long)]
    pub server: SocketAddr,
    /// Which runtime.
    #[arg(long, value_enum, default_value = "default")]
    pub runtime: RuntimeKind,
    /// Bytes echoed.
    #[arg(long, default_value_t = 128)]
    pub payload: usize,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Calls in flight on each connection.
    #[arg(long, default_value_t = 64)]
    pub in_flight: usize,
    /// Seconds measured.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Seconds before the measurement.
    #[arg(long, default_value_t = 0.5)]
    pub warmup_seconds: f64,
    /// The server's process, for its processor time.
    #[arg(long)]
    pub server_pid: u32,
    /// Count allocations, which costs a little.
    #[arg(long)]
    pub detail: bool,
}

/// The system's allocator, which counts while asked to: each bench program installs it.
#[derive(Debug, Clone, Copy)]
pub struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

impl Counting {
    fn start() {
        COUNTS.store(true, Ordering::Relaxed);
    }

    fn so_far() -> u64 {
        ALLOCATIONS.load(Ordering::Relaxed)
    }

    fn note() {
        if COUNTS.load(Ordering::Relaxed) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[allow(
    unsafe_code,
    reason = "the only way to see allocations; bench programs alone use it"
)]
// SAFETY: every method passes its arguments to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note();
        // SAFETY: the caller's guarantee is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::note();
        // SAFETY: the caller's guarantee is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        Self::note();
        // SAFETY: the caller's guarantee is passed on.
        unsafe { System.realloc(memory, layout, bytes) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's guarantee is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Prints where the server listens, for the program that started it. With `--detail` a thread waits for the
/// end of stdin, prints the counts and ends the process.
#[expect(
    clippy::print_stdout,
    reason = "the lines are the contract with the program that starts the server"
)]
pub fn announce(arguments: &ServerArguments, listen: SocketAddr) {
    println!("ready listen={listen}");
    if arguments.detail {
        Counting::start();
        std::thread::spawn(|| {
            // Whatever ended it, this server is no longer wanted.
            drop(std::io::stdin().read_to_end(&mut Vec::new()));
            println!("{}", serde_json::json!({ "allocations": Counting::so_far() }));
            std::process::exit(0);
        });
    }
}

/// `bytes` bytes without a pattern.
#[must_use]
pub fn payload(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    (0..bytes).map(|_| next()).collect()
}

/// State shared by the loops.
#[derive(Debug, Default)]
pub struct Load {
    recording: AtomicBool,
    stopped: AtomicBool,
    stop: Notify,
    errors: AtomicU64,
}

impl Load {
    /// Repeats `call`, one at a time, until the measurement is over; `call` returns whether it succeeded.
    pub async fn closed_loop<F, Fut>(self: Arc<Self>, mut call: F)
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = bool>,
    {
        let mut started = Instant::now();
        while !self.stopped.load(Ordering::Relaxed) {
            let succeeded = call().await;
            let now = Instant::now();
            if self.recording.load(Ordering::Relaxed) {
                record(now - started);
                if !succeeded {
                    self.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
            started = now;
        }
    }
}

/// Runs one measurement and prints it as one JSON line: `start` connects, spawns its loops and returns them.
///
/// # Errors
/// In words: no runtime or connection could be created, or no call succeeded.
pub fn run<F, Fut>(arguments: &ClientArguments, start: F) -> Result<(), String>
where
    F: FnOnce(ClientArguments, Arc<Load>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<JoinSet<()>, String>>,
{
    let load = Arc::new(Load::default());
    let (ready, started) = mpsc::sync_channel(1);
    let worker = {
        let (arguments, load) = (arguments.clone(), Arc::clone(&load));
        std::thread::spawn(move || work(arguments, &load, start, &ready))
    };
    let pause = |seconds: f64| {
        // Nothing is sent a second time: this waits for the time, or for the worker's end.
        drop(started.recv_timeout(Duration::from_secs_f64(seconds)));
    };
    match started.recv_timeout(Duration::from_secs(20)) {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => return Err(reason),
        Err(_) => return Err("not connected within 20 s".to_owned()),
    }
    if arguments.detail {
        Counting::start();
    }
    pause(arguments.warmup_seconds);
    let processor = || (cpu_seconds(std::process::id()), cpu_seconds(arguments.server_pid));
    let (before, begun, allocations) = (processor(), Instant::now(), Counting::so_far());
    load.recording.store(true, Ordering::Relaxed);
    pause(arguments.seconds);
    load.recording.store(false, Ordering::Relaxed);
    let (elapsed, after) = (begun.elapsed().as_secs_f64(), processor());
    let allocations = Counting::so_far() - allocations;
    load.stopped.store(true, Ordering::Relaxed);
    load.stop.notify_one();
    let summary = Summary::of_all_threads();
    if worker.join().is_err() {
        return Err("the client panicked".to_owned());
    }
    print(&serde_json::json!({
        "calls": summary.calls,
        "calls_per_s": (summary.calls as f64 / elapsed).round(),
        "p50_us": summary.quantile_us(0.5),
        "p99_us": summary.quantile_us(0.99),
        "client_cpu_s": after.0 - before.0,
        "server_cpu_s": after.1 - before.1,
        "allocations": allocations,
        "errors": load.errors.load(Ordering::Relaxed),
    }));
    if summary.calls == 0 {
        Err("no call was answered".to_owned())
    } else {
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "the line is the result")]
fn print(line: &serde_json::Value) {
    println!("{line}");
}

fn work<F, Fut>(
    arguments: ClientArguments,
    load: &Arc<Load>,
    start: F,
    ready: &mpsc::SyncSender<Result<(), String>>,
) where
    F: FnOnce(ClientArguments, Arc<Load>) -> Fut,
    Fut: Future<Output = Result<JoinSet<()>, String>>,
{
    let tell = |outcome| {
        // The other side may have given up waiting; then there is nobody to notify.
        drop(ready.send(outcome));
    };
    let runtime = match arguments.runtime.build() {
        Ok(runtime) => runtime,
        Err(error) => return tell(Err(error.to_string())),
    };
    runtime.block_on(async {
        match start(arguments, Arc::clone(load)).await {
            Ok(mut loops) => {
                tell(Ok(()));
                load.stop.notified().await;
                loops.shutdown().await;
            }
            Err(reason) => tell(Err(reason)),
        }
    });
}

/// Processor seconds used by a process: user and system, in hundredths (USER_HZ is 100 on Linux).
fn cpu_seconds(process: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = behind_name.split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Buckets per power of two: an error of at most 1.6 %.
const PER_POWER: usize = 64;
const BUCKETS: usize = 40 * PER_POWER;

type Histogram = Arc<Vec<AtomicU64>>;

fn histograms() -> &'static Mutex<Vec<Histogram>> {
    static ALL: OnceLock<Mutex<Vec<Histogram>>> = OnceLock::new();
    ALL.get_or_init(Mutex::default)
}

thread_local! {
    static OWN: Histogram = {
        let own: Histogram = Arc::new((0..BUCKETS).map(|_| AtomicU64::new(0)).collect());
        histograms().lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&own));
        own
    };
}

fn record(elapsed: Duration) {
    let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
    OWN.with(|own| own[bucket(nanoseconds)].fetch_add(1, Ordering::Relaxed));
}

fn bucket(nanoseconds: u64) -> usize {
    let value = nanoseconds.max(PER_POWER as u64);
    let power = value.ilog2();
    let within = usize::try_from(value >> (power - 6)).unwrap_or(0) & (PER_POWER - 1);
    ((power as usize - 6) * PER_POWER + within).min(BUCKETS - 1)
}

/// The middle of a bucket, in microseconds.
fn middle_us(bucket: usize) -> f64 {
    let (power, within) = (bucket / PER_POWER, bucket % PER_POWER);
    ((PER_POWER + within) as f64 + 0.5) * 2_f64.powi(i32::try_from(power).unwrap_or(0)) / 1000.0
}

struct Summary {
    counts: Vec<u64>,
    calls: u64,
}

impl Summary {
    fn of_all_threads() -> Self {
        let mut counts = vec![0; BUCKETS];
        for histogram in histograms().lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for (sum, count) in counts.iter_mut().zip(histogram.iter()) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        let calls = counts.iter().sum();
        Self { counts, calls }
    }

    fn quantile_us(&self, quantile: f64) -> f64 {
        let wanted = self.calls as f64 * quantile;
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen as f64 >= wanted && seen > 0
        });
        (middle_us(found.unwrap_or(0)) * 10.0).round() / 10.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_within_two_percent() {
        for nanoseconds in [100_u64, 1_000, 12_345, 999_999, 50_000_000] {
            let middle = middle_us(bucket(nanoseconds)) * 1000.0;
            let error = (middle - nanoseconds as f64).abs() / nanoseconds as f64;
            assert!(error < 0.02, "{nanoseconds} ns became {middle} ns");
        }
    }

    #[test]
    fn quantiles_come_from_all_calls() {
        let mut counts = vec![0; BUCKETS];
        counts[bucket(10_000)] = 99;
        counts[bucket(5_000_000)] = 1;
        let summary = Summary { counts, calls: 100 };
        assert!((summary.quantile_us(0.5) - 10.0).abs() < 0.3);
        assert!((summary.quantile_us(0.999) - 5000.0).abs() < 100.0);
    }

    #[test]
    fn the_own_process_uses_processor_time() {
        let started = Instant::now();
        let mut sum = 0_u64;
        while started.elapsed() < Duration::from_millis(50) {
            sum = sum.wrapping_add(1);
        }
        assert!(cpu_seconds(std::process::id()) > 0.0, "{sum}");
    }
}
