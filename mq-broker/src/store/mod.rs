//! Where the bytes of batches lie: the disk seam, file names, the newest batches in memory, and the way from
//! (queue, offset) to a batch's producer region. Only this folder opens data files. It knows queues by number
//! and batches by location; what they mean is up to the state machine.
//!
//! [`Store`] is the facade that the core and the fetch path use. Its methods are grouped by file: `fetch`,
//! `retention_queries`, `scrub`, `sweep`, `compaction`, and the reads in `io` and `prefetch`.
//!
//! The one invariant: a [`PlacedRow`] names bytes that were flushed before the row was made, and binds them
//! by checksum.

pub mod backup;
mod cache;
mod clock;
mod compaction;
pub mod disk;
mod fetch;
pub mod folder;
mod found;
mod halves;
mod index;
pub(crate) mod io;
pub mod layout;
mod liveness;
mod prefetch;
mod queue_files;
mod retention_queries;
mod rows;
mod scrub;
pub mod segment_index;
mod settings;
pub mod stamped;
mod sweep;
mod tail;
#[cfg(test)]
mod test_journal;
#[cfg(test)]
mod tests;
pub(crate) mod time_search;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use mq_common::ids::{Lsn, Offset, Timestamp};

use self::clock::Clock;
use self::compaction::Rounds;
use self::found::check;
use self::index::{Index, RowLocation};
use self::io::segment_files::SegmentFiles;
use self::io::unreadable_regions::UnreadableRegions;
use self::liveness::references;
use self::prefetch::readers::ReadAhead;
use self::queue_files::Files;
use self::segment_index::cursor::SealedRows;
use self::segment_index::footer::{FooterRows, encode_rows};
use self::segment_index::footer_cache::{Damage, Footer, FooterCache, Made};
use self::tail::Tail;
use crate::ids::{BatchAt, QueueKey};
use crate::log::Entry;
use crate::state::Source;

pub use self::compaction::{CompactionCandidate, KeySettings, Moved, Pace, Plan, PlannedQueue, RoundError};
pub use self::folder::{Folder, FolderError};
pub use self::found::{Access, Found, HoleKind, ReadError};
pub use self::io::throttled::Pause;
pub use self::liveness::{CompactionHints, Dead, Reference};
pub use self::queue_files::{FileKey, FileRow, FileSegment, QueueName};
pub(crate) use self::queue_files::{INDEX_BYTES_MAX, MARK_BYTES, Marks};
pub use self::retention_queries::Extent;
pub use self::rows::{HalfRow, Location, PlacedRow, Rows, SegmentId, SegmentRow, Update};
pub use self::scrub::{Rotten, Scrubbing, Target};
pub use self::segment_index::rebuild::{Rebuild, Rebuilt, Span};
pub use self::settings::Settings;
pub(crate) use self::tail::OWN_BUFFER_BYTES;

/// Segments whose rows are rebuilt at the same time.
const REBUILDING_MAX: usize = 4;
/// How often a damaged footer is checked again while what the disk cannot read is an error and not yet a
/// hole.
const DAMAGE_LOOKS: u32 = 6;

/// The locations of the broker's batches. Shared: fetches run on any thread, alongside the one that applies
/// entries.
#[derive(Debug)]
pub struct Store {
    folder: Arc<Folder>,
    inner: Mutex<Inner>,
    segments: SegmentFiles,
    files: Files,
    rounds: Mutex<Rounds>,
    /// Sizes of a queue's first file, and of its largest.
    queue_segment_bytes: (u32, u32),
    rewrite_valid_percent: u64,
    keys: KeySettings,
    rebuild: OnceLock<Arc<dyn Rebuild>>,
    /// One is held while the rows of a segment are rebuilt, which takes the memory of a segment.
    rebuilding: [Mutex<()>; REBUILDING_MAX],
    read_ahead: ReadAhead,
    lost: UnreadableRegions,
}

#[derive(Debug)]
struct Inner {
    tail: Tail,
    index: Index,
}

