//! `mq` as a person or a script runs it.

use std::io::Write;
use std::process::{Command, Stdio};

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
    // A thread of its own, because `mq` may write before it has read all. One that wants no input has closed it.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Ran {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
