//! A server started for a bench: its `ready` line is awaited, and it is killed when the value is dropped.

use std::io::{BufRead, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::run::{Failure, Outcome};

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    ready: String,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Server {
    /// Starts it and waits for its first line on stdout, which must start with `ready`.
    pub(super) fn start(command: &mut Command) -> Outcome<Self> {
        Self::start_with(command, Stdio::null())
    }

    /// The same for a server that ends by itself when its stdin ends.
    pub(super) fn start_to_finish(command: &mut Command) -> Outcome<Self> {
        Self::start_with(command, Stdio::piped())
    }

    fn start_with(command: &mut Command, stdin: Stdio) -> Outcome<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::new(format!("cannot run `{program}`: {error}")))?;
        let mut ready = String::new();
        let mut stdout = child.stdout.take().map(BufReader::new);
        if let Some(stdout) = &mut stdout {
            stdout.read_line(&mut ready)?;
        }
        let server = Self { child, ready, stdout };
        if server.ready.starts_with("ready ") {
            Ok(server)
        } else {
            Err(Failure::new(format!(
                "`{program}` did not say `ready`, but `{}`",
                server.ready.trim()
            )))
        }
    }

    /// The address it listens on.
    pub(super) fn listen(&self) -> &str {
        self.word("listen=")
    }

    /// The address of its metrics; empty if it does not report one.
    pub(super) fn http(&self) -> &str {
        self.word("http=")
    }

    fn word(&self, name: &str) -> &str {
        let word = self
            .ready
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name));
        word.unwrap_or_default()
    }

    /// Closes its stdin, waits for its end, and returns the rest of its stdout.
    pub(super) fn finish(mut self) -> Outcome<String> {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        if let Some(stdout) = &mut self.stdout {
            stdout.read_to_string(&mut rest)?;
        }
        let status = self.child.wait()?;
        if status.success() {
            Ok(rest)
        } else {
            Err(Failure::new(format!("a server ended with {status}")))
        }
    }

    /// Sends SIGTERM and waits for its end.
    pub(super) fn terminate(mut self) -> Outcome {
        let sent = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()?;
        let status = self.child.wait()?;
        match (sent.success(), status.success()) {
            (true, true) => Ok(()),
            _ => Err(Failure::new(format!("a server ended with {status}"))),
        }
    }

    /// Its process id.
    pub(super) fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
