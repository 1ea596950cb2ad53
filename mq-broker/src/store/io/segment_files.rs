//! The journal's files as readers see them: open handles in a small cache, and which segments are being read
//! now. The footers of sealed segments are in `segment_index`.
//!
//! A reader pins the segment that it reads: the file of a pinned segment is not freed, and a freed one is not
//! opened again, because its bytes become those of another segment.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::disk::{DiskFile, Mode};
use crate::store::segment_index::footer_cache::FooterCache;
use crate::store::{Access, Folder, ReadError, SegmentId, layout};

/// Number of open segment files.
const FILES_MAX: usize = 64;
/// Freed segments that are remembered for readers that found their rows before: no reader is later than that.
const FREED_MAX: usize = 1024;

/// The open files of segments.
#[derive(Debug)]
pub(in crate::store) struct SegmentFiles {
    folder: Arc<Folder>,
    pub(in crate::store) footers: FooterCache,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// A short list; the most recently used is at the end.
    files: Vec<(SegmentId, Arc<dyn DiskFile>)>,
    /// Number of current readers of each segment.
    pins: BTreeMap<SegmentId, usize>,
    /// The segments that were freed last.
    freed: VecDeque<SegmentId>,
}

/// A segment's file while it is being read.
#[derive(Debug)]
pub(in crate::store) struct Pinned<'a> {
    file: Arc<dyn DiskFile>,
    _pin: Pin<'a>,
}

#[derive(Debug)]
pub(in crate::store) struct Pin<'a> {
    segments: &'a SegmentFiles,
    segment: SegmentId,
}

impl Deref for Pinned<'_> {
    type Target = dyn DiskFile;

    fn deref(&self) -> &Self::Target {
        &*self.file
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut inner = self.segments.lock();
        if let Some(pins) = inner.pins.get_mut(&self.segment) {
            *pins -= 1;
            if *pins == 0 {
                inner.pins.remove(&self.segment);
            }
        }
    }
}

impl SegmentFiles {
    pub(in crate::store) fn new(folder: &Arc<Folder>, footers: FooterCache) -> Self {
        Self {
            folder: Arc::clone(folder),
            footers,
            inner: Mutex::default(),
        }
    }

    /// Bytes of the journal's files.
    pub(in crate::store) fn bytes(&self) -> io::Result<u64> {
        let disk = self.folder.disk();
        let parent = layout::journal_folder(self.folder.path());
        let mut bytes = 0;
        for id in disk
            .list(&parent)?
            .iter()
            .filter_map(|name| layout::parse_segment(name))
        {
            match disk.open(&layout::segment_file(self.folder.path(), id), Mode::Read) {
                Ok(file) => bytes += file.bytes()?,
                // Freed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the segment from being freed.
    ///
    /// # Errors
    /// [`ReadError::Freed`]: too late.
    pub(in crate::store) fn pin(&self, segment: SegmentId) -> Result<Pin<'_>, ReadError> {
        let mut inner = self.lock();
        if inner.freed.contains(&segment) {
            return Err(ReadError::Freed { segment });
        }
        *inner.pins.entry(segment).or_default() += 1;
        Ok(Pin {
            segments: self,
            segment,
        })
    }

    /// Prevents further opens of this segment; false = it is being read now.
    pub(in crate::store) fn free(&self, segment: SegmentId) -> bool {
        let mut inner = self.lock();
        if inner.pins.contains_key(&segment) {
            return false;
        }
        inner.files.retain(|(id, _)| *id != segment);
        self.footers.forget(segment);
        if !inner.freed.contains(&segment) {
            if inner.freed.len() == FREED_MAX {
                inner.freed.pop_front();
            }
            inner.freed.push_back(segment);
        }
        true
    }

    /// Whether the segment has a file.
    pub(in crate::store) fn exists(&self, segment: SegmentId) -> io::Result<bool> {
        let path = layout::segment_file(self.folder.path(), segment);
        match self.folder.disk().open(&path, Mode::Read) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The segment's file, pinned.
    pub(in crate::store) fn file(&self, segment: SegmentId) -> Result<Pinned<'_>, ReadError> {
        let pin = self.pin(segment)?;
        let mut inner = self.lock();
        if let Some(at) = inner.files.iter().position(|(id, _)| *id == segment) {
            let used = inner.files.remove(at);
            let file = Arc::clone(&used.1);
            inner.files.push(used);
            return Ok(Pinned { file, _pin: pin });
        }
        drop(inner);
        let path = layout::segment_file(self.folder.path(), segment);
        let opened = self.folder.disk().open(&path, Mode::Read);
        let file = opened.map_err(|source| ReadError::Io { segment, source })?;
        file.will_jump();
        let mut inner = self.lock();
        if inner.files.len() >= FILES_MAX {
            inner.files.remove(0);
        }
        inner.files.push((segment, Arc::clone(&file)));
        drop(inner);
        Ok(Pinned { file, _pin: pin })
    }

    /// The same without opening it, if `access` must not block: a name may have to be looked up on the disk.
    pub(in crate::store) fn file_by(
        &self,
        access: Access,
        segment: SegmentId,
    ) -> Result<Pinned<'_>, ReadError> {
        let is_open = || self.lock().files.iter().any(|(id, _)| *id == segment);
        if !access.may_block() && !is_open() {
            return Err(ReadError::WouldBlock);
        }
        self.file(segment)
    }

    /// As after a start.
    #[cfg(test)]
    pub(in crate::store) fn forget_footers(&self) {
        self.footers.forget_all();
        self.lock().files.clear();
    }
}
