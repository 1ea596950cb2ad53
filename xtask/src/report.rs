//! The output for people; the only file of this crate that prints. Steps and failures go to stderr, results
//! to stdout.

use std::io::IsTerminal;

fn paint(code: &str, text: &str) -> String {
    if std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Plain text on stdout.
#[expect(clippy::print_stdout, reason = "this is the result")]
pub(crate) fn text(text: &str) {
    println!("{}", text.trim_end_matches('\n'));
}

/// Announces a step.
#[expect(clippy::print_stderr, reason = "progress is for people")]
pub(crate) fn step(text: &str) {
    eprintln!("{} {text}", paint("1;36", "==>"));
}

/// A remark about the current step.
#[expect(clippy::print_stderr, reason = "progress is for people")]
pub(crate) fn note(text: &str) {
    eprintln!("    {text}");
}

/// Why the command failed.
#[expect(clippy::print_stderr, reason = "errors are for people")]
pub(crate) fn failure(text: &str) {
    eprintln!("{} {text}", paint("1;31", "xtask:"));
}
