//! `cargo xtask lint`: formatting, clippy and rustdoc; any warning is an error.

use crate::run::{Failure, Outcome, cargo, show};
use crate::workspace;

/// Runs all three, in order of cost.
pub(crate) fn lint(arguments: &[String]) -> Outcome {
    if let Some(argument) = arguments.first() {
        return Err(Failure::usage(format!(
            "lint takes no arguments, got `{argument}`"
        )));
    }
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let mut probe = cargo();
        let found = probe
            .args([tool, "--version"])
            .output()
            .is_ok_and(|output| output.status.success());
        if !found {
            return Err(Failure::new(format!(
                "`cargo {tool}` is not installed; run `rustup component add {component}`"
            )));
        }
    }
    let root = workspace::root();
    show(
        "format",
        cargo().args(["fmt", "--all", "--check"]).current_dir(&root),
    )?;
    show(
        "clippy",
        cargo()
            .args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--",
                "-D",
                "warnings",
            ])
            .current_dir(&root),
    )?;
    show(
        "docs",
        cargo()
            .args(["doc", "--workspace", "--no-deps", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings")
            .current_dir(&root),
    )
}
