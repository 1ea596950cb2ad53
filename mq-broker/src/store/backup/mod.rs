//! Backups: a copy of a data folder at one entry of the journal, and a new data folder made of one.
//!
//! A backup is taken in two steps. A [`Stage`] quickly links the files of one moment, while its creator keeps
//! them from being freed; [`finish`] links or copies them to the destination, computes their checksums, and
//! writes the manifest. A backup is complete when its folder has its final name: until then it is called
//! `<name>.partial`. A folder that is being restored contains the file `restoring`, with which no broker
//! starts.

mod manifest;
mod restore;
mod stage;
mod take;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

pub use self::manifest::{FileEntry, Manifest};
pub use self::restore::restore;
pub use self::stage::{Stage, clear_stage};
pub use self::take::{Staged, finish, is_free};
use super::disk::{Disk as _, StdDisk};

/// The manifest's file in a backup.
const MANIFEST: &str = "manifest";
/// Bytes read at once.
const PIECE_BYTES: usize = 1 << 20;

/// Why a backup could not be taken or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The destination exists already.
    #[error("`{}` exists already; name another folder for the backup", path.display())]
    Exists {
        /// What exists.
        path: PathBuf,
    },
    /// The destination is in the data folder, so it would be lost together with the data.
    #[error("`{}` is in the data folder `{}`, which belongs to the broker alone; name a folder outside of it for the backup", path.display(), data.display())]
    Inside {
        /// As given.
        path: PathBuf,
        /// The data folder.
        data: PathBuf,
    },
    /// An earlier backup was interrupted.
    #[error("`{}` is left of a backup that was interrupted; remove it, or name another folder", path.display())]
    CutShort {
        /// The remains.
        path: PathBuf,
    },
    /// The broker resolves no relative paths, because its working directory may be another.
    #[error("`{}` is no absolute path; the backup is written on the broker's machine, name its folder in full", path.display())]
    Relative {
        /// As given.
        path: PathBuf,
    },
    /// There is no backup.
    #[error("`{}` holds no backup: its `manifest` {reason}", path.display())]
    NoBackup {
        /// The folder.
        path: PathBuf,
        /// What is wrong with the manifest.
        reason: String,
    },
    /// A file is not as it was saved.
    #[error("the backup is damaged: `{}` {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// Files would be overwritten.
    #[error("`{}` is not empty; a backup is restored into a new or empty folder only, name another one with --data-dir", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The broker is stopping.
    #[error("the broker is stopping; nothing is left of the backup")]
    Stopped,
    /// The system refused.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io {
        /// The operation.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn fail(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        operation,
        path,
        source,
    }
}

/// Reads `bytes` bytes of a file, or fewer if it has fewer, and passes them on in pieces; returns their
/// checksum and number.
fn read_through(
    path: &Path,
    bytes: u64,
    mut each: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(u32, u64), Error> {
    let mut file = File::open(path).map_err(fail("open", path))?.take(bytes);
    let mut piece = vec![0; PIECE_BYTES];
    let (mut checksum, mut read) = (0, 0);
    loop {
        let found = match file.read(&mut piece) {
            Ok(0) => return Ok((checksum, read)),
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(fail("read", path)(error)),
        };
        checksum = crc32c::crc32c_append(checksum, &piece[..found]);
        read += found as u64;
        each(&piece[..found])?;
    }
}

/// Copies `bytes` bytes of a file into a new one, synced; returns their checksum and number.
fn copy(
    from: &Path,
    to: &Path,
    bytes: u64,
    each: impl FnMut(u64) -> Result<(), Error>,
) -> Result<(u32, u64), Error> {
    let copied = copy_unsynced(from, to, bytes, each)?;
    sync_file(to)?;
    Ok(copied)
}

/// The same for a file that may be lost in a power loss.
fn copy_unsynced(
    from: &Path,
    to: &Path,
    bytes: u64,
    mut each: impl FnMut(u64) -> Result<(), Error>,
) -> Result<(u32, u64), Error> {
    let mut file = File::create_new(to).map_err(fail("create", to))?;
    read_through(from, bytes, |piece| {
        file.write_all(piece).map_err(fail("write", to))?;
        each(piece.len() as u64)
    })
}

fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(fail("sync", folder))
}

fn sync_file(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(fail("sync", path))
}

/// Makes the names in this folder and all folders below it durable.
fn sync_folders(folder: &Path) -> Result<(), Error> {
    for found in fs::read_dir(folder).map_err(fail("list", folder))? {
        let found = found.map_err(fail("list", folder))?;
        if found
            .file_type()
            .map_err(fail("look at", &found.path()))?
            .is_dir()
        {
            sync_folders(&found.path())?;
        }
    }
    sync_folder(folder)
}

fn make_parent(path: &Path) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(fail("create", parent))
}

/// Creates a folder and its parents, with durable names.
fn make_folder(path: &Path) -> Result<(), Error> {
    StdDisk.create_folder(path).map_err(fail("create", path))
}

/// The parent folder of a path.
fn parent_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}
