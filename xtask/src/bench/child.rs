//! A server started for a bench: its `ready` line is awaited, and it is ended when the value is dropped.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::run::{Failure, Outcome};

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    ready: String,
}

impl Server {
    /// Starts it and waits for its first line on stdout, which must begin with `ready`.
    pub(super) fn start(command: &mut Command) -> Outcome<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::new(format!("cannot run `{program}`: {error}")))?;
        let mut ready = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut ready)?;
        }
        let server = Self { child, ready };
        if server.ready.starts_with("ready ") {
            Ok(server)
        } else {
            Err(Failure::new(format!(
                "`{program}` did not say `ready`, but `{}`",
                server.ready.trim()
            )))
        }
    }

    /// What it listens on.
    pub(super) fn listen(&self) -> &str {
        let word = self
            .ready
            .split_whitespace()
            .find_map(|word| word.strip_prefix("listen="));
        word.unwrap_or_default()
    }

    /// Its process.
    pub(super) fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