impl Store {
    /// The store of a folder, with the rows that the checkpoint saved.
    #[must_use]
    pub fn open(folder: &Arc<Folder>, settings: Settings, rows: Rows) -> Self {
        let clock = Clock::default();
        let believed_for = settings.unreadable_patience / DAMAGE_LOOKS;
        let footers = FooterCache::new(settings.footer_bytes, believed_for, clock.clone());
        Self {
            inner: Mutex::new(Inner {
                tail: Tail::new(settings.tail_bytes),
                index: Index::load(rows),
            }),
            folder: Arc::clone(folder),
            segments: SegmentFiles::new(folder, footers),
            files: Files::new(folder, settings.marks_bytes),
            rounds: Mutex::default(),
            queue_segment_bytes: (settings.queue_segment_bytes, settings.queue_segment_bytes_max),
            rewrite_valid_percent: settings.rewrite_valid_percent,
            keys: settings.keys,
            rebuild: OnceLock::new(),
            rebuilding: Default::default(),
            read_ahead: ReadAhead::default(),
            lost: UnreadableRegions::new(settings.unreadable_patience, clock),
        }
    }

    /// Sets what rebuilds rows when a footer is damaged; without it their offsets are a hole. Set once.
    #[must_use]
    pub fn rebuilt_by(self, rebuild: Arc<dyn Rebuild>) -> Self {
        // A second one is ignored.
        drop(self.rebuild.set(rebuild));
        self
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an entry of this segment can come next: no rows of another one are waiting for their footer.
    #[must_use]
    pub fn takes(&self, segment: SegmentId) -> bool {
        self.lock().index.takes(segment)
    }

    /// Remembers the locations of an entry's batches. Called by the applier for every entry, in order.
    pub fn apply(&self, entry: &Entry<'_>, effects: &Update<'_>) {
        let mut inner = self.lock();
        inner.index.open_halves(entry, effects);
        for placement in effects.placements {
            let row = inner.index.place(entry, placement);
            if entry.replayed {
                continue;
            }
            if let Source::Here(index) = placement.source
                && let Some(batch) = entry
                    .batches
                    .get(index as usize)
                    .and_then(|stored| stored.batch.as_ref())
            {
                inner.tail.push(row, batch.bytes());
            }
        }
        inner.index.close(effects);
        let moved = effects.deleted.iter().chain(effects.touched);
        inner.index.start_moved(moved.copied());
        for queue in effects.deleted {
            inner.tail.remove(*queue);
        }
    }

    /// The number of rows that [`Store::seal`] would return.
    #[must_use]
    pub fn unsealed_rows(&self, segment: SegmentId) -> usize {
        self.lock().index.rows(segment)
    }

    /// Whether the segment that is not sealed yet placed anything.
    #[must_use]
    pub fn has_unsealed(&self) -> bool {
        !self.lock().index.unsealed.is_empty()
    }

    /// The rows of a segment's `Placed` footer, sorted; see [`crate::log::Applier::seal`], which calls this.
    #[must_use]
    pub fn seal(&self, segment: SegmentId) -> Vec<PlacedRow> {
        let mut inner = self.lock();
        let rows = inner.index.seal(segment);
        // Before any reader can see that it is sealed.
        if !rows.is_empty() {
            self.segments.footers.sealed(segment, &rows);
        }
        rows
    }

    /// The changes for the checkpoint since this was last called.
    #[must_use]
    pub fn take_rows(&self) -> Rows {
        self.lock().index.take_dirty()
    }

    /// Which of the `sealed` segments, and which queue files, are no longer needed at the last entry applied.
    /// `ends` returns the start and end of a queue; `None` = it was deleted. They may be freed once this is
    /// in the checkpoint. While a compaction round runs, all queue files are kept.
    #[must_use]
    pub fn dead(&self, sealed: &[SegmentId], ends: impl Fn(QueueKey) -> Option<(Offset, Offset)>) -> Dead {
        let mut rounds = self.rounds();
        rounds.note_starts(&ends);
        let mut inner = self.lock();
        let mut dead = inner.index.dead(sealed, &ends);
        let moved = std::mem::take(&mut inner.index.moved).into_iter();
        rounds.files_changed(moved.filter_map(|queue| Some((queue, ends(queue)?.0))));
        if !rounds.is_running() {
            let (percent, bytes_min) = (self.rewrite_valid_percent, self.queue_segment_bytes.0);
            dead.is_partial = !inner.index.judge_files(percent, bytes_min, &ends);
            dead.files = inner.index.files_gone();
            dead.hints.sparse = inner.index.sparse.iter().copied().collect();
            rounds.worth_a_rewrite(&mut dead.hints.sparse, &ends);
        }
        dead
    }

    /// The same for all queues, for starts that moved without an entry.
    #[cfg(test)]
    fn dead_of_all(&self, sealed: &[SegmentId], ends: impl Fn(QueueKey) -> Option<(Offset, Offset)>) -> Dead {
        let mut inner = self.lock();
        let listed: Vec<QueueKey> = inner.index.files.listed().collect();
        inner.index.start_moved(listed);
        drop(inner);
        self.dead(sealed, ends)
    }

    /// Removes a dead queue file. It is safe to repeat.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn remove_file(&self, row: &FileRow) -> std::io::Result<()> {
        // A file that is not listed may belong to a round that is writing it.
        let is_quiet = !self.rounds().is_running();
        let is_last = is_quiet && self.lock().index.files.of(row.queue).next().is_none();
        self.files.remove(row, is_last)?;
        let mut inner = self.lock();
        inner.index.files.removed(row.key());
        inner.index.dirty.files_removed.push(row.key());
        Ok(())
    }

