//! A folder for one bench, inside the build folder: on many machines /tmp is in memory, which must not be
//! measured.

use std::fs;
use std::path::{Path, PathBuf};

use crate::run::Outcome;

/// Removed when dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Creates a new one inside `target`.
    pub(super) fn new(target: &Path) -> Outcome<Self> {
        let path = target.join(format!("bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is inside target/ and is deleted with it.
        drop(fs::remove_dir_all(&self.path));
    }
}
