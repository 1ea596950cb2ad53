//! The broker's bench: `mq bench` against a fresh broker, with the bare disk and the bare socket measured in
//! the same run. Fields: bench, durability, size, queues, msgs_per_s, mb_per_s, p50_us, p99_us, p999_us,
//! errors, disk_ratio and socket_ratio (MB/s over the disk's sequential write and over a stream through
//! loopback), with a replay replayed_mb_per_s (what its consumer read from files meanwhile), with single
//! sends floor_us (p50 of an echo and of an fdatasync of as many bytes, added) and synced_echo_us (p50 of an
//! echo that is answered after an fdatasync).

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use super::Options;
use super::child::Server;
use super::folder::Folder;
use super::store::limits;
use super::table::grouped;
use crate::report;
use crate::run::{Failure, Outcome, capture, cargo, show};
use crate::workspace::{self, Workspace};

/// One measurement: its name, the durability and queues of its topic, the bytes of a message, further
/// arguments.
struct Cell {
    bench: &'static str,
    durability: &'static str,
    queues: u32,
    size: u32,
    words: Vec<String>,
}

/// The title of the table, and what its rows are.
const TITLE: &str = "\
The broker next to the bare disk and socket: client and broker on this machine (MB = 10^6 bytes)
  produce    messages pushed as fast as they are acknowledged, in full batches
  sends      awaited sends, 1,024 at once; the producer collects those that wait into batches
  unbatched  1,024 messages in flight, each in a batch of its own
  spread     batches of 64 KiB, so that only the number of queues differs
  single     one awaited send at a time
  consume    a backlog, read from its beginning
  replay     produce while a consumer reads old messages from files
  latency    10,000 messages/s, from when each was due to its arrival";

/// Queues of a topic by default.
const QUEUES: u32 = 8;

/// Builds, measures, prints.
pub(super) fn run(options: Options) -> Outcome {
    let target = Workspace::load()?.target;
    show(
        "build",
        cargo()
            .args(["build", "--release", "--locked"])
            .args([
                "--package",
                "mq-broker",
                "--package",
                "mq-client",
                "--package",
                "examples",
            ])
            .args(["--bin", "mq-broker", "--bin", "mq", "--bin", "store_limits"])
            .current_dir(workspace::root()),
    )?;
    let folder = Folder::new(&target)?;
    report::step("bench: the bare disk and socket");
    let limits = limits(&target, &folder, options, true)?;

    let mut rows = Vec::new();
    for cell in cells(options.quick) {
        let bench = Bench {
            programs: target.join("release"),
            folder: folder.path().join("broker"),
        };
        let mut row = bench.measure(&cell, options.quick)?;
        compare(&mut row, &limits);
        report::note(&format!(
            "{} {} {} B: {} messages/s, p99 {} us",
            cell.bench,
            cell.durability,
            cell.size,
            grouped(number(&row, "msgs_per_s")),
            row["p99_us"]
        ));
        options.emit(&row);
        rows.push(row);
    }
    print(options, &limits, &rows);
    Ok(())
}

