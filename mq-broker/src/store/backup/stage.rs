//! The stage: links to the files of one moment, in the data folder, so that they are in the same file system.
//!
//! Nothing in it is synced: a stage that a crash left is removed, and what goes into the backup is synced
//! there.
//!
//! The one invariant: it is removed when its [`Stage`] is dropped, however the backup ended. Otherwise every
//! file that the broker frees from then on would keep its space.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Error, copy_unsynced, fail, make_parent};
use crate::store::{FileRow, SegmentId, layout};

/// A stage; removed when dropped.
#[derive(Debug)]
pub struct Stage {
    data: PathBuf,
    /// Paths relative to the stage, and the number of bytes in use of each.
    files: Vec<(String, u64)>,
}

impl Stage {
    /// Links sealed segments of the journal and the queue files of a checkpoint, and copies files that are
    /// still written to. `open` is a segment that is not sealed: only for a broker that is not running. The
    /// caller adds the checkpoint, and makes sure that nothing is freed meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn make(
        data: &Path,
        segments: &[SegmentId],
        open: Option<SegmentId>,
        queue_files: &[FileRow],
    ) -> Result<Self, Error> {
        clear_stage(data)?;
        let mut stage = Self {
            data: data.to_owned(),
            files: Vec::new(),
        };
        for segment in segments {
            let path = layout::segment_file(data, *segment);
            if open == Some(*segment) {
                stage.copy(&path)?;
            } else {
                stage.link(&path, None)?;
            }
        }
        for row in queue_files.iter().filter(|row| !row.is_gone) {
            // Appended to, but the bytes up to the manifest's length never change.
            let bytes = u64::from(row.segment.bytes);
            stage.link(
                &layout::queue_data_file(data, &row.name, row.first, row.generation),
                Some(bytes),
            )?;
            match stage.copy(&layout::queue_index_file(
                data,
                &row.name,
                row.first,
                row.generation,
            )) {
                // It is rebuilt from the data.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                copied => copied?,
            }
        }
        stage.copy(&data.join("name"))?;
        Ok(stage)
    }

    /// The path for the copy of the checkpoint.
    #[must_use]
    pub fn checkpoint_file(&self) -> PathBuf {
        layout::checkpoint_file(&self.folder())
    }

    /// Adds the checkpoint, which was copied to [`Stage::checkpoint_file`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add_checkpoint(&mut self) -> Result<(), Error> {
        let copy = self.checkpoint_file();
        let bytes = fs::metadata(&copy).map_err(fail("look at", &copy))?.len();
        let name = copy.file_name().unwrap_or_default().to_string_lossy();
        self.files.push((name.into_owned(), bytes));
        Ok(())
    }

    /// Paths relative to the stage, and the number of bytes in use of each.
    #[must_use]
    pub fn files(&self) -> &[(String, u64)] {
        &self.files
    }

    pub(super) fn folder(&self) -> PathBuf {
        stage_folder(&self.data)
    }

    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    /// Links a file of which this many bytes are in use; all of them by default.
    fn link(&mut self, path: &Path, bytes: Option<u64>) -> Result<(), Error> {
        let target = self.place(path)?;
        let found = fs::metadata(path).map_err(fail("look at", path))?.len();
        let bytes = bytes.unwrap_or(found);
        match fs::hard_link(path, &target) {
            Err(error) if !has_links(&error) => {
                copy_unsynced(path, &target, bytes, |_| Ok(()))?;
            }
            // A copy would take as much space as the file, on the broker's own disk.
            linked => linked.map_err(fail("link", path))?,
        }
        self.add(path, bytes);
        Ok(())
    }

    /// Copies a file that may become shorter meanwhile: the bytes copied count.
    fn copy(&mut self, path: &Path) -> Result<(), Error> {
        let target = self.place(path)?;
        let found = fs::metadata(path).map_err(fail("look at", path))?.len();
        let (_, copied) = copy_unsynced(path, &target, found, |_| Ok(()))?;
        self.add(path, copied);
        Ok(())
    }

    fn place(&self, path: &Path) -> Result<PathBuf, Error> {
        let target = self.folder().join(self.inside(path));
        make_parent(&target)?;
        Ok(target)
    }

    fn add(&mut self, path: &Path, bytes: u64) {
        let inside = self.inside(path).to_string_lossy().into_owned();
        self.files.push((inside, bytes));
    }

    fn inside<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.data).unwrap_or(path)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = clear_stage(&self.data) {
            tracing::warn!(%error, "the stage of a backup could not be removed: its files keep their space until the next backup or start");
        }
    }
}

fn stage_folder(data: &Path) -> PathBuf {
    data.join("backup.partial")
}

/// Removes the stage of a backup that was killed.
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

/// Whether a link failed for another reason than that the file system does not support links.
fn has_links(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error(),
        Some(libc::EXDEV | libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data folder with a name and this one segment.
    fn data(folder: &Path) -> PathBuf {
        let data = folder.join("data");
        let segment = layout::segment_file(&data, SegmentId(1));
        make_parent(&segment).unwrap();
        fs::write(&segment, [7; 100]).unwrap();
        fs::write(data.join("name"), "b").unwrap();
        data
    }

    #[test]
    fn stage_is_gone_when_it_is_dropped_and_when_it_could_not_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let data = data(folder.path());
        let stage = Stage::make(&data, &[SegmentId(1)], None, &[]).unwrap();
        assert_eq!(stage.files().len(), 2);
        assert!(stage.folder().join("name").exists());
        drop(stage);
        assert!(!stage_folder(&data).exists());
        let missing = Stage::make(&data, &[SegmentId(1), SegmentId(2)], None, &[]).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }), "{missing}");
        assert!(!stage_folder(&data).exists());
    }

    #[test]
    fn backup_to_a_place_that_is_taken_leaves_no_stage() {
        let folder = tempfile::tempdir().unwrap();
        let data = data(folder.path());
        let stage = Stage::make(&data, &[SegmentId(1)], None, &[]).unwrap();
        let staged = super::super::Staged {
            lsn: mq_common::ids::Lsn(1),
            stage,
        };
        let refused = super::super::finish(folder.path(), "b", staged, |_| Ok(())).unwrap_err();
        assert!(matches!(refused, Error::Exists { .. }), "{refused}");
        assert!(!stage_folder(&data).exists());
    }

    #[test]
    fn only_a_file_system_without_links_is_copied_on() {
        let has_links = |code| has_links(&io::Error::from_raw_os_error(code));
        assert!(
            ![libc::EXDEV, libc::EPERM, libc::EOPNOTSUPP]
                .into_iter()
                .any(has_links)
        );
        assert!(
            [libc::ENOSPC, libc::EIO, libc::EMLINK, libc::EACCES]
                .into_iter()
                .all(has_links)
        );
    }
}
