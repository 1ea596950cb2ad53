//! The bare socket: a stream over loopback, an echo that is awaited, and one that is answered after its bytes
//! were written and synced, each between two threads that block.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::disk::Prefilled;
use super::{Failure, megabytes, micros, rate};

const BLOCK_BYTES: usize = 1024 * 1024;

/// Writes of 1 MiB that another thread reads.
pub(super) fn stream(time: Duration) -> Result<Value, Failure> {
    let (mut near, mut far) = pair()?;
    let started = Instant::now();
    let reading = thread::spawn(move || {
        let mut block = vec![0; BLOCK_BYTES];
        let mut bytes = 0;
        loop {
            match far.read(&mut block)? {
                0 => return Ok::<_, io::Error>(bytes),
                read => bytes += read,
            }
        }
    });
    let block = vec![0x5a; BLOCK_BYTES];
    while started.elapsed() < time {
        near.write_all(&block)?;
    }
    drop(near);
    let bytes = reading.join().map_err(|_| "the reading thread panicked")??;
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({"figure": "socket_stream", "block_bytes": BLOCK_BYTES, "mb_per_s": megabytes(bytes, seconds)}))
}

/// Messages of `bytes` to the other thread and back, one after another.
pub(super) fn echo(bytes: usize, time: Duration) -> Result<Value, Failure> {
    answered(bytes, time, "socket_echo", |_| Ok(()))
}

/// The same, answered after the message was written to a prefilled file and synced: the least that a durable
/// send costs.
pub(super) fn synced_echo(folder: &Path, bytes: usize, time: Duration) -> Result<Value, Failure> {
    let mut file = Prefilled::create(&folder.join("synced-echo"))?;
    answered(bytes, time, "synced_echo", move |message| {
        file.write_and_sync(message)
    })
}

/// Sends messages to a thread that calls `work` with each before it sends it back.
fn answered(
    bytes: usize,
    time: Duration,
    figure: &str,
    mut work: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
) -> Result<Value, Failure> {
    let (mut near, mut far) = pair()?;
    let answering = thread::spawn(move || {
        let mut block = vec![0; bytes];
        while far.read_exact(&mut block).is_ok() {
            work(&block)?;
            far.write_all(&block)?;
        }
        Ok::<_, io::Error>(())
    });
    let mut block = vec![0x5a; bytes];
    let mut latency = Histogram::<u64>::new(3)?;
    let started = Instant::now();
    while started.elapsed() < time {
        let begun = Instant::now();
        near.write_all(&block)?;
        near.read_exact(&mut block)?;
        latency.record(micros(begun.elapsed()))?;
    }
    let seconds = started.elapsed().as_secs_f64();
    drop(near);
    answering.join().map_err(|_| "the answering thread panicked")??;
    Ok(json!({
        "figure": figure, "block_bytes": bytes, "calls_per_s": rate(latency.len(), seconds),
        "p50_us": latency.value_at_quantile(0.5), "p99_us": latency.value_at_quantile(0.99),
    }))
}

fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}
