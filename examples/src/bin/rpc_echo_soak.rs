//! Calls an echo server for a long time in every way that a call can end (answers, time-outs, cancels,
//! dropped futures, oneway calls, dropped connections) and watches the memory of both processes:
//! `rpc_echo_soak --server HOST:PORT --server-pid PID --seconds S`. Prints one JSON line.

use std::collections::BTreeMap;
use std::future::IntoFuture as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use examples::echo::EchoClient;
use rpc_core::error::Code;
use rpc_core::{Attachment, CallError, Invoker};
use tokio::task::JoinSet;

/// Connections, each with loops of its own.
const CONNECTIONS: usize = 4;
const LOOPS: usize = 16;
/// Memory is first measured after this part of the time, when all pools have reached their sizes.
const SETTLED: f64 = 0.1;

#[derive(Debug, Clone, Parser)]
#[command(about = "Strains an echo server, for `cargo xtask bench rpc --soak DURATION`.")]
struct Arguments {
    /// The server's address.
    #[arg(long)]
    server: SocketAddr,
    /// The server's process, for its memory.
    #[arg(long)]
    server_pid: u32,
    /// Duration.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
}

/// Outcomes of the calls.
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicU64,
    timed_out: AtomicU64,
    given_up: AtomicU64,
    oneway: AtomicU64,
    /// Ended because their own connection was dropped on purpose.
    cut_off: AtomicU64,
    /// Answered with the wrong bytes.
    wrong: AtomicU64,
    failed: Mutex<BTreeMap<String, u64>>,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let tally = Arc::new(Tally::default());
    let begun = Instant::now();
    let part =
        |part: f64| tokio::time::Instant::from_std(begun + Duration::from_secs_f64(arguments.seconds * part));
    let mut connections = JoinSet::new();
    for _ in 0..CONNECTIONS {
        connections.spawn(connection(arguments.clone(), Arc::clone(&tally)));
    }
    tokio::time::sleep_until(part(SETTLED)).await;
    let memory = || [resident_mb(std::process::id()), resident_mb(arguments.server_pid)];
    let settled = memory();
    tokio::time::sleep_until(part(1.0)).await;
    let end = memory();
    connections.shutdown().await;
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let failed = tally
        .failed
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    print(&serde_json::json!({
        "seconds": arguments.seconds,
        "answered": read(&tally.answered),
        "timed_out": read(&tally.timed_out),
        "given_up": read(&tally.given_up),
        "oneway": read(&tally.oneway),
        "cut_off": read(&tally.cut_off),
        "wrong": read(&tally.wrong),
        "failed": failed,
        "client_rss_mb_settled": settled[0],
        "client_rss_mb_end": end[0],
        "server_rss_mb_settled": settled[1],
        "server_rss_mb_end": end[1],
    }));
}

#[expect(clippy::print_stdout, reason = "the line is the result")]
fn print(line: &serde_json::Value) {
    println!("{line}");
}

/// Megabytes of memory that a process holds.
fn resident_mb(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    (kilobytes.unwrap_or(0.0) * 1.024 / 100.0).round() / 10.0
}

/// One connection after the other, each dropped with its calls in flight after a few seconds.
async fn connection(arguments: Arguments, tally: Arc<Tally>) {
    loop {
        let built = Invoker::builder()
            .direct([arguments.server.to_string()])
            .timeout(Duration::from_secs(10))
            .build()
            .await;
        let invoker = match built {
            Ok(invoker) => invoker,
            Err(error) => return tally.fail(&error.to_string()),
        };
        let client = EchoClient::refer(&invoker);
        let mut loops = JoinSet::new();
        for _ in 0..LOOPS {
            let (client, tally) = (client.clone(), Arc::clone(&tally));
            loops.spawn(async move {
                loop {
                    tally.one(&client).await;
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(500..5_000))).await;
        if fastrand::bool() {
            // The calls notice; otherwise they are dropped with their connection.
            invoker.shutdown().await;
        }
        loops.shutdown().await;
    }
}

impl Tally {
    /// One call of a random kind.
    async fn one(&self, client: &EchoClient) {
        let bytes = match fastrand::u32(0..100) {
            0 => fastrand::usize(0..200_000),
            _ => fastrand::usize(0..2_000),
        };
        let body: Bytes = std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect();
        match fastrand::u32(0..100) {
            0..60 => self.note(client.echo(body.clone()).await, &body),
            60..75 => {
                let timeout = Duration::from_millis(fastrand::u64(1..20));
                self.note(client.echo_after(15, body.clone()).timeout(timeout).await, &body);
            }
            75..85 => {
                let started = client.echo_after(5, body).future();
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..4))).await;
                drop(started);
                self.given_up.fetch_add(1, Ordering::Relaxed);
            }
            85..92 => match client.echo(body).oneway().await {
                Ok(()) => drop(self.oneway.fetch_add(1, Ordering::Relaxed)),
                Err(error) => self.note_error(error.code, &error.to_string()),
            },
            92..97 => {
                let answer = client.echo_attachment(Attachment::from(body.clone())).await;
                self.note(answer.map(|((), attachment)| attachment.into_bytes()), &body);
            }
            _ => {
                let call = client.echo_after(2, body.clone()).into_future();
                match tokio::time::timeout(Duration::from_millis(1), call).await {
                    Ok(answer) => self.note(answer, &body),
                    Err(_) => drop(self.given_up.fetch_add(1, Ordering::Relaxed)),
                }
            }
        }
    }

    fn note(&self, answer: Result<Bytes, CallError>, sent: &Bytes) {
        match answer {
            Ok(answer) if answer == *sent => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
            Ok(_) => drop(self.wrong.fetch_add(1, Ordering::Relaxed)),
            Err(CallError::App(never)) => match never {},
            Err(CallError::Rpc(error)) => self.note_error(error.code, &error.to_string()),
        }
    }

    fn note_error(&self, code: Code, error: &str) {
        match code {
            Code::DeadlineExceeded => drop(self.timed_out.fetch_add(1, Ordering::Relaxed)),
            Code::Cancelled => drop(self.cut_off.fetch_add(1, Ordering::Relaxed)),
            _ => self.fail(error),
        }
    }

    fn fail(&self, reason: &str) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        // Bounded: the rest is counted under one name.
        let name = if failed.len() < 20 { reason } else { "others" };
        *failed.entry(name.to_owned()).or_default() += 1;
    }
}
