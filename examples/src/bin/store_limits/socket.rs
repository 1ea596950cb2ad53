//! The bare socket: a stream over loopback and an echo that is waited for, both between two threads that block.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

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

/// So many bytes there and back, one after the other.
pub(super) fn echo(bytes: usize, time: Duration) -> Result<Value, Failure> {
    let (mut near, mut far) = pair()?;
    let echoing = thread::spawn(move || {
        let mut block = vec![0; bytes];
        while far.read_exact(&mut block).is_ok() {
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
    echoing.join().map_err(|_| "the echoing thread panicked")??;
    Ok(json!({
        "figure": "socket_echo", "block_bytes": bytes, "calls_per_s": rate(latency.len(), seconds),
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
