//! Each example program: it ends well within a minute, and its output has the lines that matter.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// A program that says nothing more for this long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn runs_and_says(program: &str, expected: &[&str]) {
    let mut child = Command::new(program)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap_or_else(|error| panic!("`{program}` does not start: {error}"));
    let mut stdout = child.stdout.take().unwrap();
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        let mut text = String::new();
        drop(stdout.read_to_string(&mut text));
        drop(sender.send(text));
    });
    let text = receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        drop(child.kill());
        panic!("`{program}` did not end within {PATIENCE:?}")
    });
    let status = child.wait().unwrap();
    assert!(
        status.success(),
        "`{program}` ended with {status} and said:\n{text}"
    );
    for line in expected {
        assert!(
            text.contains(line),
            "`{program}` did not say `{line}` but:\n{text}"
        );
    }
}

#[test]
fn hello_rpc() {
    let says = [
        "await:   hello, ada",
        "error:   whom shall I greet?",
        "local:   hello, grace",
    ];
    runs_and_says(env!("CARGO_BIN_EXE_hello_rpc"), &says);
}

#[test]
fn callbacks() {
    let says = ["the sum of the first 100 squares is 338350", "full:"];
    runs_and_says(env!("CARGO_BIN_EXE_callbacks"), &says);
}

#[test]
fn own_plugin() {
    let says = [
        "primary_first, random, round_robin",
        "answered by a-primary",
        "answered by b-spare",
        "by_moon_phase",
    ];
    runs_and_says(env!("CARGO_BIN_EXE_own_plugin"), &says);
}

#[test]
fn publish_consume() {
    let says = [
        "consuming: ",
        "sent placed: queue ",
        ", fsynced",
        "got `order 7 is shipped`",
        "got `order 8 was looked at`",
    ];
    runs_and_says(env!("CARGO_BIN_EXE_publish_consume"), &says);
}

#[test]
fn transaction() {
    let says = [
        "10 coins: transaction example:",
        "is Committed",
        "is RolledBack",
        "the broker asks",
        "visible: 42 coins",
    ];
    runs_and_says(env!("CARGO_BIN_EXE_transaction"), &says);
}

#[test]
fn brokers_in_etcd() {
    let says = [
        "lies on broker-a",
        "lies on broker-b",
        "all eight were consumed from both brokers",
    ];
    runs_and_says(env!("CARGO_BIN_EXE_brokers_in_etcd"), &says);
}
