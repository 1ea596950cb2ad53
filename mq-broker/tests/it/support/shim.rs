//! Builds the library that makes syncs fail in a broker process: `LD_PRELOAD` it. See `tests/shim/fail_sync.c` for its
//! variables.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Path of the built library.
pub(crate) fn fail_sync() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/fail_sync.c");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fail_sync.so");
        // Built aside and renamed: other test processes may build it at the same time.
        let aside = target.with_extension(format!("{}.so", std::process::id()));
        let gcc = Command::new("gcc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&aside, &source])
            .arg("-ldl")
            .output()
            .expect("gcc is needed to build the failing library");
        assert!(
            gcc.status.success(),
            "gcc: {}",
            String::from_utf8_lossy(&gcc.stderr)
        );
        std::fs::rename(&aside, &target).expect("rename the library");
        target
    })
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
