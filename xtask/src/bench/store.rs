//! The store bench: what the bare disk under the build folder does, and what the journal makes of it, without a network.

use serde_json::Value;

use super::Options;
use super::folder::Folder;
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
                "examples",
                "--bin",
                "store_limits",
            ])
            .current_dir(workspace::root()),
    )?;
    let folder = Folder::new(&target)?;
    report::step("bench: the disk under the build folder, then the journal");
    let rows = limits(&target, &folder, options, false)?;
    let cell = |row: &Value, name: &str| match &row[name] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let names = [
        "figure",
        "write_bytes",
        "body_bytes",
        "group",
        "synced",
        "mb_per_s",
        "syncs_per_s",
        "commands_per_s",
        "turns_per_s",
        "p50_us",
        "p99_us",
    ];
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| names.iter().map(|name| cell(row, name)).collect())
        .collect();
    options.table("The disk, and the journal on it", &names, &lines);
    Ok(())
}

/// The figures of `store_limits` in `folder`; each is emitted as it comes.
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
