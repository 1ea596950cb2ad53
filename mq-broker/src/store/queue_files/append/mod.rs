//! Appending to queue files during one compaction round. Nothing of it counts before the manifest lists it.

mod leftovers;

use std::collections::{BTreeMap, HashSet};
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use mq_common::batch::{STAMPED_HEADER_BYTES, Stamp, stamp_header};
use mq_common::ids::Offset;

use super::marks::{MARK_BYTES, Mark, Marks};
use super::unsynced::Unsynced;
use super::{FileKey, FileSegment, Files, QueueName, View};
use crate::ids::QueueKey;
use crate::store::disk::{DiskFile, Mode, lacks_descriptors, write_all_at};
use crate::store::{PlacedRow, ReadError, layout};

/// Bytes written at once.
const WRITE_BYTES: usize = 1024 * 1024;

/// Why nothing more can be appended.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum AppendError {
    /// It may be tried again.
    #[error("cannot write `{}`: {source}", path.display())]
    Io {
        /// The file, or the folder of the queue.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A sync failed: the process must stop.
    #[error("cannot sync queue files: {0}")]
    Sync(#[source] io::Error),
    /// A file with this name was to be created, but one exists and is in use.
    #[error("`{}` is in use already, and no other file may replace it", path.display())]
    Counts { path: PathBuf },
}

/// What a round has appended so far: the segments that it created or extended, as the manifest will list
/// them.
#[derive(Debug)]
pub(in super::super) struct Appends<'a> {
    files: &'a Files,
    /// Sizes of a queue's first segment, and of its largest ones.
    segment_bytes: (u32, u32),
    changed: BTreeMap<FileKey, View>,
    /// The last segment of each queue touched, with its marks.
    tips: BTreeMap<QueueKey, Tip>,
    /// Queues whose folder has been checked since the start of the process.
    swept: &'a mut HashSet<QueueKey>,
    /// Files that a start may need, of the queues touched: those that the manifest lists, and those that wait
    /// for removal until that is in a checkpoint.
    needed: HashSet<FileKey>,
    unsynced: Unsynced,
    /// Files created, and existing files that may have been extended: see [`Appends::tidy`].
    made: Vec<View>,
    touched: Vec<View>,
    pub(in super::super) bytes: u64,
    pub(in super::super) batches: u64,
}

/// The progress of a round: see [`Appends::back_to`].
#[derive(Debug)]
pub(in super::super) struct SoFar {
    changed: BTreeMap<FileKey, View>,
    tips: BTreeMap<QueueKey, Tip>,
    bytes: u64,
    batches: u64,
}

#[derive(Debug, Clone)]
struct Tip {
    view: View,
    /// Number of segments, and the last one.
    marks: (usize, Option<Mark>),
}

/// A queue's last segment, open.
#[derive(Debug)]
pub(in super::super) struct Appender<'b, 'a> {
    appends: &'b mut Appends<'a>,
    queue: QueueKey,
    name: &'b QueueName,
    /// The generation of segments that it begins. It continues no segment of another one.
    generation: u32,
    file: Option<Arc<dyn DiskFile>>,
    tip: Option<Tip>,
    waiting: Vec<([u8; STAMPED_HEADER_BYTES], Bytes)>,
    waiting_bytes: usize,
    new_marks: Vec<Mark>,
}

impl<'a> Appends<'a> {
    pub(in super::super) const fn new(
        files: &'a Files,
        segment_bytes: (u32, u32),
        swept: &'a mut HashSet<QueueKey>,
        gone: HashSet<FileKey>,
        syncs_each: bool,
    ) -> Self {
        Self {
            files,
            segment_bytes,
            changed: BTreeMap::new(),
            tips: BTreeMap::new(),
            swept,
            needed: gone,
            unsynced: Unsynced::new(syncs_each),
            made: Vec::new(),
            touched: Vec::new(),
            bytes: 0,
            batches: 0,
        }
    }

    /// The current progress. No queue is open.
    pub(in super::super) fn so_far(&self) -> SoFar {
        SoFar {
            changed: self.changed.clone(),
            tips: self.tips.clone(),
            bytes: self.bytes,
            batches: self.batches,
        }
    }

