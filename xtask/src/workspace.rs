//! The workspace as cargo describes it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::run::{Failure, Outcome, capture, cargo};

/// The workspace's root folder: the parent of xtask's own.
pub(crate) fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// One member of the workspace.
#[derive(Debug)]
pub(crate) struct Member {
    /// Its package name.
    pub(crate) name: String,
    /// Its Cargo.toml.
    pub(crate) manifest: PathBuf,
    /// Members it depends on, with `true` for those that only its tests use.
    pub(crate) arrows: Vec<(String, bool)>,
    /// Crates from outside that it depends on.
    pub(crate) outside: Vec<String>,
}

/// The result of `cargo metadata`.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// All members.
    pub(crate) members: Vec<Member>,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Runs `cargo metadata`.
    pub(crate) fn load() -> Outcome<Self> {
        let mut command = cargo();
        command
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(root());
        let text = capture(&mut command)?;
        let metadata: Value = serde_json::from_str(&text)
            .map_err(|error| Failure::new(format!("unexpected output of `cargo metadata`: {error}")))?;
        let target = PathBuf::from(text_of(&metadata["target_directory"]));
        let packages = metadata["packages"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let names: Vec<&str> = packages.iter().map(|package| text_of(&package["name"])).collect();
        let members = packages.iter().map(|package| member(package, &names)).collect();
        Ok(Self { members, target })
    }
}

fn member(package: &Value, names: &[&str]) -> Member {
    let dependencies = package["dependencies"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let name = |dependency: &Value| text_of(&dependency["name"]).to_owned();
    let (ours, outside): (Vec<_>, Vec<_>) = dependencies
        .iter()
        .partition(|dependency| names.contains(&text_of(&dependency["name"])));
    Member {
        name: text_of(&package["name"]).to_owned(),
        manifest: PathBuf::from(text_of(&package["manifest_path"])),
        arrows: ours
            .into_iter()
            .map(|dependency| (name(dependency), dependency["kind"] == "dev"))
            .collect(),
        outside: outside.into_iter().map(name).collect(),
    }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
