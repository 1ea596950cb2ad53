//! The time from a broker's start to its `ready` line with a large journal: after a clean stop, and after a
//! kill.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use super::Options;
use super::child::Server;
use crate::report;
use crate::run::{Outcome, capture};

/// Queues of the topic, as many as a topic of a large installation.
const QUEUES: &str = "10000";
/// Bytes of the messages.
const RECORD_BYTES: u64 = 1024;

/// Measures the figures and emits each at once.
pub(super) fn startup(programs: &Path, folder: &Path, options: Options) -> Outcome<Vec<Value>> {
    let bytes: u64 = if options.quick { 256 << 20 } else { 10 << 30 };
    let data = folder.join("startup");
    let mut server = start(programs, &data)?.0;
    let mq = |server: &Server, words: &[&str]| {
        capture(
            Command::new(programs.join("mq"))
                .args(["--output", "json", "--broker", server.listen()])
                .args(words),
        )
    };
    mq(
        &server,
        &[
            "topic",
            "create",
            "load",
            "--queues",
            QUEUES,
            "--durability",
            "memory",
        ],
    )?;
    let messages = (bytes / RECORD_BYTES).to_string();
    let size = RECORD_BYTES.to_string();
    mq(
        &server,
        &[
            "bench",
            "produce",
            "load",
            "--size",
            &size,
            "--messages",
            &messages,
        ],
    )?;
    let mut rows = Vec::new();
    for clean in [true, false] {
        if clean {
            server.terminate()?;
        } else {
            // Otherwise the journal would end at a checkpoint.
            mq(
                &server,
                &["bench", "produce", "load", "--size", &size, "--messages", "50000"],
            )?;
            drop(server);
        }
        let journal_bytes = folder_bytes(&data.join("journal"))?;
        let (again, ms) = start(programs, &data)?;
        server = again;
        let row = json!({
            "figure": "start", "clean": clean, "ms": ms, "journal_bytes": journal_bytes, "queues": 10_000,
        });
        report::note(&format!(
            "start after a {}: {ms} ms",
            if clean { "clean stop" } else { "kill" }
        ));
        options.emit(&row);
        rows.push(row);
    }
    drop(server);
    std::fs::remove_dir_all(&data)?;
    Ok(rows)
}

/// Starts a broker; returns it and after how many milliseconds it was ready.
fn start(programs: &Path, data: &Path) -> Outcome<(Server, u64)> {
    let log = std::fs::File::create(data.with_extension("log"))?;
    let started = Instant::now();
    let server = Server::start(
        Command::new(programs.join("mq-broker"))
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"])
            .arg(data)
            .stderr(log),
    )?;
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok((server, ms))
}

fn folder_bytes(folder: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
