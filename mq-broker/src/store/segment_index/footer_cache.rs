//! The footers of sealed segments: read and checked as a whole once, then searched in their files by blocks.
//! The rows of a segment full of small messages take a quarter of it: keeping those of two such segments
//! would use all the memory that a broker has for this.
//!
//! Rows that had to be rebuilt because a footer is damaged are cached separately from those that can be
//! reread, and so are failures to rebuild them. Both are trusted for a while, in which that footer is not
//! read again. Rows that are incomplete because the disk failed are rebuilt again after that time: by then
//! the disk may read the missing ones.

use std::io;
use std::mem::discriminant;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::store::cache::Cache;
use crate::store::clock::Clock;
use crate::store::disk::{DiskFile, read_exact_at, try_read_up_to_at};
use crate::store::io::segment_files::SegmentFiles;
use crate::store::segment_index::footer::{FooterRows, TRAILER_BYTES, Trailer, encode_rows};
use crate::store::segment_index::sampled::{BLOCK_BYTES, Making, SampledRows};
use crate::store::{Access, PlacedRow, ReadError, SegmentId};

/// Bytes at the end of a file that are prefetched: the rows of two thousand batches.
const ASKED_BYTES: u64 = 128 * 1024;
/// Blocks that are read at once while a footer is checked.
const CHECKED_BLOCKS: usize = 32;

/// An outcome that stays the same is trusted up to this many times as long as at first.
const BELIEVED_TIMES_MAX: u32 = 12;

/// Where the rows of a segment are.
#[derive(Debug, Clone)]
pub(in crate::store) enum Footer {
    /// In memory: the footer may not be in its file yet.
    Here(FooterRows),
    /// Rebuilt in memory, because they cannot be read.
    Rebuilt(FooterRows, Damage),
    /// In the segment's file.
    InFile(Arc<SampledRows>),
}

/// What is wrong with a footer.
#[derive(Debug, Clone)]
pub(in crate::store) enum Damage {
    Bytes { reason: String },
    Disk { code: i32 },
}

/// The cache.
#[derive(Debug)]
pub(in crate::store) struct FooterCache {
    pub(in crate::store) clock: Clock,
    believed_for: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The segment sealed last.
    newest: Option<(SegmentId, FooterRows)>,
    checked: Cache<SegmentId, Arc<SampledRows>>,
    blocks: Cache<(SegmentId, usize), FooterRows>,
    damaged: Cache<SegmentId, Damaged>,
}

/// The result of rebuilding the rows of a damaged footer.
#[derive(Debug, Clone)]
pub(in crate::store) enum Made {
    /// All that can be known: these rows are kept until the footer is valid again.
    Whole(FooterRows),
    /// The disk failed to read some of the entries: queues may be missing.
    Unread(FooterRows),
    /// It was not possible.
    Nothing,
}

#[derive(Debug, Clone)]
struct Damaged {
    damage: Damage,
    made: Made,
    /// When this outcome was first reached.
    first: Instant,
    since: Instant,
}

impl Made {
    const fn rows(&self) -> Option<&FooterRows> {
        match self {
            Self::Whole(rows) | Self::Unread(rows) => Some(rows),
            Self::Nothing => None,
        }
    }
}

impl Damaged {
    /// Whether the footer need not be read again yet. While the outcome stays the same, the intervals grow: the
    /// disk may take seconds to report a failure.
    fn is_believed(&self, now: Instant, believed_for: Duration) -> bool {
        let lasted = self.since.saturating_duration_since(self.first);
        let longest = believed_for.saturating_mul(BELIEVED_TIMES_MAX);
        let pause = (lasted / 2).clamp(believed_for, longest);
        now.saturating_duration_since(self.since) < pause
    }

    /// The rows, and why they had to be rebuilt.
    fn found(&self, segment: SegmentId) -> Result<(FooterRows, Damage), ReadError> {
        let rows = self.made.rows().cloned();
        let rows = rows.ok_or_else(|| self.damage.error(segment))?;
        Ok((rows, self.damage.clone()))
    }
}

impl Damage {
    pub(in crate::store) fn error(&self, segment: SegmentId) -> ReadError {
        match self {
            Self::Bytes { reason } => ReadError::Footer {
                segment,
                reason: reason.clone(),
            },
            Self::Disk { code } => ReadError::Io {
                segment,
                source: io::Error::from_raw_os_error(*code),
            },
        }
    }
}

impl From<&ReadError> for Damage {
    fn from(error: &ReadError) -> Self {
        let code = match error {
            ReadError::Io { source, .. } => source.raw_os_error(),
            _ => None,
        };
        match (code, error) {
            (Some(code), _) => Self::Disk { code },
            (None, ReadError::Footer { reason, .. }) => Self::Bytes {
                reason: reason.clone(),
            },
            (None, error) => Self::Bytes {
                reason: error.to_string(),
            },
        }
    }
}

