//! The segment being written: one file of the journal. It begins with a durable header and a durable name, so
//! that no frame is in a file that may vanish; it is sealed with a synced footer before the next one begins.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::log::Poisoned;
use crate::log::entry::{ChainPoint, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::store::disk::{DiskFile, Mode, is_full, lacks_descriptors, write_all_at};
use crate::store::segment_index::footer::{ROW_BYTES, TRAILER_BYTES, Trailer, encode_rows};
use crate::store::{Folder, PlacedRow, SegmentId, layout};

/// Why a step on a segment failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// It had no effect, and the disk can be trusted: the step may be retried.
    Undone(Undone),
    /// The log must stop.
    Poisoned(Poisoned),
}

/// A failed step that left nothing behind.
#[derive(Debug)]
pub(super) struct Undone {
    pub(super) operation: &'static str,
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}

impl From<Undone> for Failed {
    fn from(undone: Undone) -> Self {
        Self::Undone(undone)
    }
}

impl From<Poisoned> for Failed {
    fn from(poisoned: Poisoned) -> Self {
        Self::Poisoned(poisoned)
    }
}

/// What a new segment is made from.
#[derive(Debug)]
pub(super) enum Material {
    /// This spare, which has its blocks.
    Spare(PathBuf),
    /// A new file; all its blocks are reserved, otherwise the segment is not created.
    Whole,
    /// A new file, with as much space as there is.
    Any,
}

/// Bytes of every segment that are not for frames.
pub(super) const FIXED_BYTES: usize = SEGMENT_HEADER_BYTES + TRAILER_BYTES;

/// The segment that the log writes to.
#[derive(Debug)]
pub(super) struct Segment {
    header: SegmentHeader,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// Where the next frame begins.
    position: u32,
    /// Bytes that the file has: writes up to there change no metadata of the file system.
    filled: u32,
    /// Rows that its footer will have: at least one for each batch, more if transactions were committed in
    /// it.
    rows: usize,
    /// It takes no more frames: it is sealed, or there is no space for more.
    closed: bool,
    /// Its footer is at the end of the file's actual size, not of its planned size: there was no space for
    /// that.
    short: bool,
    sealed: bool,
    /// What the next frame continues.
    pub(super) point: ChainPoint,
}

impl Segment {
    /// Creates a segment: in the file of a spare, which it renames, or in a new file. Header and name are
    /// durable when this returns. After [`Failed::Undone`] there is no file, or one that the next try
    /// replaces.
    pub(super) fn begin(folder: &Folder, header: SegmentHeader, material: &Material) -> Result<Self, Failed> {
        let path = layout::segment_file(folder.path(), header.segment);
        let disk = folder.disk();
        let (file, back) = match material {
            Material::Spare(spare) => {
                disk.rename(spare, &path).map_err(undone("rename", spare))?;
                (disk.open(&path, Mode::Write), Some(spare))
            }
            Material::Whole | Material::Any => (create(folder, &path), None),
        };
        // Removes the file again. Best effort: the next try replaces it.
        let undo = |failed: Undone| {
            drop(match back {
                Some(spare) => disk.rename(&path, spare),
                None => disk.remove(&path),
            });
            Failed::Undone(failed)
        };
        let file = file.map_err(undone("open", &path)).map_err(undo)?;
        if matches!(material, Material::Whole) {
            file.allocate(u64::from(header.segment_bytes))
                .map_err(undone("reserve", &path))
                .map_err(undo)?;
        }
        write_all_at(&*file, &mut [IoSlice::new(&header.encode())], 0)
            .map_err(|error| full_or_poison("write", &path, error, undo))?;
        file.sync_data().map_err(poison("sync", &path))?;
        let parent = layout::journal_folder(folder.path());
        disk.sync_folder(&parent).map_err(|error| {
            if lacks_descriptors(&error) {
                undo(undone("sync", &parent)(error))
            } else {
                Failed::Poisoned(poison("sync", &parent)(error))
            }
        })?;
        Ok(Self::resume(header, path, file, FIRST_POSITION, 0, header.point))
    }

    /// Continues in a segment found at start.
    pub(super) fn resume(
        header: SegmentHeader,
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        position: u32,
        rows: usize,
        point: ChainPoint,
    ) -> Self {
        Self {
            filled: filled(&*file),
            header,
            path,
            file,
            position,
            rows,
            closed: false,
            short: false,
            sealed: false,
            point,
        }
    }