fn cells(quick: bool) -> Vec<Cell> {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let count = |full: u32| (if quick { full / 20 } else { full }).to_string();
    let cell = |bench, durability, size, words| Cell {
        bench,
        durability,
        queues: QUEUES,
        size,
        words,
    };
    let produce =
        |durability, size, full| cell("produce", durability, size, words(&["--messages", &count(full)]));
    // An application's awaited sends, 1,024 at once: the producer collects those that wait into batches.
    let sends = |durability, full| {
        let load = ["--messages", &count(full), "--single", "--in-flight", "1024"];
        cell("sends", durability, 100, words(&load))
    };
    // Harder: 1,024 messages in flight, each in a batch of its own.
    let unbatched = |durability, full| {
        let load = [
            "--messages",
            &count(full),
            "--batch-records",
            "1",
            "--in-flight",
            "1024",
        ];
        cell("unbatched", durability, 100, words(&load))
    };
    // Batches of one size, so that only the number of queues differs.
    let spread = |queues| Cell {
        queues,
        ..cell(
            "spread",
            "fsynced",
            1024,
            words(&["--messages", &count(1_000_000), "--batch-bytes", "64KiB"]),
        )
    };
    let duration = if quick { "2s" } else { "10s" };
    let latency = |durability| {
        let load = words(&["--rate", "10000", "--duration", duration]);
        cell("latency", durability, 100, load)
    };
    vec![
        produce("fsynced", 1024, 1_000_000),
        produce("memory", 1024, 1_000_000),
        produce("fsynced", 100, 5_000_000),
        produce("memory", 100, 5_000_000),
        sends("memory", 1_000_000),
        sends("fsynced", 500_000),
        unbatched("memory", 1_000_000),
        unbatched("fsynced", 500_000),
        spread(1),
        spread(10_000),
        cell(
            "single",
            "fsynced",
            1024,
            words(&["--messages", &count(5_000), "--in-flight", "1"]),
        ),
        cell(
            "consume",
            "fsynced",
            1024,
            words(&["--messages", &count(1_000_000)]),
        ),
        cell(
            "replay",
            "fsynced",
            1024,
            words(&["--messages", &count(1_000_000)]),
        ),
        latency("fsynced"),
        latency("memory"),
    ]
}

/// The folders of the programs and of the broker's data; each measurement has a fresh broker.
struct Bench {
    programs: PathBuf,
    folder: PathBuf,
}

impl Bench {
    fn measure(&self, cell: &Cell, quick: bool) -> Outcome<Value> {
        let log = std::fs::File::create(self.folder.with_extension("log"))?;
        let server = Server::start(
            Command::new(self.programs.join("mq-broker"))
                .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"])
                .arg(&self.folder)
                .stderr(log),
        )?;
        let queues = cell.queues.to_string();
        let topic = ["--queues", &queues, "--durability", cell.durability];
        self.mq(&server, &[&["topic", "create", "load"][..], &topic[..]].concat())?;
        let size = cell.size.to_string();
        let command = match cell.bench {
            "single" | "sends" | "unbatched" | "spread" | "replay" => "produce",
            other => other,
        };
        let mut words = vec!["bench", command, "load"];
        let backlog = if quick { "50000" } else { "1000000" };
        let fill = |topic: &str| {
            let load = ["bench", "produce", topic, "--size", &size, "--messages", backlog];
            self.mq(&server, &load)
        };
        let mut replay = None;
        match cell.bench {
            "consume" => drop(fill("load")?),
            "replay" => {
                self.mq(&server, &[&["topic", "create", "old"][..], &topic[..]].concat())?;
                fill("old")?;
                forget_cached(&self.folder.join("journal"))?;
                let load = ["bench", "consume", "old", "--messages", backlog];
                replay = Some(Replay::start(self.command(&server, &load))?);
            }
            _ => {}
        }
        if command != "consume" {
            words.extend(["--size", &size]);
        }
        words.extend(cell.words.iter().map(String::as_str));
        let before = served_from_files(&server)?;
        let started = Instant::now();
        let text = self.mq(&server, &words)?;
        let replayed = (served_from_files(&server)? - before) / started.elapsed().as_secs_f64() / 1e6;
        let is_replay = replay.is_some();
        drop((replay, server));
        std::fs::remove_dir_all(&self.folder)?;
        let mut row: Value = serde_json::from_str(text.trim())
            .map_err(|error| Failure::new(format!("`mq bench` printed no JSON: {error}")))?;
        row["bench"] = json!(cell.bench);
        row["durability"] = json!(cell.durability);
        row["size"] = json!(cell.size);
        row["queues"] = json!(cell.queues);
        if is_replay {
            row["replayed_mb_per_s"] = json!(replayed.round());
        }
        Ok(row)
    }

    fn mq(&self, server: &Server, words: &[&str]) -> Outcome<String> {
        capture(&mut self.command(server, words))
    }

    fn command(&self, server: &Server, words: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("mq"));
        command
            .args(["--output", "json", "--broker", server.listen()])
            .args(words);
        command
    }
}

