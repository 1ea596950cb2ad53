//! Taking a backup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mq_common::ids::Lsn;

use super::manifest::{FileEntry, Manifest};
use super::{
    Error, MANIFEST, copy, fail, make_parent, parent_of, read_through, sync_file, sync_folder, sync_folders,
};
use crate::store::{FileRow, SegmentId, layout};

/// Files of one moment, under second names.
#[derive(Debug)]
pub struct Staged {
    /// The last entry of the checkpoint among them.
    pub lsn: Lsn,
    /// Paths below the stage, and how many bytes of each count.
    pub files: Vec<(String, u64)>,
}

/// Where files get their second names: in the data folder, so that it is the same file system.
#[must_use]
pub fn stage_folder(data: &Path) -> PathBuf {
    data.join("backup.partial")
}

/// Removes what an earlier backup left of its stage.
///
/// # Errors
/// As the operating system says.
pub fn clear_stage(data: &Path) -> Result<(), Error> {
    let stage = stage_folder(data);
    match fs::remove_dir_all(&stage) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail("remove", &stage)(error)),
        _ => Ok(()),
    }
}

/// Bytes of a file.
///
/// # Errors
/// As the operating system says.
pub fn bytes_of(path: &Path) -> Result<u64, Error> {
    Ok(fs::metadata(path).map_err(fail("look at", path))?.len())
}

/// Whether a backup may be written there.
///
/// # Errors
/// [`Error::Exists`], [`Error::CutShort`], [`Error::Relative`].
pub fn is_free(to: &Path) -> Result<(), Error> {
    if !to.is_absolute() || to.file_name().is_none() {
        return Err(Error::Relative { path: to.to_owned() });
    }
    if fs::symlink_metadata(to).is_ok() {
        return Err(Error::Exists { path: to.to_owned() });
    }
    let partial = partial(to);
    match fs::symlink_metadata(&partial) {
        Ok(_) => Err(Error::CutShort { path: partial }),
        Err(_) => Ok(()),
    }
}

/// Gives sealed segments of the journal and the queue files of a checkpoint a second name below [`stage_folder`], and
/// copies what is still written to. `open` is a segment that is not sealed: only of a broker that does not run. The
/// caller adds the checkpoint, `state.db`, and sees to it that nothing is freed meanwhile.
///
/// # Errors
/// [`Error::Io`].
pub fn stage(
    data: &Path,
    segments: &[SegmentId],
    open: Option<SegmentId>,
    queue_files: &[FileRow],
) -> Result<Vec<(String, u64)>, Error> {
    clear_stage(data)?;
    let stage = stage_folder(data);
    let mut files = Vec::new();
    let mut put = |path: PathBuf, bytes: Option<u64>, may_change: bool| -> Result<(), Error> {
        let inside = path.strip_prefix(data).unwrap_or(&path);
        let target = stage.join(inside);
        make_parent(&target)?;
        let found = fs::metadata(&path).map_err(fail("look at", &path))?.len();
        let bytes = bytes.unwrap_or(found);
        if may_change || fs::hard_link(&path, &target).is_err() {
            copy(&path, &target, bytes, |_| Ok(()))?;
        }
        files.push((inside.to_string_lossy().into_owned(), bytes));
        Ok(())
    };
    for segment in segments {
        put(layout::segment_file(data, *segment), None, open == Some(*segment))?;
    }
    for row in queue_files.iter().filter(|row| !row.is_gone) {
        // Appended to, but what lies before the manifest's length never changes.
        let bytes = u64::from(row.segment.bytes);
        put(
            layout::queue_data_file(data, &row.name, row.first),
            Some(bytes),
            false,
        )?;
        let index = layout::queue_index_file(data, &row.name, row.first);
        if index.exists() {
            put(index, None, true)?;
        }
    }
    put(data.join("name"), None, true)?;
    Ok(files)
}

/// Brings staged files to where the backup goes, and makes it whole. `progress` is told of bytes as they are read; it
/// may end it.
///
/// # Errors
/// [`Error`]; then `<to>.partial` is removed as far as possible.
pub fn finish(
    data: &Path,
    to: &Path,
    broker: &str,
    staged: Staged,
    mut progress: impl FnMut(u64) -> Result<(), Error>,
) -> Result<Manifest, Error> {
    is_free(to)?;
    let partial = partial(to);
    let made = fill(&stage_folder(data), &partial, broker, staged, &mut progress).and_then(|manifest| {
        fs::rename(&partial, to).map_err(fail("rename", &partial))?;
        sync_folder(parent_of(to))?;
        Ok(manifest)
    });
    if made.is_err() {
        // Best effort: it cannot pass for a backup.
        drop(fs::remove_dir_all(&partial));
    }
    clear_stage(data)?;
    made
}

fn fill(
    stage: &Path,
    partial: &Path,
    broker: &str,
    staged: Staged,
    progress: &mut impl FnMut(u64) -> Result<(), Error>,
) -> Result<Manifest, Error> {
    let mut files = Vec::with_capacity(staged.files.len());
    for (path, bytes) in staged.files {
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