    /// Discards what was appended since; the next appends overwrite it.
    pub(in super::super) fn back_to(&mut self, before: SoFar) {
        self.changed = before.changed;
        self.tips = before.tips;
        self.bytes = before.bytes;
        self.batches = before.batches;
    }

    /// Makes durable what was written, file by file, if that was requested. No queue is open.
    ///
    /// # Errors
    /// As the operating system says; poison.
    pub(in super::super) fn sync(&mut self) -> io::Result<()> {
        self.unsynced.sync()
    }

    /// Opens a queue for appending. `listed` are its segments in the manifest.
    ///
    /// # Errors
    /// As the operating system says.
    pub(in super::super) fn queue<'b>(
        &'b mut self,
        queue: QueueKey,
        name: &'b QueueName,
        listed: &[View],
    ) -> Result<Appender<'b, 'a>, AppendError> {
        let mut appender = self.apart(queue, name, 0, listed)?;
        let appends = &mut *appender.appends;
        let tip = match appends.tips.remove(&queue) {
            Some(tip) => Some(tip),
            None => appends
                .last_segment(listed)
                .map_err(|source| appends.failed(name, source))?,
        };
        if let Some(tip) = tip {
            let file = appends.open(&tip.view);
            appender.file = file.map_err(|source| appends.failed(name, source))?;
            if let Some(file) = &appender.file {
                appends
                    .unsynced
                    .keep(&tip.view, file)
                    .map_err(AppendError::Sync)?;
            }
            appender.tip = appender.file.is_some().then_some(tip);
        }
        Ok(appender)
    }

    fn failed(&self, name: &QueueName, source: io::Error) -> AppendError {
        let path = layout::queue_folder(self.files.folder.path(), name);
        AppendError::Io { path, source }
    }

    fn last_segment(&mut self, listed: &[View]) -> io::Result<Option<Tip>> {
        let Some(view) = listed.last() else {
            return Ok(None);
        };
        self.touched.push(view.clone());
        // Complete: marks of new batches are appended to the existing ones.
        let file = self.files.file(view);
        let marks = match file.and_then(|file| self.files.marks(view, &*file)) {
            // The index would start again, without the existing batches.
            Err(ReadError::QueueFile { source, .. }) if lacks_descriptors(&source) => return Err(source),
            marks => marks.unwrap_or_default(),
        };
        Ok(Some(Tip {
            view: view.clone(),
            marks: (marks.len(), marks.all().last().copied()),
        }))
    }

    /// The file of a segment, truncated to the bytes in use; `None` if some of those are missing: then
    /// nothing is appended to it.
    fn open(&self, view: &View) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let path = layout::queue_data_file(self.files.folder.path(), &view.name, view.first, view.generation);
        let file = match self.unsynced.of(view) {
            Some(file) => Some(file),
            None => match self.files.folder.disk().open(&path, Mode::Write) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                opened => Some(opened?),
            },
        };
        let (Some(file), counts) = (file, u64::from(view.segment.bytes)) else {
            tracing::error!(path = %path.display(), "a queue file is missing; its messages are lost");
            return Ok(None);
        };
        let there = file.bytes()?;
        if there < counts {
            tracing::error!(path = %path.display(), there, counts, "a queue file is shorter than it was");
            return Ok(None);
        }
        if there > counts {
            file.set_bytes(counts)?;
        }
        Ok(Some(file))
    }

    /// Begins new segments of a queue, apart from its last one. `listed` are its segments in the manifest.
    /// The remains of interrupted rounds in the queue's folder are removed: no other round may ever come for
    /// them.
    ///
    /// # Errors
    /// As the operating system says.
    pub(in super::super) fn apart<'b>(
        &'b mut self,
        queue: QueueKey,
        name: &'b QueueName,
        generation: u32,
        listed: &[View],
    ) -> Result<Appender<'b, 'a>, AppendError> {
        self.needed.extend(listed.iter().map(View::key));
        let swept = self.sweep(queue, name);
        swept.map_err(|source| self.failed(name, source))?;
        Ok(Appender {
            appends: self,
            queue,
            name,
            generation,
            file: None,
            tip: None,
            waiting: Vec::new(),
            waiting_bytes: 0,
            new_marks: Vec::new(),
        })
    }

    /// What was appended last to this queue is not its end.
    pub(in super::super) fn forget_tip(&mut self, queue: QueueKey) {
        self.tips.remove(&queue);
    }

    /// The segments that were created or extended.
    pub(in super::super) fn changed(&self) -> impl Iterator<Item = &View> {
        self.changed.values()
    }
}

