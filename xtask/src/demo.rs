//! `cargo xtask demo`: builds and runs the demo in `examples/src/bin/demo/`.

use crate::run::{Outcome, cargo, show};
use crate::workspace::{self, Workspace};

/// Builds with optimisation, because the demo prints throughput; arguments go to the demo.
pub(crate) fn demo(arguments: &[String]) -> Outcome {
    let root = workspace::root();
    show(
        "build",
        cargo()
            .args(["build", "--release", "--locked"])
            .args(["--package", "mq-broker", "--package", "examples"])
            .args(["--bin", "mq-broker", "--bin", "demo"])
            .current_dir(&root),
    )?;
    let folder = Workspace::load()?.target.join("release");
    let mut demo = std::process::Command::new(folder.join("demo"));
    // Runs in the current folder, so that `--input FILE` is relative to it.
    demo.arg("--broker-binary")
        .arg(folder.join("mq-broker"))
        .args(arguments);
    show("demo", &mut demo)
}
