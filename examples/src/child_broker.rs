//! A broker as a child process, for programs that start, kill and restart it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How long a broker may take to its `ready` line.
const READY_WAIT: Duration = Duration::from_secs(30);
/// Lines of its log that an error contains.
const LOG_LINES_SHOWN: usize = 15;

/// A running broker; dropping it kills the process.
#[derive(Debug)]
pub struct ChildBroker {
    child: Child,
    /// Its address for clients.
    pub listen: String,
    /// Its address for browsers.
    pub http: String,
    /// Its name.
    pub name: String,
    /// From its start to its `ready` line.
    pub started_in: Duration,
}

/// How a broker is started.
#[derive(Debug, Clone)]
pub struct Start {
    /// The program.
    pub binary: PathBuf,
    /// Its data folder; its log goes beside it, as `<folder>.log`.
    pub folder: PathBuf,
    /// The address it listens on; with port 0 the system chooses one.
    pub listen: String,
    /// Further flags, such as `--registry`, `etcd://..`.
    pub flags: Vec<String>,
}

impl Start {
    /// A broker of `binary` with its data in `folder`, on free ports.
    #[must_use]
    pub fn new(binary: &Path, folder: &Path) -> Self {
        Self {
            binary: binary.to_owned(),
            folder: folder.to_owned(),
            listen: "127.0.0.1:0".to_owned(),
            flags: Vec::new(),
        }
    }

    /// Starts it and waits for its `ready` line.
    ///
    /// # Errors
    /// A message that it could not be started or did not become ready, with the end of its log.
    pub fn run(&self) -> Result<ChildBroker, String> {
        let log = self.folder.with_extension("log");
        let open_log = || File::options().create(true).append(true).open(&log);
        let stderr = open_log().map_err(|error| format!("cannot write `{}`: {error}", log.display()))?;
        let begun = Instant::now();
        let mut child = Command::new(&self.binary)
            .arg("--data-dir")
            .arg(&self.folder)
            .args(["--listen", &self.listen, "--http", "127.0.0.1:0"])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|error| format!("cannot run `{}`: {error}", self.binary.display()))?;
        let line = first_line(&mut child);
        let started_in = begun.elapsed();
        let word = |name: &str| {
            let line = line
                .as_deref()
                .ok()
                .and_then(|line| line.strip_prefix("ready "))?;
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(name))
                .map(str::to_owned)
        };
        match (word("listen="), word("http="), word("name=")) {
            (Some(listen), Some(http), Some(name)) => Ok(ChildBroker {
                child,
                listen,
                http,
                name,
                started_in,
            }),
            _ => {
                stop(&mut child);
                let reason = line.unwrap_or_else(|reason| reason);
                Err(format!(
                    "the broker did not become ready: {}\n{}",
                    reason.trim(),
                    end_of(&log)
                ))
            }
        }
    }
}

impl ChildBroker {
    /// Its process.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL, so that it cannot shut down cleanly. Returns when the process has ended.
    pub fn kill(mut self) {
        stop(&mut self.child);
    }
}

impl Drop for ChildBroker {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// The broker's program next to the running one, where cargo builds it.
///
/// # Errors
/// A message that it is missing, and how to build it.
pub fn beside_this_program() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("this program cannot find itself: {error}"))?;
    let binary = own.with_file_name("mq-broker");
    if binary.is_file() {
        return Ok(binary);
    }
    let release = if own.components().any(|part| part.as_os_str() == "release") {
        " --release"
    } else {
        ""
    };
    Err(format!(
        "`{}` is not there; build it with `cargo build{release} -p mq-broker`",
        binary.display()
    ))
}

fn stop(child: &mut Child) {
    // It may have ended by itself.
    drop(child.kill());
    drop(child.wait());
}

fn first_line(child: &mut Child) -> Result<String, String> {
    let stdout = child.stdout.take().ok_or("its stdout is missing")?;
    let (sender, receiver) = sync_channel(1);
    // The thread ends with the line, or with the process.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        drop(sender.send(read.map(|_| line)));
    });
    match receiver.recv_timeout(READY_WAIT) {
        Ok(Ok(line)) if line.is_empty() => Err("it ended".to_owned()),
        Ok(line) => line.map_err(|error| error.to_string()),
        Err(RecvTimeoutError::Timeout) => Err(format!("no output within {READY_WAIT:?}")),
        Err(RecvTimeoutError::Disconnected) => Err("it ended".to_owned()),
    }
}

fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}
