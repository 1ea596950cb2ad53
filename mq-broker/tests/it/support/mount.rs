//! A file system of its own for a test's broker, small enough to be filled.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted tmpfs; gone when dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts one. Where the test may not mount, it fails and says how to run it: a full disk that was not
    /// tried is no full disk that works.
    pub(crate) fn of_megabytes(megabytes: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(
            mount.status.success(),
            "this test mounts a small tmpfs; run it as root, or as `unshare --map-root-user --mount cargo test ..`: {}",
            String::from_utf8_lossy(&mount.stderr)
        );
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Another program's file takes every byte that is free.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.path().join("ballast");
        let mut file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        for bytes in [1 << 16, 4096, 1] {
            let block = vec![1; bytes];
            while file.write_all(&block).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a broker that was just killed may still have files open.
        drop(Command::new("umount").arg("-l").arg(self.path()).status());
    }
}