impl FooterCache {
    /// Half of the bytes is for what locates rows, a quarter for blocks of them, and a quarter for rebuilt
    /// rows, of which those of one segment are kept whatever their size.
    pub(in crate::store) fn new(bytes_max: usize, believed_for: Duration, clock: Clock) -> Self {
        Self {
            clock,
            believed_for,
            inner: Mutex::new(Inner {
                newest: None,
                checked: Cache::new(bytes_max / 2),
                blocks: Cache::new(bytes_max / 4),
                damaged: Cache::new(bytes_max / 4),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A segment is being sealed with these rows.
    pub(in crate::store) fn sealed(&self, segment: SegmentId, rows: &[PlacedRow]) {
        let rows = FooterRows::new(encode_rows(rows).into());
        self.lock().newest = Some((segment, rows));
    }

    /// What is known without reading the file.
    fn known(&self, segment: SegmentId, now: Instant) -> Option<Result<Footer, ReadError>> {
        let mut inner = self.lock();
        if let Some((id, rows)) = &inner.newest
            && *id == segment
        {
            return Some(Ok(Footer::Here(rows.clone())));
        }
        if let Some(damaged) = inner.damaged.get(segment)
            && damaged.is_believed(now, self.believed_for)
        {
            let found = damaged.found(segment);
            return Some(found.map(|(rows, damage)| Footer::Rebuilt(rows, damage)));
        }
        Some(Ok(Footer::InFile(inner.checked.get(segment)?)))
    }

    fn checked(&self, segment: SegmentId, sparse: &Arc<SampledRows>) {
        let mut inner = self.lock();
        inner.damaged.retain(|known| *known != segment);
        inner.checked.put(segment, Arc::clone(sparse), sparse.bytes());
    }

    /// The result of rebuilding the rows of this segment, if that was done and still counts. Its footer has
    /// just been found damaged once more.
    pub(in crate::store) fn made_again(
        &self,
        segment: SegmentId,
        now: Instant,
    ) -> Option<Result<(FooterRows, Damage), ReadError>> {
        let mut inner = self.lock();
        let known = inner.damaged.get(segment)?;
        if let Made::Whole(rows) = &known.made {
            let bytes = rows.bytes();
            let renewed = Damaged {
                since: now,
                ..known.clone()
            };
            inner.damaged.put(segment, renewed, bytes);
        } else if !known.is_believed(now, self.believed_for) {
            return None;
        }
        Some(known.found(segment))
    }

    /// Remembers that a footer is damaged, and the result of rebuilding its rows.
    pub(in crate::store) fn damaged(&self, segment: SegmentId, damage: &ReadError, made: Made, now: Instant) {
        let mut inner = self.lock();
        inner.forget_file(segment);
        let bytes = size_of::<Damaged>() + made.rows().map_or(0, FooterRows::bytes);
        let before = inner.damaged.get(segment);
        let as_before = before.filter(|before| discriminant(&before.made) == discriminant(&made));
        let damaged = Damaged {
            damage: damage.into(),
            made,
            first: as_before.map_or(now, |before| before.first),
            since: now,
        };
        inner.damaged.put(segment, damaged, bytes);
    }

    /// The segment is freed.
    pub(in crate::store) fn forget(&self, segment: SegmentId) {
        let mut inner = self.lock();
        inner.newest.take_if(|(id, _)| *id == segment);
        inner.damaged.retain(|known| *known != segment);
        inner.forget_file(segment);
    }

    /// As after a start.
    #[cfg(test)]
    pub(in crate::store) fn forget_all(&self) {
        let mut inner = self.lock();
        inner.newest = None;
        inner.damaged.retain(|_| false);
        inner.checked.retain(|_| false);
        inner.blocks.retain(|_| false);
    }
}

impl Inner {
    fn forget_file(&mut self, segment: SegmentId) {
        self.checked.retain(|known| *known != segment);
        self.blocks.retain(|(known, _)| *known != segment);
    }
}

impl SegmentFiles {
    /// Where the rows of a sealed segment are. An unknown footer is read only if `access` allows it.
    pub(in crate::store) fn footer_by(
        &self,
        access: Access,
        segment: SegmentId,
    ) -> Result<Footer, ReadError> {
        if let Some(known) = self.footers.known(segment, self.footers.clock.now()) {
            return known;
        }
        if !access.may_block() {
            return Err(ReadError::WouldBlock);
        }
        let sparse = Arc::new(self.check_footer(segment)?);
        self.footers.checked(segment, &sparse);
        Ok(Footer::InFile(sparse))
    }

    /// Prefetches the end of a sealed segment's file, where its rows are. Opens the file.
    pub(in crate::store) fn ask_for_footer(&self, segment: SegmentId) {
        // The read that follows will report what is wrong.
        let Ok(file) = self.file(segment) else { return };
        let Ok(bytes) = file.bytes() else { return };
        let from = bytes.saturating_sub(ASKED_BYTES);
        file.will_read(from, bytes - from);
    }

    /// All rows of a sealed segment at once; not cached.
    pub(in crate::store) fn footer(&self, segment: SegmentId) -> Result<FooterRows, ReadError> {
        match self.footers.known(segment, self.footers.clock.now()) {
            Some(Ok(Footer::Here(rows) | Footer::Rebuilt(rows, _))) => return Ok(rows),
            Some(Err(damage)) => return Err(damage),
            None | Some(Ok(Footer::InFile(_))) => {}
        }
        let file = self.file(segment)?;
        let trailer = trailer(&*file, segment)?;
        let rows = read_exact_at(&*file, trailer.rows_bytes(), u64::from(trailer.rows_at));
        let rows = rows.map_err(|error| unread(segment, error))?;
        FooterRows::check(&trailer, rows.into()).ok_or_else(|| changed(segment))
    }

    fn check_footer(&self, segment: SegmentId) -> Result<SampledRows, ReadError> {
        let file = self.file(segment)?;
        let trailer = trailer(&*file, segment)?;
        let mut making = Making::default();
        let mut at = 0;
        while at < trailer.rows_bytes() {
            let bytes = (trailer.rows_bytes() - at).min(CHECKED_BLOCKS * BLOCK_BYTES);
            let rows = read_exact_at(&*file, bytes, u64::from(trailer.rows_at) + at as u64);
            making.add(&rows.map_err(|error| unread(segment, error))?);
            at += bytes;
        }
        making.finish(&trailer).ok_or_else(|| changed(segment))
    }

    /// A block of rows that were checked before.
    pub(in crate::store) fn block(
        &self,
        access: Access,
        segment: SegmentId,
        sparse: &SampledRows,
        number: usize,
    ) -> Result<FooterRows, ReadError> {
        if let Some(rows) = self.footers.lock().blocks.get((segment, number)) {
            return Ok(rows);
        }
        let (position, bytes) = sparse.place(number);
        let file = self.file_by(access, segment)?;
        let read = || {
            if access.may_block() {
                read_exact_at(&*file, bytes, position)
            } else {
                try_read_up_to_at(&*file, bytes, position)
            }
        };
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock => ReadError::WouldBlock,
            _ => unread(segment, error),
        };
        let mut rows = read().map_err(failed)?;
        if !sparse.holds(number, &rows) {
            if !access.may_block() {
                return Err(ReadError::WouldBlock);
            }
            // Once more, bypassing the page cache: that can be wrong, too.
            file.forget(position, bytes as u64);
            rows = read().map_err(failed)?;
            if !sparse.holds(number, &rows) {
                return Err(changed(segment));
            }
        }
        let rows = FooterRows::new(rows.into());
        let mut inner = self.footers.lock();
        inner.blocks.put((segment, number), rows.clone(), bytes);
        Ok(rows)
    }
}

fn trailer(file: &dyn DiskFile, segment: SegmentId) -> Result<Trailer, ReadError> {
    let short = || damaged(segment, "the file is too short");
    let bytes = file.bytes().map_err(|error| unread(segment, error))?;
    let trailer_at = bytes.checked_sub(TRAILER_BYTES as u64).ok_or_else(short)?;
    let block = read_exact_at(file, TRAILER_BYTES, trailer_at).map_err(|error| unread(segment, error))?;
    let trailer = Trailer::decode(&block).map_err(|broken| damaged(segment, &broken.to_string()))?;
    if trailer.segment != segment {
        return Err(damaged(segment, "it is another segment's"));
    }
    if u64::from(trailer.rows_at) + trailer.rows_bytes() as u64 > trailer_at {
        return Err(damaged(segment, "its rows do not fit into the file"));
    }
    Ok(trailer)
}

fn unread(segment: SegmentId, source: io::Error) -> ReadError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => damaged(segment, "the file is too short"),
        _ => ReadError::Io { segment, source },
    }
}

fn changed(segment: SegmentId) -> ReadError {
    damaged(segment, "the checksum of its rows does not hold")
}

fn damaged(segment: SegmentId, reason: &str) -> ReadError {
    ReadError::Footer {
        segment,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
#[path = "footer_cache_tests.rs"]
mod tests;
