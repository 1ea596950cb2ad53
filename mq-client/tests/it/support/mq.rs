//! `mq` as a person or a script runs it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};

use serde_json::Value;

/// How a run of `mq` ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// It must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, 0, "{self:#?}");
        self
    }

    /// It must have ended with this status and have said this on stderr.
    #[track_caller]
    pub(crate) fn fails(self, status: i32, words: &str) -> Self {
        assert_eq!(self.status, status, "{self:#?}");
        assert!(self.stderr.contains(words), "`{words}` is missing in {self:#?}");
        self
    }

    /// Its lines, cut at tabs.
    pub(crate) fn rows(&self) -> Vec<Vec<&str>> {
        self.stdout
            .lines()
            .map(|line| line.split('\t').collect())
            .collect()
    }

    /// Its lines as JSON objects.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
            .collect()
    }
}

/// A run of `mq` that goes on; killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    /// `mq --broker ADDRESS ARGUMENTS..`, with nothing on stdin.
    pub(crate) fn start(broker: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mq"))
            .args(["--broker", broker])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stderr: BufReader::new(child.stderr.take().unwrap()),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// Waits for its next line on stdout.
    pub(crate) fn line(&mut self) -> String {
        next_line(&mut self.stdout)
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Waits until it says this on stderr.
    pub(crate) fn says(&mut self, words: &str) -> String {
        loop {
            let line = next_line(&mut self.stderr);
            assert!(!line.is_empty(), "it ended without `{words}`");
            if line.contains(words) {
                return line;
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn next_line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line
}

/// `mq --broker ADDRESS ARGUMENTS..` without input.
pub(crate) fn mq(broker: &str, arguments: &[&str]) -> Ran {
    mq_with_input(broker, arguments, b"")
}

/// The same with this on stdin.
pub(crate) fn mq_with_input(broker: &str, arguments: &[&str], input: &[u8]) -> Ran {
    mq_in(["--broker", broker], arguments, input)
}

/// The same in a cluster that is named as `--broker A,B` or `--registry URL`.
pub(crate) fn mq_in(cluster: [&str; 2], arguments: &[&str], input: &[u8]) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mq"))
        .args(cluster)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A thread of its own, because `mq` may write before it has read all. One that wants no input has closed
    // it.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Ran {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