    /// Narrows the search for a time in `start..end` of a queue: everything before the first result was
    /// appended before the time, everything from the second on at it or later. Reads files.
    #[must_use]
    pub fn narrow(
        &self,
        queue: QueueKey,
        (start, end): (Offset, Offset),
        time: Timestamp,
    ) -> (Offset, Offset) {
        let segments: Vec<_> = self.lock().index.files.of(queue).collect();
        let (low, high) = self.files.narrow(&segments, time);
        let low = low.map_or(start, |low| low.clamp(start, end));
        (low, high.map_or(end, |high| high.clamp(low, end)))
    }

    /// Free bytes on the disk of the data folder.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn free_bytes(&self) -> std::io::Result<u64> {
        self.folder.disk().free_bytes(self.folder.path())
    }

    /// Bytes of the queue files that are in use.
    #[must_use]
    pub fn queue_file_bytes(&self) -> u64 {
        self.lock().index.files.bytes()
    }

    /// Learns from the footer of a sealed segment what it needs of older ones. Reads a file.
    ///
    /// # Errors
    /// [`ReadError`]; then all older segments are kept.
    pub fn learn(&self, segment: SegmentId) -> Result<(), ReadError> {
        let rows = self.all_rows(segment)?;
        let rows = (0..rows.len()).filter_map(|at| rows.get(at));
        let references = references(segment, rows);
        self.lock().index.learn(segment, references);
        Ok(())
    }

    /// Forgets a dead segment before its file is reused; false = a reader is using it: try again later.
    #[must_use]
    pub fn free(&self, segment: SegmentId) -> bool {
        let mut inner = self.lock();
        if !self.segments.free(segment) {
            return false;
        }
        inner.index.forget(segment);
        true
    }

    /// The first segment that is needed but has no file. Examines each file.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn missing(
        &self,
        ends: impl Fn(QueueKey) -> Option<(Offset, Offset)>,
    ) -> std::io::Result<Option<SegmentId>> {
        let needed: Vec<_> = self.lock().index.needed(ends).collect();
        for segment in needed {
            if !self.segments.exists(segment)? {
                return Ok(Some(segment));
            }
        }
        Ok(None)
    }

    /// Forgets what was placed in deleted queues: the checkpoint keeps it until the segment is sealed.
    pub fn keep_queues(&self, exists: impl Fn(QueueKey) -> bool) {
        self.lock().index.unsealed.retain(|(queue, _), _| exists(*queue));
    }

    /// Runs `look` on the rows of a sealed segment or, if they cannot be read, on the rebuilt rows.
    fn with_rows<T>(
        &self,
        access: Access,
        segment: SegmentId,
        look: impl Fn(&mut SealedRows<'_>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let rows = self.segments.rows(access, segment);
        match rows.and_then(|mut rows| look(&mut rows)) {
            // It would read for a long time.
            Err(damage) if damage.hides_rows() && !access.may_block() => Err(ReadError::WouldBlock),
            Err(damage) if damage.hides_rows() => {
                let (rows, why) = self.rebuild(segment, damage)?;
                let footer = Footer::Rebuilt(rows, why);
                look(&mut self.segments.rows_of(access, segment, footer))
            }
            found => found,
        }
    }

    /// The rebuilt rows of a segment whose footer is damaged, and the reason why they may lack queues: if the
    /// disk failed to read what they are rebuilt from, that may be temporary.
    fn rebuild(&self, segment: SegmentId, damage: ReadError) -> Result<(FooterRows, Damage), ReadError> {
        let Some(rebuild) = self.rebuild.get() else {
            return Err(damage);
        };
        let at = usize::try_from(segment.0 % REBUILDING_MAX as u64).unwrap_or(0);
        let _one = self.rebuilding[at].lock().unwrap_or_else(PoisonError::into_inner);
        let footers = &self.segments.footers;
        // Another thread may have done it meanwhile, or tried to.
        if let Some(known) = footers.made_again(segment, footers.clock.now()) {
            return known;
        }
        let _pin = self.segments.pin(segment)?;
        let spans = self.lock().index.spans(segment);
        if spans.is_empty() {
            // A round moved all of it meanwhile: the caller has to search again.
            return Err(ReadError::Freed { segment });
        }
        match rebuild.rows(segment, &spans) {
            Ok(Rebuilt { rows, is_unread }) => {
                let (count, rows) = (rows.len(), FooterRows::rebuilt(encode_rows(&rows).into()));
                let (damage, made) = if is_unread {
                    tracing::error!(segment = segment.0, %damage, rows = count, "a damaged index was rebuilt in part: the disk cannot read all entries that it is rebuilt from; check the disk");
                    let source = std::io::Error::from_raw_os_error(libc::EIO);
                    (ReadError::Io { segment, source }, Made::Unread(rows.clone()))
                } else {
                    tracing::error!(segment = segment.0, %damage, rows = count, "a damaged index was rebuilt; check the disk");
                    (damage, Made::Whole(rows.clone()))
                };
                footers.damaged(segment, &damage, made, footers.clock.now());
                Ok((rows, Damage::from(&damage)))
            }
            Err(error) if error.is_passing() => Err(error),
            Err(reason) => {
                tracing::error!(segment = segment.0, %damage, %reason, "a damaged index could not be rebuilt");
                // While the disk fails, nothing is known about the contents.
                let damage = match reason {
                    ReadError::Io { .. } => reason,
                    _ => damage,
                };
                footers.damaged(segment, &damage, Made::Nothing, footers.clock.now());
                Err(damage)
            }
        }
    }

    /// Bytes of the journal's files without spares. Examines each file.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn journal_bytes(&self) -> std::io::Result<u64> {
        self.segments.bytes()
    }

    /// Whether a fetch from this offset needs no file: one that begins in memory ends where memory does.
    #[must_use]
    pub fn in_memory(&self, queue: QueueKey, from: Offset) -> bool {
        self.lock().tail.contains(queue, from)
    }

    /// The entries after `after` with half messages of undecided transactions in this segment, in order:
    /// about as many as have `bytes_max` bytes of them, but at least one.
    #[must_use]
    pub fn entries_with_halves(&self, segment: SegmentId, after: Lsn, bytes_max: u64) -> Vec<Lsn> {
        let inner = self.lock();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for half in inner.index.halves.of(segment, after) {
            if entries.last() != Some(&half.at.lsn) {
                if bytes >= bytes_max {
                    break;
                }
                entries.push(half.at.lsn);
            }
            bytes += u64::from(half.location.bytes);
        }
        entries
    }

    /// A half batch of an open transaction, for a check-back question. May read a file.
    ///
    /// # Errors
    /// [`ReadError`]; `None` when no open transaction has it, or its bytes are damaged.
    pub fn half(&self, at: BatchAt) -> Result<Option<(HalfRow, Bytes)>, ReadError> {
        let inner = self.lock();
        let Some(half) = inner.index.halves.get(at) else {
            return Ok(None);
        };
        drop(inner);
        let region = self.read_span(Access::BlockingNoPrefetch, half.location)?;
        Ok(check(&region, half.checksum).map(|()| (half, region)))
    }
}
