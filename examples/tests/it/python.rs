//! The Python client, written from docs/wire.md alone, against a Rust provider in a process of its own, and against the
//! golden files. Needs `python3`, and nothing of Python's beyond its standard library.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::programs::runs_and_says;

/// `python3` on PATH, else what `cargo xtask tools` unpacked.
fn python() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("python3"));
    // The target folder is the workspace's, or the one this test was built into.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let test = std::env::current_exe().unwrap_or_default();
    let targets = std::iter::once(workspace.as_path()).chain(test.ancestors());
    let unpacked = targets.map(|target| target.join("tools/python3/bin/python3"));
    on_path.chain(unpacked).find(|program| program.is_file()).expect(
        "these tests need `python3`, and it is neither on PATH nor in target/tools; run `cargo xtask tools`",
    )
}

/// A script of `examples/python` with these arguments.
fn script(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(python());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
    // `-B`: leaves nothing in the sources.
    command.arg("-B").arg(folder.join(name)).args(arguments);
    command
}

/// The provider; it ends when its input is closed, at the latest with this test.
struct Desk {
    process: Child,
    address: String,
}

impl Desk {
    fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_wire_provider"))
            .args(arguments)
            // It panics on purpose.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(process.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("ready ").map(str::to_owned);
        let address = address.unwrap_or_else(|| panic!("the provider said `{line}`"));
        Self { process, address }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        drop(self.process.wait());
    }
}

#[test]
fn python_client_calls_a_rust_provider_in_every_way() {
    let desk = Desk::start(&["--token", "s3cret"]);
    let says = [
        "msgpack:        placed, and {'TooFew': [1]}",
        "msgpack-named:  placed, and {'TooFew': {'wanted': 1}}",
        "json:           placed, and {'TooFew': {'wanted': 1}}",
        "raw:            bytes",
        "errors:         NotFound, BadRequest, Internal",
        "in flight:      200 calls, one oneway",
        "attachment:     102400 bytes there, twice as many back",
        "streams:        500 items through a window of 4",
        "given up:       in time, and by CANCEL",
        "ping:           pong",
        "packed:         two answers, by lz4",
        "without token:  Unauthenticated",
    ];
    runs_and_says(script("try_it.py", &[&desk.address, "s3cret"]), &says);
}

#[test]
fn python_client_needs_no_token_where_none_is_wanted() {
    let desk = Desk::start(&[]);
    runs_and_says(
        script("try_it.py", &[&desk.address]),
        &["packed:         two answers, by lz4"],
    );
}

#[test]
fn python_client_reads_and_writes_the_golden_files() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../rpc-core/tests/golden");
    let command = script("golden.py", &[&golden.display().to_string()]);
    runs_and_says(command, &["frames and the envelopes are as pinned"]);
}
