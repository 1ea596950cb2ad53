//! Tests of `tools/protoc`: a build needs no protoc of the system.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::on_path;
use crate::workspace::root;

/// A PATH with the programs that the script calls, but without protoc.
fn path_without_protoc() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("hc-mq-path-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for tool in ["uname", "chmod"] {
        let link = folder.join(tool);
        if !link.exists() {
            symlink(on_path(tool).unwrap(), link).unwrap();
        }
    }
    folder
}

#[test]
fn protoc_of_the_build_is_the_one_that_comes_with_a_dependency() {
    let path = path_without_protoc();
    // -x prints the program that it executes.
    let mut script = Command::new("/bin/sh");
    script.arg("-x").arg(root().join("tools/protoc")).arg("--version");
    script.env_clear().env("PATH", &path);
    for name in ["HOME", "CARGO_HOME"] {
        if let Some(value) = std::env::var_os(name) {
            script.env(name, value);
        }
    }
    let output = script.output().unwrap();
    fs::remove_dir_all(&path).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        String::from_utf8_lossy(&output.stdout).starts_with("libprotoc "),
        "{output:?}"
    );
    let becomes = said.lines().last().unwrap_or_default();
    assert!(
        becomes.starts_with("+ exec ") && becomes.contains("/protoc-bin-vendored-"),
        "{said}"
    );
}

#[test]
fn build_scripts_get_that_protoc_from_every_folder() {
    // Set by cargo from .cargo/config.toml for everything it runs, including this test.
    let protoc = std::env::var("PROTOC").expect("cargo sets PROTOC; run this test through cargo");
    assert!(Path::new(&protoc).is_absolute(), "{protoc}");
    assert_eq!(
        fs::canonicalize(&protoc).unwrap(),
        fs::canonicalize(root().join("tools/protoc")).unwrap()
    );
}
