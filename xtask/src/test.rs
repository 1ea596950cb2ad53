//! `cargo xtask test`: everything a change must pass, from a fresh machine with Rust, gcc and apt.

use std::ffi::OsString;
use std::path::Path;

use crate::run::{Failure, Outcome, cargo, on_path, show};
use crate::workspace::Workspace;
use crate::{tools, workspace};

/// Fetches the tools, builds once, runs all tests. Arguments are passed to `cargo test` to select tests.
pub(crate) fn test(arguments: &[String]) -> Outcome {
    if on_path("gcc").is_none() && on_path("cc").is_none() {
        return Err(Failure::new(
            "no C compiler on PATH; tests build a small C library: install gcc",
        ));
    }
    let root = workspace::root();
    let target = Workspace::load()?.target;
    let etcd = tools::etcd(&target)?;
    tools::python3(&target)?;
    tools::postgres(&target)?;
    let path = path_with(&etcd)?;

    let mut selection: Vec<String> = arguments.to_vec();
    if !arguments
        .iter()
        .any(|argument| argument == "-p" || argument.starts_with("--package"))
    {
        selection.insert(0, "--workspace".to_owned());
    }
    if arguments.is_empty() {
        // The same features as `cargo test --workspace`, so that nothing is compiled twice: binaries that
        // tests start as child processes come from here.
        show(
            "build",
            cargo()
                .args(["build", "--workspace", "--all-targets", "--locked"])
                .current_dir(&root),
        )?;
    }
    show(
        "test",
        cargo()
            .args(["test", "--locked"])
            .args(&selection)
            .env("PATH", path)
            .current_dir(&root),
    )
}

/// PATH with the folder of `program` in front, so that tests that look there find it too.
fn path_with(program: &Path) -> Outcome<OsString> {
    let folder = program.parent().unwrap_or(program).to_owned();
    let old = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&old)))
        .map_err(|error| Failure::new(format!("PATH cannot be extended: {error}")))
}