impl Appender<'_, '_> {
    pub(in super::super) const fn name(&self) -> &QueueName {
        self.name
    }

    /// From here on it begins segments of this generation.
    pub(in super::super) const fn of_generation(&mut self, generation: u32) {
        self.generation = generation;
    }

    /// Appends a batch; returns the number of bytes written now.
    ///
    /// # Errors
    /// As the operating system says.
    pub(in super::super) fn batch(&mut self, row: &PlacedRow, region: Bytes) -> Result<u64, AppendError> {
        let bytes = u32::try_from(STAMPED_HEADER_BYTES + region.len()).unwrap_or(u32::MAX);
        let written = self.reach(row.base_offset, bytes)?;
        let Some(tip) = &mut self.tip else {
            return Err(self.failed(io::Error::other("a queue file was not opened")));
        };
        let stamp = Stamp {
            queue: self.name.number,
            base_offset: row.base_offset,
            lsn: row.lsn,
            append_time: row.time,
            epoch: row.term,
            flags: row.flags,
        };
        let mark = Mark {
            offset: row.base_offset,
            time: row.time,
            position: tip.view.segment.bytes + u32::try_from(self.waiting_bytes).unwrap_or(u32::MAX),
        };
        let mut last = Marks::default();
        if let Some(before) = tip.marks.1 {
            last.note(before);
        }
        if last.note(mark) {
            tip.marks.1 = Some(mark);
            self.new_marks.push(mark);
        }
        self.waiting
            .push((stamp_header(&stamp, row.location.bytes, row.checksum), region));
        self.waiting_bytes += bytes as usize;
        tip.view.segment.end = row.end();
        self.appends.batches += 1;
        if self.waiting_bytes >= WRITE_BYTES {
            let flushed = self.flush();
            return Ok(written + flushed.map_err(|source| self.failed(source))?);
        }
        Ok(written)
    }

    fn failed(&self, source: io::Error) -> AppendError {
        self.appends.failed(self.name, source)
    }

    /// Skips offsets whose messages are damaged.
    ///
    /// # Errors
    /// As the operating system says.
    pub(in super::super) fn hole(&mut self, from: Offset, end: Offset) -> Result<u64, AppendError> {
        let written = self.reach(from, 0)?;
        if let Some(tip) = &mut self.tip {
            tip.view.segment.end = end;
        }
        Ok(written)
    }

    /// A segment that can take this many bytes at this offset: the last one, if it ends there and is not
    /// full, else a new one.
    fn reach(&mut self, offset: Offset, bytes: u32) -> Result<u64, AppendError> {
        let waiting = u32::try_from(self.waiting_bytes).unwrap_or(u32::MAX);
        let (smallest, largest) = self.appends.segment_bytes;
        let mut planned = smallest;
        if let Some(tip) = &self.tip {
            let segment = &tip.view.segment;
            let there = segment.bytes.saturating_add(waiting);
            let has_room = there == 0 || there.saturating_add(bytes) <= segment.planned_bytes;
            let is_alike = tip.view.generation == self.generation;
            if segment.end == offset && has_room && is_alike {
                return Ok(0);
            }
            planned = segment.planned_bytes.saturating_mul(2).clamp(smallest, largest);
        }
        let closed = self.close_segment();
        let written = closed.map_err(|source| self.failed(source))?;
        let view = View {
            queue: self.queue,
            first: offset,
            generation: self.generation,
            segment: FileSegment {
                end: offset,
                bytes: 0,
                planned_bytes: planned,
            },
            name: self.name.clone(),
        };
        self.file = Some(self.create(&view)?);
        self.tip = Some(Tip {
            view,
            marks: (0, None),
        });
        Ok(written)
    }

