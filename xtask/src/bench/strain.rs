//! The memory of a provider's idle connections, and what remains in memory after a long and varied load.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::Options;
use super::child::Server;
use super::rpc::{build_ours, number};
use crate::report;
use crate::run::{Failure, Outcome, capture};

/// Memory of a provider with this many idle connections.
pub(super) fn idle(options: Options, connections: u32) -> Outcome {
    let programs = build_ours(&["rpc_echo_server", "rpc_echo_idle"])?;
    let server = Server::start(&mut Command::new(programs.join("rpc_echo_server")))?;
    let before = resident_mb(server.process())?;
    report::step(&format!("bench: {connections} idle connections"));
    let mut client = Command::new(programs.join("rpc_echo_idle"));
    client.args([
        "--server",
        server.listen(),
        "--connections",
        &connections.to_string(),
    ]);
    let client = Server::start_to_finish(&mut client)?;
    let (with, callers) = (resident_mb(server.process())?, resident_mb(client.process())?);
    client.finish()?;
    let each = |all: f64| (all * 1000.0 / f64::from(connections) * 10.0).round() / 10.0;
    let row = json!({
        "peer": "ours",
        "idle_connections": connections,
        "server_rss_mb_before": before,
        "server_rss_mb": with,
        "server_kb_per_connection": each(with - before),
        "client_rss_mb": callers,
    });
    options.emit(&row);
    options.table(
        "Memory of an echo server with idle connections, after one call on each",
        &[
            "connections",
            "server MB without",
            "server MB",
            "kB each",
            "client MB",
        ],
        &[cells(
            &row,
            &[
                "idle_connections",
                "server_rss_mb_before",
                "server_rss_mb",
                "server_kb_per_connection",
                "client_rss_mb",
            ],
        )],
    );
    Ok(())
}

/// Every way in which a call can end, for this long.
pub(super) fn soak(options: Options, time: Duration) -> Outcome {
    let programs = build_ours(&["rpc_echo_server", "rpc_echo_soak"])?;
    let server = Server::start(&mut Command::new(programs.join("rpc_echo_server")))?;
    report::step(&format!("bench: every way in which a call can end, for {time:?}"));
    let mut client = Command::new(programs.join("rpc_echo_soak"));
    client
        .args([
            "--server",
            server.listen(),
            "--server-pid",
            &server.process().to_string(),
        ])
        .args(["--seconds", &time.as_secs().to_string()]);
    let line = capture(&mut client)?;
    let row: Value = serde_json::from_str(line.trim())
        .map_err(|error| Failure::new(format!("the client printed no JSON: {error}")))?;
    options.emit(&row);
    let fields = [
        "seconds",
        "answered",
        "timed_out",
        "given_up",
        "oneway",
        "cut_off",
        "wrong",
        "server_rss_mb_settled",
        "server_rss_mb_end",
        "client_rss_mb_settled",
        "client_rss_mb_end",
    ];
    options.table(
        "Calls that end in every way, and memory after a tenth of the time and at its end",
        &fields,
        &[cells(&row, &fields)],
    );
    let failed = row["failed"].as_object().is_some_and(|failed| !failed.is_empty());
    if failed || number(&row, "wrong") > 0.0 {
        return Err(Failure::new(format!(
            "calls ended as none should: {} answered with bytes of others, {}",
            row["wrong"], row["failed"]
        )));
    }
    Ok(())
}

fn cells(row: &Value, fields: &[&str]) -> Vec<String> {
    fields.iter().map(|field| row[*field].to_string()).collect()
}

/// The resident memory of a process in megabytes.
fn resident_mb(process: u32) -> Outcome<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes
        .map(|kilobytes| (kilobytes * 1.024 / 100.0).round() / 10.0)
        .ok_or_else(|| Failure::new(format!("/proc/{process}/status has no VmRSS")))
}
