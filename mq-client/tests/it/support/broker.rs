//! A broker as a process of its own. Its program is the one that cargo built beside `mq`; when that is
//! missing or older than its sources, it is built first, so that `cargo test -p mq-client` alone never meets
//! a stale one.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a broker may take to its `ready` line.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A running broker with its own folder; killed when dropped.
#[derive(Debug)]
pub(crate) struct Broker {
    child: Option<Child>,
    folder: TempDir,
    flags: Vec<String>,
    pub(crate) listen: String,
    pub(crate) name: String,
}

impl Broker {
    /// A broker on free ports with a fresh folder.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further flags.
    pub(crate) fn start_with(flags: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", flags)
    }

    /// The same at this address.
    pub(crate) fn start_at(listen: &str, flags: &[&str]) -> Self {
        let mut broker = Self {
            child: None,
            folder: tempfile::tempdir().unwrap(),
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            listen: listen.to_owned(),
            name: String::new(),
        };
        broker.restart();
        broker
    }

    /// SIGKILL, and nothing in its place.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; returns when it has ended.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap()
    }

    /// Its process.
    pub(crate) fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it (again), on the same folder and the same address.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let log = self.folder.path().join("broker.log");
        let stderr = fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut child = Command::new(program())
            .args(["--listen", &self.listen, "--http", "127.0.0.1:0", "--data-dir"])
            .arg(self.folder.path().join("data"))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let line = first_line(&mut child);
        let word = |name: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            let word = word.map(str::to_owned);
            word.unwrap_or_else(|| {
                panic!(
                    "the broker said `{line}`; its log:\n{}",
                    fs::read_to_string(&log).unwrap_or_default()
                )
            })
        };
        (self.listen, self.name) = (word("listen="), word("name="));
        self.child = Some(child);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What it says first; nothing if it ends or stays silent.
fn first_line(child: &mut Child) -> String {
    let stdout = child.stdout.take().unwrap();
    let (sender, receiver) = sync_channel(1);
    // The thread ends with the line, or with the process.
    std::thread::spawn(move || {
        let mut line = String::new();
        drop(BufReader::new(stdout).read_line(&mut line));
        drop(sender.send(line));
    });
    receiver.recv_timeout(READY_WITHIN).unwrap_or_else(|_| {
        child.kill().unwrap();
        child.wait().unwrap();
        String::new()
    })
}

/// The broker's program, not older than its sources.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        // This test lies in `deps` beside it.
        let own = std::env::current_exe().unwrap();
        let program = own.ancestors().nth(2).unwrap().join("mq-broker");
        if changed(&program).is_none_or(|built| built < newest_source()) {
            build(&program);
        }
        program
    })
}

fn build(program: &Path) {
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo
        .args(["build", "--package", "mq-broker", "--bin", "mq-broker"])
        .current_dir(root());
    if program.parent().is_some_and(|folder| folder.ends_with("release")) {
        cargo.arg("--release");
    }
    let output = cargo.stdin(Stdio::null()).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the broker cannot be built:\n{words}");
    assert!(
        program.is_file(),
        "cargo built the broker, but not at {}",
        program.display()
    );
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// When the newest of the broker's sources was changed.
fn newest_source() -> SystemTime {
    let mut newest = SystemTime::UNIX_EPOCH;
    let mut folders: Vec<PathBuf> = [
        "mq-broker/src",
        "mq-common/src",
        "rpc-core/src",
        "rpc-core/macros/src",
        "rpc-registry/src",
    ]
    .iter()
    .map(|folder| root().join(folder))
    .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                newest = newest.max(changed(&path).unwrap());
            }
        }
    }
    newest
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}
