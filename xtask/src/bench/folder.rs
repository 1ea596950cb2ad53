//! A folder for one bench, below the build folder: /tmp is memory on many machines, and memory is not to be measured.

use std::fs;
use std::path::{Path, PathBuf};

use crate::run::Outcome;

/// Removed when dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A new one below `target`.
    pub(super) fn new(target: &Path) -> Outcome<Self> {
        let path = target.join(format!("bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed lies below target/ and goes with it.
        drop(fs::remove_dir_all(&self.path));
    }
}
