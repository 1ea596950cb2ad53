//! Freeing sealed segments: the file becomes a spare or is removed. The caller guarantees that nothing needs
//! the segment, that the checkpoint says so, and that no reader uses it.
//!
//! In this order, so that a crash between any two steps loses nothing: the file is renamed, the new name is
//! made durable, and only then is its content overwritten with zeros. A file that also has another name (a
//! backup) only loses this one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ahead::Shared;
use super::segment::poison;
use crate::log::Poisoned;
use crate::store::disk::{Mode, lacks_descriptors};
use crate::store::{SegmentId, layout};

/// What happened to a freed segment's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freed {
    /// It will be a spare as soon as it is filled with zeros.
    Recycled,
    /// It was unlinked: there are enough spares, or it has other names.
    Unlinked,
}

/// Why a segment could not be freed.
#[derive(Debug, thiserror::Error)]
pub enum FreeError {
    /// The file is unchanged; freeing it may be retried.
    #[error("cannot free `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// A sync failed: the process must stop.
    #[error(transparent)]
    Poisoned(Poisoned),
}

/// Frees sealed segments. Works without holding the log.
#[derive(Debug, Clone)]
pub struct Recycler {
    shared: Arc<Shared>,
}

impl Recycler {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
        }
    }

    /// The sealed segments that have a file, in order: all but the one being written.
    #[must_use]
    pub fn sealed(&self) -> Vec<SegmentId> {
        self.shared.lock().sealed.iter().copied().collect()
    }

    /// How many segments there are, with the one being written.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.shared.lock().sealed.len() + 1
    }

    /// Spares that are ready to be written.
    #[must_use]
    pub fn spares(&self) -> usize {
        self.shared.lock().ready.len()
    }

    /// Gives up one spare for its space, if one is ready: a checkpoint may need it on a full disk.
    ///
    /// # Errors
    /// The operating system's error; the spare is kept.
    pub fn give_up_spare(&self) -> io::Result<bool> {
        let Some(spare) = self.shared.lock().ready.pop() else {
            return Ok(false);
        };
        if let Err(error) = self.shared.folder.disk().remove(&spare) {
            self.shared.lock().ready.push(spare);
            return Err(error);
        }
        Ok(true)
    }

    /// Frees a sealed segment. Its name is durably gone when this returns. Blocks for a sync of the folder.
    ///
    /// # Errors
    /// [`FreeError`].
    pub fn free(&self, segment: SegmentId) -> Result<Freed, FreeError> {
        let shared = &*self.shared;
        let path = layout::segment_file(shared.folder.path(), segment);
        let disk = shared.folder.disk();
        let links = match disk.open(&path, Mode::Read).and_then(|file| file.links()) {
            Ok(links) => links,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                shared.lock().sealed.remove(&segment);
                return Ok(Freed::Unlinked);
            }
            Err(source) => return Err(FreeError::Io { path, source }),
        };
        let reserved = if links == 1 { self.reserve() } else { None };
        let moved = match &reserved {
            Some(spare) => disk.rename(&path, spare),
            None => disk.remove(&path),
        };
        if let Err(source) = moved {
            if reserved.is_some() {
                shared.lock().coming -= 1;
            }
            return Err(FreeError::Io { path, source });
        }
        self.settle(segment, reserved, &layout::journal_folder(shared.folder.path()))
    }

    /// The name of a new spare, if one more is to be kept.
    fn reserve(&self) -> Option<PathBuf> {
        let mut inner = self.shared.lock();
        let kept = inner.ready.len() + inner.coming;
        if kept >= self.shared.kept_max() || inner.stopping {
            return None;
        }
        inner.coming += 1;
        let number = inner.number();
        Some(layout::spare_file(self.shared.folder.path(), number, false))
    }

    /// Makes the new name durable; then the file may be overwritten.
    fn settle(
        &self,
        segment: SegmentId,
        reserved: Option<PathBuf>,
        parent: &Path,
    ) -> Result<Freed, FreeError> {
        let disk = self.shared.folder.disk();
        match (disk.sync_folder(parent), &reserved) {
            // Undo the rename. (The removal of a file need not be durable.)
            (Err(source), Some(spare)) if lacks_descriptors(&source) => {
                let path = layout::segment_file(self.shared.folder.path(), segment);
                self.shared.lock().coming -= 1;
                drop(disk.rename(spare, &path));
                return Err(FreeError::Io { path, source });
            }
            (Err(error), _) if !lacks_descriptors(&error) => {
                let poisoned = poison("sync", parent)(error);
                self.shared.fail(poisoned.clone());
                return Err(FreeError::Poisoned(poisoned));
            }
            _ => {}
        }
        let mut inner = self.shared.lock();
        inner.sealed.remove(&segment);
        // There is space again.
        inner.gave_up = inner.is_failed();
        let freed = if reserved.is_some() {
            Freed::Recycled
        } else {
            Freed::Unlinked
        };
        inner.freed.extend(reserved);
        drop(inner);
        self.shared.changed.notify_all();
        Ok(freed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ahead::Ahead;
    use super::*;
    use crate::store::Folder;
    use crate::store::disk::StdDisk;

    #[test]
    fn a_segment_with_another_name_is_unlinked_and_keeps_its_content_there() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(Arc::new(StdDisk), temporary.path()).unwrap();
        let path = layout::segment_file(folder.path(), SegmentId(1));
        std::fs::write(&path, b"kept").unwrap();
        let backup = temporary.path().join("backup");
        std::fs::hard_link(&path, &backup).unwrap();
        let ahead = Ahead::open(&folder, 4, 0, 2).unwrap();
        let recycler = Recycler::new(ahead.shared());
        assert_eq!(recycler.sealed(), [SegmentId(1)]);
        assert_eq!(recycler.free(SegmentId(1)).unwrap(), Freed::Unlinked);
        assert!(!path.exists() && recycler.sealed().is_empty());
        assert_eq!(std::fs::read(&backup).unwrap(), b"kept");
        assert_eq!(
            recycler.free(SegmentId(1)).unwrap(),
            Freed::Unlinked,
            "gone already, as after a crash"
        );
    }
}