    /// Creates a file, or truncates one that a failed round left; never one in use.
    fn create(&mut self, view: &View) -> Result<Arc<dyn DiskFile>, AppendError> {
        let folder = &self.appends.files.folder;
        let path = layout::queue_data_file(folder.path(), &view.name, view.first, view.generation);
        if self.appends.needed.contains(&view.key()) {
            return Err(AppendError::Counts { path });
        }
        self.appends.made.push(view.clone());
        let made = match folder.disk().open(&path, Mode::CreateNew) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let old = folder.disk().open(&path, Mode::Write);
                old.and_then(|file| file.set_bytes(0).map(|()| file))
            }
            opened => opened,
        };
        let file = made.map_err(|source| AppendError::Io { path, source })?;
        self.appends
            .unsynced
            .keep(view, &file)
            .map_err(AppendError::Sync)?;
        Ok(file)
    }

    /// Writes the buffered bytes; returns their number.
    fn flush(&mut self) -> io::Result<u64> {
        let (Some(file), Some(tip)) = (&self.file, &mut self.tip) else {
            return Ok(0);
        };
        let position = u64::from(tip.view.segment.bytes);
        let mut slices: Vec<IoSlice<'_>> = self
            .waiting
            .iter()
            .flat_map(|(header, region)| [IoSlice::new(header), IoSlice::new(region)])
            .collect();
        write_all_at(&**file, &mut slices, position)?;
        let bytes = self.waiting_bytes as u64;
        file.start_write_back(position, bytes)?;
        tip.view.segment.bytes = tip
            .view
            .segment
            .bytes
            .saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.appends.bytes += bytes;
        Ok(bytes)
    }

    /// Writes the rest of the current segment, and the marks.
    fn close_segment(&mut self) -> io::Result<u64> {
        let written = self.flush()?;
        let Some(mut tip) = self.tip.take() else {
            return Ok(written);
        };
        if let Err(error) = self.write_marks(&mut tip) {
            // It is rebuilt when it is needed.
            tracing::warn!(queue = self.queue.0, %error, "the index of a queue file cannot be written");
        }
        self.appends.changed.insert(tip.view.key(), tip.view.clone());
        self.tip = Some(tip);
        Ok(written)
    }

    fn write_marks(&mut self, tip: &mut Tip) -> io::Result<()> {
        let new = std::mem::take(&mut self.new_marks);
        let before = tip.marks.0;
        if new.is_empty() {
            return Ok(());
        }
        tip.marks.0 += new.len();
        let folder = &self.appends.files.folder;
        let path =
            layout::queue_index_file(folder.path(), &tip.view.name, tip.view.first, tip.view.generation);
        let file = match folder.disk().open(&path, Mode::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                folder.disk().open(&path, Mode::CreateNew)?
            }
            opened => opened?,
        };
        let mut bytes = Vec::with_capacity((new.len() + 1) * MARK_BYTES);
        let mut position = 0;
        if before == 0 {
            bytes.extend_from_slice(&super::marks::header(tip.view.first));
        } else {
            position = (before + 1) * MARK_BYTES;
        }
        for mark in &new {
            bytes.extend_from_slice(&mark.encode(tip.view.first));
        }
        write_all_at(&*file, &mut [IoSlice::new(&bytes)], position as u64)?;
        // Marks of an interrupted round.
        file.set_bytes((position + bytes.len()) as u64)
    }

    /// Writes all slices; returns the number of bytes written now.
    ///
    /// # Errors
    /// As the operating system says.
    pub(in super::super) fn finish(mut self) -> Result<u64, AppendError> {
        let closed = self.close_segment();
        let written = closed.map_err(|source| self.failed(source))?;
        if let Some(tip) = self.tip.take() {
            self.appends.tips.insert(self.queue, tip);
        }
        Ok(written)
    }
}
