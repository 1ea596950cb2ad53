//! The RPC bench: echo over ours and its peers; each cell is measured with all peers one after another, so
//! that they run under the same conditions. Fields: peer, setup, payload, connections, in_flight,
//! calls_per_s, p99_us, cpu_s_per_million; with `--detail` also system calls and allocations of a call on
//! each side (`detail.rs`).

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::child::Server;
use super::table::grouped;
use super::{Options, detail};
use crate::report;
use crate::run::{Failure, Outcome, capture, cargo, show};
use crate::workspace::{self, Workspace};

/// Payload bytes, connections, calls in flight on each.
pub(super) type Cell = (u32, u32, u32);

const CELLS: &[Cell] = &[
    (128, 1, 1),
    (128, 1, 64),
    (128, 1, 512),
    (128, 16, 32),
    (4096, 1, 64),
    (65_536, 1, 64),
];
const QUICK: &[Cell] = &[(128, 1, 64)];

/// The name of a set-up and its runtime.
const SETUPS: &[(&str, &str)] = &[("D", "default"), ("C", "current")];

pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) server: Vec<PathBuf>,
    pub(super) client: Vec<PathBuf>,
}

/// Builds everything, measures every cell, prints.
pub(super) fn run(options: Options) -> Outcome {
    let peers = build()?;
    let (cells, seconds) = if options.quick { (QUICK, "1") } else { (CELLS, "3") };
    let total = SETUPS.len() * cells.len() * peers.len();
    report::step(&format!("bench: {total} measurements of {seconds} s"));
    let mut rows = Vec::new();
    for (setup, runtime) in SETUPS {
        for cell in cells {
            for peer in &peers {
                let mut row = measure(peer, setup, runtime, *cell, seconds)?;
                if options.detail {
                    detail::add(&mut row, peer, runtime, *cell)?;
                }
                report::note(&format!(
                    "{}/{total}  {setup}  {} B  {} x {}  {}: {} calls/s",
                    rows.len() + 1,
                    cell.0,
                    cell.1,
                    cell.2,
                    peer.name,
                    grouped(number(&row, "calls_per_s"))
                ));
                options.emit(&row);
                rows.push(row);
            }
        }
    }
    print(options, &rows);
    Ok(())
}

/// Builds programs of the examples and returns their folder.
pub(super) fn build_ours(programs: &[&str]) -> Outcome<PathBuf> {
    let target = Workspace::load()?.target;
    let programs = programs.iter().flat_map(|program| ["--bin", program]);
    show(
        "build ours",
        cargo()
            .args(["build", "--release", "--locked", "--package", "examples"])
            .args(programs)
            .current_dir(workspace::root()),
    )?;
    Ok(target.join("release"))
}

fn build() -> Outcome<Vec<Peer>> {
    let ours = build_ours(&["rpc_echo_server", "rpc_echo_client"])?;
    let (root, target) = (workspace::root(), Workspace::load()?.target);
    let peers = target.join("peers");
    show(
        "build peers",
        cargo()
            .args(["build", "--release", "--locked", "--target-dir"])
            .arg(&peers)
            .current_dir(root.join("examples/peers")),
    )?;
    let foreign = |name: &'static str, program: &str| {
        let program = peers.join("release").join(program);
        let part = |role: &str| vec![program.clone(), PathBuf::from(role)];
        Peer {
            name,
            server: part("server"),
            client: part("client"),
        }
    };
    Ok(vec![
        Peer {
            name: "ours",
            server: vec![ours.join("rpc_echo_server")],
            client: vec![ours.join("rpc_echo_client")],
        },
        foreign("bare", "bare_echo"),
        foreign("tarpc", "tarpc_echo"),
        foreign("tonic", "tonic_echo"),
        foreign("capnp", "capnp_echo"),
    ])
}

pub(super) fn command(words: &[PathBuf]) -> Command {
    let (program, rest) = words
        .split_first()
        .map_or((Path::new(""), &[][..]), |(first, rest)| (first, rest));
    let mut command = Command::new(program);
    command.args(rest);
    command
}

