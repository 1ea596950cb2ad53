//! Running other programs: they are shown and timed, and a failure becomes one sentence.

use std::ffi::OsStr;
use std::fmt;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::report;

/// Why a command of xtask failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The message for people.
    pub(crate) message: String,
    /// The exit status: 1 = it failed, 2 = wrong arguments.
    pub(crate) exit: u8,
}

impl Failure {
    /// The command failed.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            exit: 1,
        }
    }

    /// The command has wrong arguments.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            exit: 2,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// What the commands return.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// The cargo that runs this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Build scripts and tests must use the same toolchain, and never wait for input.
    command.stdin(Stdio::null());
    command
}

/// The command as a person would type it.
fn line(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> = std::iter::once(name)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

/// Runs `command` with its output shown.
pub(crate) fn show(title: &str, command: &mut Command) -> Outcome {
    let line = line(command);
    report::step(&format!("{title}: {line}"));
    let started = Instant::now();
    let status = command
        .status()
        .map_err(|error| Failure::new(format!("cannot run `{line}`: {error}")))?;
    if !status.success() {
        return Err(Failure::new(format!("`{line}` failed ({status})")));
    }
    report::note(&format!("done in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// Runs `command` and returns its stdout; stderr is shown.
pub(crate) fn capture(command: &mut Command) -> Outcome<String> {
    let line = line(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure::new(format!("cannot run `{line}`: {error}")))?;
    if !output.status.success() {
        return Err(Failure::new(format!("`{line}` failed ({})", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a program of this name is on PATH, if it is.
pub(crate) fn on_path(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
