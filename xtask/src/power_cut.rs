//! `cargo xtask power-cut`: builds, then runs `mq-broker/tests/power_cut`: a real broker on a real file
//! system whose power is cut at random moments.

use crate::run::{Failure, Outcome, cargo, show};
use crate::workspace::{self, Workspace};

/// The required programs, and the packages that contain them.
const NEEDED: [&str; 4] = [
    "/dev/fuse",
    "/dev/loop-control",
    "/sbin/mkfs.ext4",
    "/sbin/losetup",
];

/// Passes its arguments on to the run.
pub(crate) fn power_cut(arguments: &[String]) -> Outcome {
    for path in NEEDED {
        if !std::path::Path::new(path).exists() {
            return Err(Failure::new(format!(
                "there is no `{path}`: cuts of the power need Linux with FUSE, loop devices and e2fsprogs, and root"
            )));
        }
    }
    show(
        "build",
        cargo()
            .args(["build", "--locked", "--package", "mq-broker"])
            .args(["--bin", "mq-broker", "--example", "power_cut"])
            .current_dir(workspace::root()),
    )?;
    let folder = Workspace::load()?.target.join("debug");
    let mut run = std::process::Command::new(folder.join("examples/power_cut"));
    run.arg("--broker").arg(folder.join("mq-broker")).args(arguments);
    show("power-cut", &mut run)
}
