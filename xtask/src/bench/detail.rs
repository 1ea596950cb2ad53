//! The costs of a call besides time: the cell is measured once more, with both processes under `strace -c`
//! and counting their allocations. No other figure is taken from this run, which strace slows down.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::child::Server;
use super::folder::Folder;
use super::rpc::{Cell, Peer, client_arguments, command, number};
use crate::run::{Failure, Outcome, capture, on_path};
use crate::workspace::Workspace;

/// Adds the fields to a row.
pub(super) fn add(row: &mut Value, peer: &Peer, runtime: &str, cell: Cell) -> Outcome {
    if on_path("strace").is_none() {
        return Err(Failure::new(
            "--detail needs `strace` on PATH; install it, or measure without",
        ));
    }
    let folder = Folder::new(&Workspace::load()?.target)?;
    let (server_counts, client_counts) = (folder.path().join("server"), folder.path().join("client"));
    let mut served = traced(&server_counts, &command(&peer.server));
    served.args(["--runtime", runtime, "--listen", "127.0.0.1:0", "--detail"]);
    let server = Server::start_to_finish(&mut served)?;
    let mut client = traced(&client_counts, &command(&peer.client));
    client_arguments(&mut client, &server, runtime, cell);
    // No warm-up, so that the server has seen exactly the client's calls, except for the last ones in flight.
    client.args(["--seconds", "2", "--warmup-seconds", "0", "--detail"]);
    let measured = parsed(&capture(&mut client)?)?;
    let served = parsed(&server.finish()?)?;
    let calls = number(&measured, "calls").max(1.0);
    let per_call = |count: f64| json!((count / calls * 1000.0).round() / 1000.0);
    row["client_syscalls_per_call"] = per_call(system_calls(&client_counts)?);
    row["server_syscalls_per_call"] = per_call(system_calls(&server_counts)?);
    row["client_allocations_per_call"] = per_call(number(&measured, "allocations"));
    row["server_allocations_per_call"] = per_call(number(&served, "allocations"));
    Ok(())
}

fn traced(counts: &Path, traced: &Command) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-o"]).arg(counts);
    strace.arg(traced.get_program()).args(traced.get_args());
    strace
}

fn parsed(line: &str) -> Outcome<Value> {
    serde_json::from_str(line.trim())
        .map_err(|error| Failure::new(format!("no JSON from a traced program: {error}")))
}

/// The total in strace's table.
fn system_calls(counts: &Path) -> Outcome<f64> {
    let table = fs::read_to_string(counts)?;
    total(&table).ok_or_else(|| Failure::new("strace wrote no total"))
}

fn total(table: &str) -> Option<f64> {
    let line = table.lines().rfind(|line| line.ends_with("total"))?;
    // Share, seconds, microseconds a call, calls, perhaps errors, name.
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_is_read_with_and_without_errors() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n \
                     60.00    0.000600           1       600           sendto\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                     100.00    0.001000           1      1000        12 total\n";
        assert_eq!(total(table), Some(1000.0));
        assert_eq!(
            total("100.00    0.001000           1      1000           total"),
            Some(1000.0)
        );
        assert_eq!(total("nothing"), None);
    }
}