fn measure(peer: &Peer, setup: &str, runtime: &str, cell: Cell, seconds: &str) -> Outcome<Value> {
    let server =
        Server::start(command(&peer.server).args(["--runtime", runtime, "--listen", "127.0.0.1:0"]))?;
    let mut client = command(&peer.client);
    client_arguments(&mut client, &server, runtime, cell).args(["--seconds", seconds]);
    let line = capture(&mut client)?;
    let measured: Value = serde_json::from_str(line.trim())
        .map_err(|error| Failure::new(format!("the client of {} printed no JSON: {error}", peer.name)))?;
    let per_million = |seconds: f64| {
        let per_million = seconds / number(&measured, "calls").max(1.0) * 1e6;
        (per_million * 100.0).round() / 100.0
    };
    let (client_cpu, server_cpu) = (
        number(&measured, "client_cpu_s"),
        number(&measured, "server_cpu_s"),
    );
    let (payload, connections, in_flight) = cell;
    Ok(json!({
        "peer": peer.name,
        "setup": setup,
        "payload": payload,
        "connections": connections,
        "in_flight": in_flight,
        "calls_per_s": measured["calls_per_s"],
        "p50_us": measured["p50_us"],
        "p99_us": measured["p99_us"],
        "cpu_s_per_million": per_million(client_cpu + server_cpu),
        "client_cpu_s_per_million": per_million(client_cpu),
        "server_cpu_s_per_million": per_million(server_cpu),
        "errors": measured["errors"],
    }))
}

/// The arguments of all peers' clients.
pub(super) fn client_arguments<'a>(
    client: &'a mut Command,
    server: &Server,
    runtime: &str,
    cell: Cell,
) -> &'a mut Command {
    let (payload, connections, in_flight) = cell;
    client
        .args(["--server", server.listen(), "--runtime", runtime])
        .args(["--payload", &payload.to_string()])
        .args(["--connections", &connections.to_string()])
        .args(["--in-flight", &in_flight.to_string()])
        .args(["--server-pid", &server.process().to_string()])
}

pub(super) fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or(0.0)
}

/// A detail of both sides, client first.
fn sides(row: &Value, field: &str) -> String {
    match row[format!("client_{field}")].is_null() {
        true => String::new(),
        false => format!(
            "{:.2} + {:.2}",
            number(row, &format!("client_{field}")),
            number(row, &format!("server_{field}"))
        ),
    }
}

/// One line per cell and peer, with each peer's calls and processor time compared with ours in the same cell.
fn print(options: Options, rows: &[Value]) {
    let same_cell = |row: &Value, other: &Value| {
        ["setup", "payload", "connections", "in_flight"]
            .iter()
            .all(|field| row[*field] == other[*field])
    };
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let ours = rows
                .iter()
                .find(|other| other["peer"] == "ours" && same_cell(row, other));
            let times = |field| {
                let ratio = ours.map_or(0.0, |ours| number(ours, field)) / number(row, field).max(1e-9);
                format!("{ratio:.2}x")
            };
            vec![
                row["setup"].as_str().unwrap_or_default().to_owned(),
                row["payload"].to_string(),
                format!("{} x {}", row["connections"], row["in_flight"]),
                row["peer"].as_str().unwrap_or_default().to_owned(),
                grouped(number(row, "calls_per_s")),
                format!("{:.1}", number(row, "p50_us")),
                format!("{:.1}", number(row, "p99_us")),
                format!("{:.2}", number(row, "cpu_s_per_million")),
                row["errors"].to_string(),
                times("calls_per_s"),
                times("cpu_s_per_million"),
                sides(row, "syscalls_per_call"),
                sides(row, "allocations_per_call"),
            ]
        })
        .collect();
    options.table(
        "RPC echo: client and server on this machine; `ours/peer` is ours divided by the peer of that line",
        &[
            "setup",
            "bytes",
            "conn x in flight",
            "peer",
            "calls/s",
            "p50 us",
            "p99 us",
            "cpu s/million",
            "errors",
            "calls: ours/peer",
            "cpu: ours/peer",
            "syscalls",
            "allocations",
        ],
        &lines,
    );
}
