//! The locked data folder: the process that holds a [`Folder`] is the only one that writes in it. Everything
//! that opens data files takes one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, Lock, Mode};
use super::layout;

/// A locked data folder.
#[derive(Debug)]
pub struct Folder {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    _lock: Box<dyn Lock>,
}

/// Why a data folder could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process has locked it.
    #[error(
        "the data folder `{}` is in use by another process; stop that one, or name another folder with --data-dir",
        path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// It holds only part of a backup.
    #[error(
        "a backup is being restored into `{}`, or that was cut short; empty the folder and restore it again",
        path.display()
    )]
    HalfRestored {
        /// The folder.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot use the data folder `{}`: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Folder {
    /// Creates the folder if it is absent, and locks it for the lifetime of the result.
    ///
    /// # Errors
    /// [`FolderError::InUse`] when another process holds it; nothing was touched then.
    pub fn open(disk: Arc<dyn Disk>, path: &Path) -> Result<Arc<Self>, FolderError> {
        let fail = |source: io::Error| FolderError::Io {
            path: path.to_owned(),
            source,
        };
        disk.create_folder(path).map_err(fail)?;
        let lock = disk
            .lock(&layout::lock_file(path))
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => FolderError::InUse {
                    path: path.to_owned(),
                },
                _ => fail(error),
            })?;
        match disk.open(&layout::restoring_file(path), Mode::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
            Ok(_) => {
                return Err(FolderError::HalfRestored {
                    path: path.to_owned(),
                });
            }
        }
        disk.create_folder(&layout::journal_folder(path)).map_err(fail)?;
        Ok(Arc::new(Self {
            disk,
            path: path.to_owned(),
            _lock: lock,
        }))
    }

    /// Its disk.
    #[must_use]
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::StdDisk;

    #[test]
    fn s24_second_holder_is_refused_and_the_folder_is_named() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("data");
        let first = Folder::open(Arc::new(StdDisk), &path).unwrap();
        let error = Folder::open(Arc::new(StdDisk), &path).unwrap_err();
        assert!(matches!(error, FolderError::InUse { .. }));
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        drop(first);
        Folder::open(Arc::new(StdDisk), &path).unwrap();
    }
}
