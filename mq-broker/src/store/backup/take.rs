//! Taking a backup.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use mq_common::ids::Lsn;

use super::manifest::{FileEntry, Manifest};
use super::{
    Error, MANIFEST, Stage, copy, fail, make_folder, make_parent, parent_of, read_through, sync_file,
    sync_folder, sync_folders,
};

/// Links to the files of one moment.
#[derive(Debug)]
pub struct Staged {
    /// The last entry of the checkpoint among them.
    pub lsn: Lsn,
    /// The files.
    pub stage: Stage,
}

/// Checks that a backup of this data folder may be written there.
///
/// # Errors
/// [`Error::Inside`], [`Error::Exists`], [`Error::CutShort`], [`Error::Relative`].
pub fn is_free(data: &Path, to: &Path) -> Result<(), Error> {
    if !to.is_absolute() || to.file_name().is_none() {
        return Err(Error::Relative { path: to.to_owned() });
    }
    let partial = partial(to);
    let real = resolved(data);
    // Also if the data folder has the very name of the backup while it is made.
    if resolved(to).starts_with(&real) || resolved(&partial).starts_with(&real) {
        return Err(Error::Inside {
            path: to.to_owned(),
            data: data.to_owned(),
        });
    }
    if fs::symlink_metadata(to).is_ok() {
        return Err(Error::Exists { path: to.to_owned() });
    }
    match fs::symlink_metadata(&partial) {
        Ok(_) => Err(Error::CutShort { path: partial }),
        Err(_) => Ok(()),
    }
}

/// Resolves the existing part of a path; the missing rest is appended by name.
fn resolved(path: &Path) -> PathBuf {
    let mut found = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            found.pop();
        } else {
            found.push(part);
        }
        found = found.canonicalize().unwrap_or(found);
    }
    found
}

/// Links or copies staged files to the destination of the backup, and completes it. `progress` is called with
/// the number of bytes read and may stop it. The stage is removed afterwards, however it ends.
///
/// # Errors
/// [`Error`]; then `<to>.partial` is removed as far as possible.
pub fn finish(
    to: &Path,
    broker: &str,
    staged: Staged,
    mut progress: impl FnMut(u64) -> Result<(), Error>,
) -> Result<Manifest, Error> {
    is_free(staged.stage.data(), to)?;
    // Not covered by the sync of the whole file system.
    make_folder(parent_of(to))?;
    let partial = partial(to);
    let made = fill(&partial, broker, &staged, &mut progress).and_then(|manifest| {
        fs::rename(&partial, to).map_err(fail("rename", &partial))?;
        sync_folder(parent_of(to))?;
        Ok(manifest)
    });
    if made.is_err() {
        // Best effort: it cannot be mistaken for a backup.
        drop(fs::remove_dir_all(&partial));
    }
    made
}

fn fill(
    partial: &Path,
    broker: &str,
    staged: &Staged,
    progress: &mut impl FnMut(u64) -> Result<(), Error>,
) -> Result<Manifest, Error> {
    let stage = staged.stage.folder();
    let mut files = Vec::with_capacity(staged.stage.files().len());
    for (path, bytes) in staged.stage.files().iter().cloned() {
        let (from, to) = (stage.join(&path), partial.join(&path));
        make_parent(&to)?;
        let (crc32c, found) = if fs::hard_link(&from, &to).is_ok() {
            let read = read_through(&to, bytes, |piece| progress(piece.len() as u64))?;
            sync_file(&to)?;
            read
        } else {
            copy(&from, &to, bytes, &mut *progress)?
        };
        if found != bytes {
            let reason = format!("has {found} bytes, {bytes} were expected");
            return Err(Error::Damaged { path: from, reason });
        }
        files.push(FileEntry { path, bytes, crc32c });
    }
    let taken = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let manifest = Manifest {
        broker: broker.to_owned(),
        lsn: staged.lsn,
        taken_ms: taken.map_or(0, |taken| u64::try_from(taken.as_millis()).unwrap_or(u64::MAX)),
        files,
    };
    let path = partial.join(MANIFEST);
    fs::write(&path, manifest.encode()).map_err(fail("write", &path))?;
    sync_file(&path)?;
    sync_folders(partial)?;
    Ok(manifest)
}

fn partial(to: &Path) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    to.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backup_goes_nowhere_below_the_data_folder_by_no_detour() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir_all(data.join("journal")).unwrap();
        std::os::unix::fs::symlink(&data, folder.path().join("other")).unwrap();
        for inside in [
            "data/backup",
            "data/journal/x/y",
            "other/backup",
            "missing/../data/x",
            "data",
        ] {
            let refused = is_free(&data, &folder.path().join(inside)).unwrap_err();
            assert!(matches!(refused, Error::Inside { .. }), "{inside}: {refused}");
        }
        for outside in ["backup", "data-2/backup", "other/../backup", "new/folder/backup"] {
            is_free(&data, &folder.path().join(outside)).unwrap();
        }
        let taken = is_free(&data, folder.path()).unwrap_err();
        assert!(matches!(taken, Error::Exists { .. }), "{taken}");
    }
}
