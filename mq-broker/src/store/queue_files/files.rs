//! Queue files as readers see them: open handles and indexes, both in small caches. A file that was removed
//! meanwhile stays readable through the handles that are open.

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mq_common::ids::Offset;

use super::marks::{INDEX_BYTES_MAX, Mark, Marks};
use super::walk::{Step, Walk, behind};
use super::{FileKey, FileRow, View};
use crate::store::disk::{DiskFile, Mode, read_up_to_at, write_all_at};
use crate::store::{Folder, ReadError, layout};

/// Number of files open for reading.
const FILES_MAX: usize = 128;
/// Bytes read at once while an index is rebuilt.
const WALK_BYTES: usize = 64 * 1024;

/// The open queue files and their indexes.
#[derive(Debug)]
pub(in super::super) struct Files {
    pub(super) folder: Arc<Folder>,
    marks_bytes_max: usize,
    inner: Mutex<Inner>,
}

/// Both are short lists; the most recently used is at the end.
#[derive(Debug, Default)]
struct Inner {
    files: Vec<(FileKey, Arc<dyn DiskFile>)>,
    marks: Vec<(FileKey, Arc<Marks>)>,
}

impl Files {
    pub(in super::super) fn new(folder: &Arc<Folder>, marks_bytes_max: usize) -> Self {
        Self {
            folder: Arc::clone(folder),
            marks_bytes_max,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segment grew or was removed: what is cached of it is out of date.
    pub(in super::super) fn forget(&self, segment: FileKey) {
        let mut inner = self.lock();
        inner.files.retain(|(key, _)| *key != segment);
        inner.marks.retain(|(key, _)| *key != segment);
    }

    /// The segment's data.
    pub(in super::super) fn file(&self, view: &View) -> Result<Arc<dyn DiskFile>, ReadError> {
        let key = view.key();
        let mut inner = self.lock();
        if let Some(file) = use_again(&mut inner.files, key) {
            return Ok(file);
        }
        drop(inner);
        let path = layout::queue_data_file(self.folder.path(), &view.name, view.first, view.generation);
        let opened = self.folder.disk().open(&path, Mode::Read);
        let file = opened.map_err(|source| ReadError::QueueFile { path, source })?;
        file.will_jump();
        let mut inner = self.lock();
        if inner.files.len() >= FILES_MAX {
            inner.files.remove(0);
        }
        inner.files.push((key, Arc::clone(&file)));
        Ok(file)
    }

    /// The segment's data and its index, if neither requires the disk.
    pub(super) fn known(&self, view: &View) -> Option<(Arc<dyn DiskFile>, Arc<Marks>)> {
        let key = view.key();
        let mut inner = self.lock();
        let file = use_again(&mut inner.files, key)?;
        let marks = use_again(&mut inner.marks, key)?;
        Some((file, marks))
    }

    /// The segment's index, from memory or its file; rebuilt if it covers too little.
    pub(super) fn marks(&self, view: &View, file: &dyn DiskFile) -> Result<Arc<Marks>, ReadError> {
        let key = view.key();
        let mut inner = self.lock();
        if let Some(marks) = use_again(&mut inner.marks, key) {
            return Ok(marks);
        }
        drop(inner);
        let marks = self.stored_marks(view);
        // The first batch always has one.
        if marks.len() == 0 && view.segment.bytes > 0 {
            return self.make_again(view, file, &marks);
        }
        let marks = Arc::new(marks);
        self.keep(key, &marks);
        Ok(marks)
    }

    /// The intact marks of the index file.
    pub(super) fn stored_marks(&self, view: &View) -> Marks {
        let path = layout::queue_index_file(self.folder.path(), &view.name, view.first, view.generation);
        let read = self.folder.disk().open(&path, Mode::Read).and_then(|file| {
            let bytes = usize::try_from(file.bytes()?).unwrap_or(INDEX_BYTES_MAX);
            read_up_to_at(&*file, bytes.min(INDEX_BYTES_MAX), 0)
        });
        let bytes = read.unwrap_or_default();
        Marks::decode(&bytes, view.first, view.segment.bytes)
    }

    /// Walks the whole file for its marks, caches and writes them. The old ones help to get past damage.
    pub(super) fn make_again(
        &self,
        view: &View,
        file: &dyn DiskFile,
        old: &Marks,
    ) -> Result<Arc<Marks>, ReadError> {
        let made = walk_all(view, file, old).map_err(|source| self.failed(view, source))?;
        let path = layout::queue_index_file(self.folder.path(), &view.name, view.first, view.generation);
        tracing::warn!(path = %path.display(), marks = made.len(), "the index of a queue file was rebuilt");
        if let Err(error) = self.write_marks(view, &made) {
            tracing::warn!(path = %path.display(), %error, "the index of a queue file cannot be written");
        }
        let made = Arc::new(made);
        self.keep(view.key(), &made);
        Ok(made)
    }

    /// Writes an index from its beginning. Not synced, because nothing relies on it.
    pub(super) fn write_marks(&self, view: &View, marks: &Marks) -> io::Result<()> {
        let path = layout::queue_index_file(self.folder.path(), &view.name, view.first, view.generation);
        let disk = self.folder.disk();
        let file = match disk.open(&path, Mode::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => disk.open(&path, Mode::CreateNew)?,
            opened => opened?,
        };
        let bytes = marks.encode(view.first);
        write_all_at(&*file, &mut [IoSlice::new(&bytes)], 0)?;
        file.set_bytes(bytes.len() as u64)
    }

    fn keep(&self, key: FileKey, marks: &Arc<Marks>) {
        let mut inner = self.lock();
        inner.marks.retain(|(of, _)| *of != key);
        inner.marks.push((key, Arc::clone(marks)));
        let mut bytes: usize = inner.marks.iter().map(|(_, marks)| marks.bytes()).sum();
        while bytes > self.marks_bytes_max && inner.marks.len() > 1 {
            bytes -= inner.marks.remove(0).1.bytes();
        }
    }

    pub(in super::super) fn failed(&self, view: &View, source: io::Error) -> ReadError {
        let path = layout::queue_data_file(self.folder.path(), &view.name, view.first, view.generation);
        ReadError::QueueFile { path, source }
    }

    /// Removes a segment's files; and the queue's folder and that of its topic, if they are empty then.
    ///
    /// # Errors
    /// As the operating system says. What is gone already is no error.
    pub(in super::super) fn remove(&self, view: &FileRow, is_last: bool) -> io::Result<()> {
        self.forget(view.key());
        let (disk, data) = (self.folder.disk(), self.folder.path());
        let gone = |removed: io::Result<()>| match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        gone(disk.remove(&layout::queue_data_file(
            data,
            &view.name,
            view.first,
            view.generation,
        )))?;
        gone(disk.remove(&layout::queue_index_file(
            data,
            &view.name,
            view.first,
            view.generation,
        )))?;
        if is_last {
            let folder = layout::queue_folder(data, &view.name);
            // Its statistics, and the remains of an interrupted round.
            for file in disk.list(&folder).unwrap_or_default() {
                gone(disk.remove(&folder.join(file)))?;
            }
            // The topic may have other queues.
            if disk.remove_folder(&folder).is_ok()
                && let Some(topic) = folder.parent()
            {
                drop(disk.remove_folder(topic));
            }
        }
        Ok(())
    }
}

/// An entry of a short list, now the most recently used.
fn use_again<T: ?Sized>(list: &mut Vec<(FileKey, Arc<T>)>, key: FileKey) -> Option<Arc<T>> {
    let at = list.iter().position(|(of, _)| *of == key)?;
    let used = list.remove(at);
    let of_it = Arc::clone(&used.1);
    list.push(used);
    Some(of_it)
}

fn walk_all(view: &View, file: &dyn DiskFile, old: &Marks) -> io::Result<Marks> {
    let mut walk = Walk::new(file, view, old, WALK_BYTES);
    let mut marks = Marks::default();
    let (mut position, mut next) = (0, view.first);
    loop {
        match walk.step(position, next)? {
            Step::Batch(header) => {
                marks.note(Mark {
                    offset: header.stamp.base_offset,
                    time: header.stamp.append_time,
                    position,
                });
                next = Offset(header.stamp.base_offset.0.saturating_add(1));
                position = behind(position, &header);
            }
            Step::Damage(Some(mark)) => position = mark.position,
            Step::Damage(None) | Step::End => return Ok(marks),
        }
    }
}
