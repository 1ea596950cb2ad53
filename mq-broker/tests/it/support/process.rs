//! A broker process and its data folder.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// The broker of this build, if there is one.
const BUILT: &str = match option_env!("CARGO_BIN_EXE_mq-broker") {
    Some(path) => path,
    None => "mq-broker",
};

/// How a test's broker differs from the default.
#[derive(Debug, Default, Clone)]
pub(crate) struct Options {
    pub(crate) arguments: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
    /// Another binary than the one of this build.
    pub(crate) binary: Option<String>,
}

impl Options {
    pub(crate) fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn binary(mut self, path: impl Into<String>) -> Self {
        self.binary = Some(path.into());
        self
    }
}

/// A running broker; killed when dropped.
#[derive(Debug)]
pub(crate) struct BrokerProcess {
    child: Child,
    pub(crate) listen: String,
    pub(crate) http: String,
    pub(crate) name: String,
}

impl BrokerProcess {
    /// The command that would start a broker on this folder.
    pub(crate) fn command(folder: &Path, options: &Options) -> Command {
        let binary = options.binary.as_deref();
        let mut command = Command::new(binary.unwrap_or(BUILT));
        command
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"])
            .arg(folder)
            .args(&options.arguments)
            .envs(options.variables.iter().cloned())
            .stdin(Stdio::null());
        command
    }

    /// The output of `mq-broker verify` for a folder, one object per line.
    pub(crate) fn verify(folder: &Path) -> Output {
        let mut command = Command::new(BUILT);
        command
            .args(["verify", "--output", "json", "--data-dir"])
            .arg(folder);
        command.output().unwrap()
    }

    pub(crate) fn start(folder: &Path) -> Self {
        Self::start_with(folder, &Options::default())
    }

    /// Starts a broker and waits for its `ready` line. Its log goes to the file [`log_path`].
    pub(crate) fn start_with(folder: &Path, options: &Options) -> Self {
        Self::try_start_with(folder, options).unwrap_or_else(|said| panic!("{said}"))
    }

    /// As [`Self::start_with`]; the error is the output of a broker that does not start.
    pub(crate) fn try_start_with(folder: &Path, options: &Options) -> Result<Self, String> {
        let log = log_path(folder);
        let stderr = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = Self::command(folder, options);
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let field = |name: &str| {
            let value = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            value
                .map(str::to_owned)
                .ok_or_else(|| format!("no `{name}` in {line:?}; log:\n{log}"))
        };
        assert!(line.is_empty() || line.starts_with("ready "), "{line:?}");
        let (listen, http, name) = match (field("listen="), field("http="), field("name=")) {
            (Ok(listen), Ok(http), Ok(name)) => (listen, http, name),
            (Err(said), ..) | (_, Err(said), _) | (.., Err(said)) => {
                child.kill().unwrap();
                child.wait().unwrap();
                return Err(said);
            }
        };
        Ok(Self {
            child,
            listen,
            http,
            name,
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, now.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; waits for the end of the process.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        // The broker itself ends a stop that takes 9.5 s, and says so by its exit status.
        self.exit_within(Duration::from_secs(30))
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &id])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Waits for the end of the process, which must come by itself.
    pub(crate) fn exit_within(&mut self, time: Duration) -> ExitStatus {
        let deadline = Instant::now() + time;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the broker still runs after {time:?}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// The value of a metric, given by its name with its labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{text}")).trim().parse().unwrap()
    }

    /// Status and body of `GET path`.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(&self.http).unwrap();
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap();
        let body = answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap();
        (status, body)
    }

    /// Resident memory, bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Where the log of a folder's broker goes.
pub(crate) fn log_path(folder: &Path) -> PathBuf {
    folder.with_extension("log")
}

/// Waits until `what` holds, at most a minute: a machine may be busy.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl FnMut() -> F) {
    eventually_within(Duration::from_secs(60), what, holds).await;
}

/// Waits until `what` holds, at most `time`.
pub(crate) async fn eventually_within<F: Future<Output = bool>>(
    time: Duration,
    what: &str,
    mut holds: impl FnMut() -> F,
) {
    let deadline = Instant::now() + time;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {time:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
