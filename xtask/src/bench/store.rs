//! The store bench: the bare disk under the build folder, the journal and the store without a network, and
//! how long a broker takes to start. Fields of each row: the figure's name and its values.

use serde_json::Value;

use super::Options;
use super::folder::Folder;
use super::startup::startup;
use crate::report;
use crate::run::{Failure, Outcome, capture, cargo, show};
use crate::workspace::{self, Workspace};

/// Runs the program that measures the disk and the journal.
pub(super) fn run(options: Options) -> Outcome {
    let target = Workspace::load()?.target;
    show(
        "build",
        cargo()
            .args([
                "build",
                "--release",
                "--locked",
                "--package",
                "mq-broker",
                "--package",
                "mq-client",
                "--package",
                "examples",
            ])
            .args(["--bin", "mq-broker", "--bin", "mq", "--bin", "store_limits"])
            .current_dir(workspace::root()),
    )?;
    let folder = Folder::new(&target)?;
    report::step("bench: the disk under the build folder, then the journal");
    let mut rows = limits(&target, &folder, options, false)?;
    report::step("bench: the start of a broker");
    rows.extend(startup(&target.join("release"), folder.path(), options)?);
    let cell = |row: &Value, name: &str| match &row[name] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let names = [
        "figure",
        "from",
        "write_bytes",
        "record_bytes",
        "records",
        "group",
        "queues",
        "synced",
        "clean",
        "mb_per_s",
        "msgs_per_s",
        "syncs_per_s",
        "turns_per_s",
        "p50_us",
        "p99_us",
        "ms",
    ];
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| names.iter().map(|name| cell(row, name)).collect())
        .collect();
    options.table(
        "The disk, the journal and the store on it, and the start",
        &names,
        &lines,
    );
    Ok(())
}

/// Runs `store_limits` in `folder` and emits each figure at once.
pub(super) fn limits(
    target: &std::path::Path,
    folder: &Folder,
    options: Options,
    bare: bool,
) -> Outcome<Vec<Value>> {
    let mut command = std::process::Command::new(target.join("release/store_limits"));
    command
        .arg("--folder")
        .arg(folder.path())
        .args(["--seconds", if options.quick { "0.5" } else { "2" }]);
    if bare {
        command.arg("--bare");
    }
    let text = capture(&mut command)?;
    let rows: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::new(format!("store_limits printed no JSON: {error}")))?;
    rows.iter().for_each(|row| options.emit(row));
    Ok(rows)
}