    /// Reserves the blocks of the whole segment, if there is space: writes into it then need none.
    pub(super) fn reserve(&self) {
        let bytes = u64::from(self.header.segment_bytes);
        if let Err(error) = self.file.allocate(bytes) {
            tracing::debug!(%error, path = %self.path.display(), "no blocks reserved");
        }
    }

    /// Reserves the blocks of a footer with `rows` rows, so that sealing cannot fail for lack of space: at
    /// the end of the segment's planned size, or at the end of the file, where it needs the least.
    pub(super) fn reserve_footer(&mut self, rows: usize) -> Result<(), Failed> {
        let footer_bytes = rows * ROW_BYTES + TRAILER_BYTES;
        let least = u64::from(self.position) + footer_bytes as u64;
        let found = self.file.bytes().map_err(poison("look at", &self.path))?;
        // The blocks after a closed segment were given back a moment ago: other programs may have them by
        // now.
        if !self.closed {
            let planned = least.max(found).max(u64::from(self.header.segment_bytes));
            match self.reserve_up_to(planned, footer_bytes, found) {
                Err(Failed::Undone(_)) => {}
                reserved => {
                    self.short = false;
                    return reserved;
                }
            }
        }
        self.reserve_up_to(least.max(found), footer_bytes, found)?;
        self.short = true;
        Ok(())
    }

    /// Reserves all blocks up to `end`; where blocks cannot be reserved, writes zeros in the place of the
    /// footer. Without space for them, the file is left with the length that was `found`.
    fn reserve_up_to(&self, end: u64, footer_bytes: usize, found: u64) -> Result<(), Failed> {
        let fail = |error| full_or_poison("reserve the footer of", &self.path, error, Failed::Undone);
        if self.file.allocate(end).map_err(fail)? {
            return Ok(());
        }
        let zeros = vec![0; footer_bytes];
        let place = end.saturating_sub(footer_bytes as u64);
        let written = write_all_at(
            &*self.file,
            &mut [IoSlice::new(&zeros)],
            place.max(u64::from(self.position)),
        );
        if let Err(error) = written {
            self.file.set_bytes(found).map_err(poison("cut", &self.path))?;
            return Err(fail(error));
        }
        Ok(())
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.position == FIRST_POSITION
    }

    pub(super) const fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// The applied entries of this segment need `rows` rows in its footer.
    pub(super) const fn made_rows(&mut self, rows: usize) {
        if rows > self.rows {
            self.rows = rows;
        }
    }

    pub(super) const fn rows(&self) -> usize {
        self.rows
    }

    pub(super) const fn id(&self) -> SegmentId {
        self.header.segment
    }

    /// What this segment's checksums start from.
    pub(super) const fn seed(&self) -> u32 {
        self.header.point.checksum
    }

    pub(super) const fn position(&self) -> u32 {
        self.position
    }

    /// Whether frames of this many bytes with this many batches leave room for the footer.
    pub(super) const fn has_room(&self, frames_bytes: usize, batches: usize) -> bool {
        let rows = (self.rows + batches) * ROW_BYTES;
        let bytes = self.position as usize + frames_bytes + rows + TRAILER_BYTES;
        !self.closed && bytes <= self.header.segment_bytes as usize
    }

    /// Writes zeros after frames that are about to extend a plain file, so that only one small sync in many
    /// has to commit the file's length and blocks. Large groups do not need it.
    pub(super) fn fill_ahead(&mut self, frames_bytes: usize, bytes: u32) {
        let end = u64::from(self.position) + frames_bytes as u64;
        if bytes == 0 || end <= u64::from(self.filled) || frames_bytes > (bytes / 4) as usize {
            return;
        }
        let to = (end + u64::from(bytes)).min(u64::from(self.header.segment_bytes));
        let zeros = vec![0; usize::try_from(to.saturating_sub(end)).unwrap_or_default()];
        if let Err(error) = write_all_at(&*self.file, &mut [IoSlice::new(&zeros)], end) {
            // This is for speed only; the frames themselves find a full disk.
            tracing::debug!(%error, path = %self.path.display(), "no zeros ahead");
            if is_full(&error) {
                // The zeros must not keep blocks that the frames need. If they cannot be cut off, the frames
                // find it out.
                drop(self.file.set_bytes(u64::from(self.filled.max(self.position))));
            }
        }
        // Also after a failure: otherwise every write would try again.
        self.filled = u32::try_from(to).unwrap_or(u32::MAX);
    }

