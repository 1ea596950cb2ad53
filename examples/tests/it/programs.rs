//! Each example program: it ends well within a minute, and its output has the lines that matter.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// A program that says nothing more for this long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs it to its end, which must be a good one, and looks for these texts in what it said.
pub(crate) fn runs_and_says(mut command: Command, expected: &[&str]) {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
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

fn says(program: &str, expected: &[&str]) {
    runs_and_says(Command::new(program), expected);
}

#[test]
fn hello_rpc() {
    let expected = [
        "await:   hello, ada",
        "error:   whom shall I greet?",
        "local:   hello, grace",
    ];
    says(env!("CARGO_BIN_EXE_hello_rpc"), &expected);
}

#[test]
fn provider_admin() {
    let expected = [
        "service hc.Kitchen version 1.0 group default",
        "cook    2      0/2        1       0         0        0",
        "service _admin version 1.0 group default",
        "hc.Kitchen/cook",
        "fault tolerance  failover",
    ];
    says(env!("CARGO_BIN_EXE_provider_admin"), &expected);
}

#[test]
fn callbacks() {
    let expected = ["the sum of the first 100 squares is 338350", "full:"];
    says(env!("CARGO_BIN_EXE_callbacks"), &expected);
}

#[test]
fn own_plugin() {
    let expected = [
        "primary_first, random, round_robin",
        "answered by a-primary",
        "answered by b-spare",
        "by_moon_phase",
    ];
    says(env!("CARGO_BIN_EXE_own_plugin"), &expected);
}

#[test]
fn publish_consume() {
    let expected = [
        "consuming: ",
        "sent placed: queue ",
        ", fsynced",
        "got `order 7 is shipped`",
        "got `order 8 was looked at`",
    ];
    says(env!("CARGO_BIN_EXE_publish_consume"), &expected);
}

#[test]
fn transaction() {
    let expected = [
        "10 coins: transaction example:",
        "is Committed",
        "is RolledBack",
        "the broker asks",
        "visible: 42 coins",
    ];
    says(env!("CARGO_BIN_EXE_transaction"), &expected);
}

#[test]
fn brokers_in_etcd() {
    let expected = [
        "is on broker-a",
        "is on broker-b",
        "all eight were consumed from both brokers",
    ];
    says(env!("CARGO_BIN_EXE_brokers_in_etcd"), &expected);
}

#[test]
fn store_limits_gives_all_figures() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_store_limits"))
        .args(["--seconds", "0.01", "--folder"])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |figure: &str| {
        rows.iter()
            .filter(|row| row["figure"] == figure)
            .collect::<Vec<_>>()
    };
    for (figure, count) in [
        ("sequential_write", 1),
        ("sequential_read", 1),
        ("fdatasync", 3),
        ("socket_stream", 1),
        ("socket_echo", 1),
        ("synced_echo", 1),
        ("journal", 14),
    ] {
        assert_eq!(of(figure).len(), count, "{figure}: {text}");
    }
    let consumed = of("consume");
    let places: Vec<_> = consumed.iter().map(|row| row["from"].as_str().unwrap()).collect();
    let expected = [
        "memory",
        "page_cache",
        "cold",
        "cold_one_queue",
        "cold_queue_files",
        "cold_one_queue_file",
    ];
    assert_eq!(places, expected);
    assert!(
        consumed.iter().all(|row| row["msgs_per_s"].as_f64() > Some(0.0)),
        "{text}"
    );
    assert_eq!(consumed[0]["reads_that_waited"], 0);
}
