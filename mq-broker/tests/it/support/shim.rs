//! Builds the C programs of `tests/shim` with gcc: the libraries that make syncs fail, or wait, or the clock
//! wrong in a broker process (`LD_PRELOAD` it; its variables are in its source), and the one that shows where
//! a file's blocks lie.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Path of the built library.
pub(crate) fn fail_sync() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("fail_sync.c", "fail_sync.so", &["-shared", "-fPIC", "-ldl"]))
}

/// Path of the library that makes syncs of a whole file system fail.
pub(crate) fn fail_syncfs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("fail_syncfs.c", "fail_syncfs.so", &["-shared", "-fPIC"]))
}

/// Path of the library that makes syncs wait.
pub(crate) fn slow_sync() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("slow_sync.c", "slow_sync.so", &["-shared", "-fPIC", "-ldl"]))
}

/// Path of the library that makes the wall clock wrong.
pub(crate) fn shift_clock() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("shift_clock.c", "shift_clock.so", &["-shared", "-fPIC", "-ldl"]))
}

/// What `extents.c` says of a file, line by line.
pub(crate) fn extents(file: &Path) -> Vec<String> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let program = BUILT.get_or_init(|| build("extents.c", "extents", &[]));
    let output = Command::new(program).arg(file).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn build(source: &str, target: &str, options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/shim")
        .join(source);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(target);
    // Built aside and renamed: other test processes may build it at the same time.
    let aside = target.with_extension(format!("{}.part", std::process::id()));
    let gcc = Command::new("gcc")
        .args(["-O1", "-Wall", "-Werror", "-o"])
        .args([&aside, &source])
        .args(options)
        .output()
        .expect("gcc is needed to build the tests' C programs");
    assert!(
        gcc.status.success(),
        "gcc: {}",
        String::from_utf8_lossy(&gcc.stderr)
    );
    std::fs::rename(&aside, &target).expect("rename what was built");
    target
}

#[test]
fn every_fifth_sync_fails_in_a_process_with_the_shim() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("failures");
    // `sync FILE` of coreutils calls fsync once for each file; the fifth one fails.
    let files: Vec<_> = (0..7).map(|n| folder.path().join(n.to_string())).collect();
    for file in &files {
        std::fs::write(file, b"x").unwrap();
    }
    let sync = Command::new("sync")
        .args(&files)
        .env("LD_PRELOAD", fail_sync())
        .env("FAIL_SYNC_LOG", &log)
        .output()
        .unwrap();
    assert!(!sync.status.success());
    let failures = std::fs::read_to_string(log).unwrap();
    assert_eq!(failures.lines().count(), 1, "{failures}");
    assert!(failures.starts_with("fsync 5 "), "{failures}");
}

#[test]
fn a_sync_of_a_whole_file_system_fails_in_a_process_with_the_shim_and_no_other_does() {
    let folder = tempfile::tempdir().unwrap();
    let sync = |option: &[&str]| {
        let mut sync = Command::new("sync");
        sync.args(option)
            .arg(folder.path())
            .env("LD_PRELOAD", fail_syncfs());
        sync.output().unwrap()
    };
    let failed = sync(&["--file-system"]);
    let text = String::from_utf8_lossy(&failed.stderr);
    assert!(
        !failed.status.success() && text.contains("Input/output error"),
        "{text}"
    );
    assert!(sync(&[]).status.success());
}