    /// Writes whole frames. `point` is the point after the last of them. After [`Failed::Undone`] some of
    /// them may be in the file: see [`Segment::take_back`].
    pub(super) fn write(
        &mut self,
        slices: &mut [IoSlice<'_>],
        bytes: u32,
        batches: usize,
        point: ChainPoint,
    ) -> Result<(), Failed> {
        debug_assert_eq!(
            slices.iter().map(|slice| slice.len()).sum::<usize>(),
            bytes as usize
        );
        write_all_at(&*self.file, slices, u64::from(self.position))
            .map_err(|error| full_or_poison("write", &self.path, error, Failed::Undone))?;
        self.position += bytes;
        self.rows += batches;
        self.point = point;
        Ok(())
    }

    /// Cuts off what a write that found no space left after the last good frame: it was not acknowledged, and
    /// a restart must not find it. The segment takes no more frames.
    ///
    /// The caller must sync before it reports that nothing happened.
    pub(super) fn take_back(&mut self) -> Result<(), Poisoned> {
        self.closed = true;
        self.file
            .set_bytes(u64::from(self.position))
            .map_err(poison("cut", &self.path))
    }

    /// Makes everything written durable.
    pub(super) fn sync(&self) -> Result<(), Poisoned> {
        self.file.sync_data().map_err(poison("sync", &self.path))
    }

    /// Writes the footer and syncs it. The frames must be synced already: the trailer says so.
    pub(super) fn seal(&mut self, rows: &[PlacedRow]) -> Result<(), Poisoned> {
        let found = self.file.bytes().map_err(poison("look at", &self.path))?;
        let planned = if self.short {
            0
        } else {
            u64::from(self.header.segment_bytes)
        };
        let end = found.max(planned);
        write_footer(
            &*self.file,
            self.header.segment,
            self.position,
            &self.point,
            rows,
            end,
        )
        .and_then(|()| self.file.sync_data())
        .map_err(poison("seal", &self.path))?;
        self.sealed = true;
        self.closed = true;
        Ok(())
    }
}

/// Writes rows and trailer so that they end at `end`, or directly after the frames if they do not fit. The
/// file has no bytes after `end`.
pub(super) fn write_footer(
    file: &dyn DiskFile,
    segment: SegmentId,
    frames_end: u32,
    point: &ChainPoint,
    rows: &[PlacedRow],
    end: u64,
) -> io::Result<()> {
    let rows_bytes = encode_rows(rows);
    let room = end.saturating_sub((rows_bytes.len() + TRAILER_BYTES) as u64);
    let rows_at = room.max(u64::from(frames_end));
    let beyond = |_| io::Error::other("a segment beyond 4 GiB");
    let last = mq_common::ids::Lsn(point.next.0 - 1);
    let trailer = Trailer {
        segment,
        last,
        synced: last,
        chain: point.checksum,
        frames_end,
        rows_at: u32::try_from(rows_at).map_err(beyond)?,
        rows: u32::try_from(rows.len()).map_err(beyond)?,
        rows_checksum: crc32c::crc32c(&rows_bytes),
    };
    let block = trailer.encode();
    write_all_at(
        file,
        &mut [IoSlice::new(&rows_bytes), IoSlice::new(&block)],
        rows_at,
    )
}

/// Where the first frame begins.
pub(super) const FIRST_POSITION: u32 = 64;
const _: () = assert!(FIRST_POSITION as usize == SEGMENT_HEADER_BYTES);

/// The file's length; if unknown, the maximum, as this is for speed only.
fn filled(file: &dyn DiskFile) -> u32 {
    file.bytes()
        .ok()
        .and_then(|bytes| u32::try_from(bytes).ok())
        .unwrap_or(u32::MAX)
}

/// Wraps the error with the operation and the file.
pub(super) fn poison(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Poisoned {
    let path = path.to_owned();
    move |source| Poisoned {
        operation,
        path,
        source: Arc::new(source),
    }
}

fn undone(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Undone {
    let path = path.to_owned();
    move |source| Undone {
        operation,
        path,
        source,
    }
}

/// Only after a lack of space is everything else known to be unchanged.
fn full_or_poison(
    operation: &'static str,
    path: &Path,
    error: io::Error,
    undo: impl FnOnce(Undone) -> Failed,
) -> Failed {
    if is_full(&error) {
        undo(undone(operation, path)(error))
    } else {
        Failed::Poisoned(poison(operation, path)(error))
    }
}

/// A new file; replaces one that an earlier try left, whose number was never used.
fn create(folder: &Folder, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
    match folder.disk().open(path, Mode::CreateNew) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            folder.disk().remove(path)?;
            folder.disk().open(path, Mode::CreateNew)
        }
        opened => opened,
    }
}