/// Adds the ratios of a figure to the limits of the machine.
fn compare(row: &mut Value, limits: &[Value]) {
    let limit = |figure: &str, field: &str| {
        let of_size = |limit: &&Value| limit["write_bytes"].is_null() || limit["write_bytes"] == row["size"];
        let found = limits
            .iter()
            .filter(of_size)
            .find(|limit| limit["figure"] == figure);
        found.map_or(0.0, |limit| number(limit, field))
    };
    let of = |limit: f64| json!((number(row, "mb_per_s") / limit.max(1e-9) * 100.0).round() / 100.0);
    let disk_ratio = of(limit("sequential_write", "mb_per_s"));
    let socket_ratio = of(limit("socket_stream", "mb_per_s"));
    let floor = limit("socket_echo", "p50_us") + limit("fdatasync", "p50_us");
    let synced_echo = limit("synced_echo", "p50_us");
    row["disk_ratio"] = disk_ratio;
    row["socket_ratio"] = socket_ratio;
    if row["bench"] == "single" {
        row["floor_us"] = json!(floor);
        row["synced_echo_us"] = json!(synced_echo);
    }
}

/// A consumer that reads old messages meanwhile; killed when dropped.
struct Replay(Child);

impl Replay {
    fn start(mut command: Command) -> Outcome<Self> {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        // It may have read everything and ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Bytes of batches that the broker has read from files for consumers so far, from its metrics.
fn served_from_files(server: &Server) -> Outcome<f64> {
    let mut stream = TcpStream::connect(server.http())?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("hc_mq_fetched_file_bytes_total "));
    let value = value.and_then(|value| value.trim().parse().ok());
    value.ok_or_else(|| Failure::new("the broker's metrics lack `hc_mq_fetched_file_bytes_total`"))
}

/// Drops the files of a folder from the page cache, so that they are read from the disk.
fn forget_cached(folder: &Path) -> Outcome {
    for entry in std::fs::read_dir(folder)? {
        let mut file = OsString::from("if=");
        file.push(entry?.path());
        capture(Command::new("dd").arg(file).args([
            "of=/dev/null",
            "iflag=nocache",
            "count=0",
            "status=none",
        ]))?;
    }
    Ok(())
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or(0.0)
}

fn print(options: Options, limits: &[Value], rows: &[Value]) {
    let whole = |row: &Value, fields: &[&str]| {
        let found = fields.iter().find_map(|field| row[*field].as_f64());
        found.map_or_else(|| "-".to_owned(), grouped)
    };
    let ratio = |row: &Value, field: &str| format!("{:.2}", number(row, field));
    let none = || "-".to_owned();
    let mut lines: Vec<Vec<String>> = limits
        .iter()
        .map(|row| {
            vec![
                format!("bare: {}", row["figure"].as_str().unwrap_or_default()),
                none(),
                none(),
                whole(row, &["write_bytes", "block_bytes"]),
                whole(row, &["syncs_per_s", "calls_per_s"]),
                whole(row, &["mb_per_s"]),
                whole(row, &["p50_us"]),
                whole(row, &["p99_us"]),
                none(),
                none(),
                none(),
                none(),
                none(),
            ]
        })
        .collect();
    lines.extend(rows.iter().map(|row| {
        vec![
            row["bench"].as_str().unwrap_or_default().to_owned(),
            row["durability"].as_str().unwrap_or_default().to_owned(),
            whole(row, &["queues"]),
            whole(row, &["size"]),
            whole(row, &["msgs_per_s"]),
            whole(row, &["mb_per_s"]),
            whole(row, &["p50_us"]),
            whole(row, &["p99_us"]),
            whole(row, &["p999_us"]),
            ratio(row, "disk_ratio"),
            ratio(row, "socket_ratio"),
            whole(row, &["synced_echo_us"]),
            whole(row, &["replayed_mb_per_s"]),
        ]
    }));
    options.table(
        TITLE,
        &[
            "bench",
            "durability",
            "queues",
            "bytes",
            "per second",
            "MB/s",
            "p50 us",
            "p99 us",
            "p999 us",
            "of the disk",
            "of the socket",
            "synced echo us",
            "replayed MB/s",
        ],
        &lines,
    );
}
