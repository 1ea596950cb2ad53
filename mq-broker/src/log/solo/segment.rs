//! The segment being written: one file of the journal. Begun with a durable header and a durable name, so that a frame
//! never stands in a file that may vanish; sealed with a synced footer before the next one begins.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use crate::log::Poisoned;
use crate::log::entry::{ChainPoint, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::store::disk::{DiskFile, Mode, write_all_at};
use crate::store::footer::{ROW_BYTES, TRAILER_BYTES, Trailer, encode_rows};
use crate::store::{Folder, PlacedRow, SegmentId, layout};

/// Bytes of a segment that are not for frames, whatever it holds.
pub(super) const FIXED_BYTES: usize = SEGMENT_HEADER_BYTES + TRAILER_BYTES;

/// See the module.
#[derive(Debug)]
pub(super) struct Segment {
    header: SegmentHeader,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// Where the next frame begins.
    position: u32,
    /// Bytes that the file has: up to there writing changes no metadata of the file system.
    filled: u32,
    /// Batches in it: the footer will have about so many rows.
    batches: usize,
    /// What the next frame continues.
    pub(super) point: ChainPoint,
}

impl Segment {
    /// Begins a segment: in the file `spare`, which it renames, else in a new file. Header and name are durable then.
    pub(super) fn begin(
        folder: &Folder,
        header: SegmentHeader,
        spare: Option<PathBuf>,
    ) -> Result<Self, Poisoned> {
        let path = layout::segment_file(folder.path(), header.segment);
        let disk = folder.disk();
        let file = match &spare {
            Some(spare) => disk
                .rename(spare, &path)
                .and_then(|()| disk.open(&path, Mode::Write))
                .map_err(poison("rename", spare))?,
            None => disk
                .open(&path, Mode::CreateNew)
                .map_err(poison("create", &path))?,
        };
        write_all_at(&*file, &mut [IoSlice::new(&header.encode())], 0).map_err(poison("write", &path))?;
        file.sync_data().map_err(poison("sync", &path))?;
        let parent = layout::journal_folder(folder.path());
        disk.sync_folder(&parent).map_err(poison("sync", &parent))?;
        Ok(Self {
            filled: filled(&*file),
            header,
            path,
            file,
            position: FIRST_POSITION,
            batches: 0,
            point: header.point,
        })
    }

    /// Goes on with a segment found at start.
    pub(super) fn resume(
        header: SegmentHeader,
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        position: u32,
        batches: usize,
        point: ChainPoint,
    ) -> Self {
        Self {
            filled: filled(&*file),
            header,
            path,
            file,
            position,
            batches,
            point,
        }
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

    /// Whether frames of so many bytes with so many batches leave room for the footer.
    pub(super) const fn has_room(&self, frames_bytes: usize, batches: usize) -> bool {
        let rows = (self.batches + batches) * ROW_BYTES;
        self.position as usize + frames_bytes + rows + TRAILER_BYTES <= self.header.segment_bytes as usize
    }

    /// Writes zeros behind frames that are about to make a plain file longer, so that only one small sync in many has to
    /// commit its length and blocks. Large groups do not need it.
    pub(super) fn fill_ahead(&mut self, frames_bytes: usize, bytes: u32) {
        let end = u64::from(self.position) + frames_bytes as u64;
        if bytes == 0 || end <= u64::from(self.filled) || frames_bytes > (bytes / 4) as usize {
            return;
        }
        let to = (end + u64::from(bytes)).min(u64::from(self.header.segment_bytes));
        let zeros = vec![0; usize::try_from(to.saturating_sub(end)).unwrap_or_default()];
        if let Err(error) = write_all_at(&*self.file, &mut [IoSlice::new(&zeros)], end) {
            // It is for speed only; a full disk is found by the frames themselves.
            tracing::debug!(%error, path = %self.path.display(), "no zeros ahead");
        }
        // Also after a failure: else every write would try again.
        self.filled = u32::try_from(to).unwrap_or(u32::MAX);
    }

    /// Writes whole frames. `point` is the one behind the last of them.
    pub(super) fn write(
        &mut self,
        slices: &mut [IoSlice<'_>],
        bytes: u32,
        batches: usize,
        point: ChainPoint,
    ) -> Result<(), Poisoned> {
        debug_assert_eq!(
            slices.iter().map(|slice| slice.len()).sum::<usize>(),
            bytes as usize
        );
        write_all_at(&*self.file, slices, u64::from(self.position)).map_err(poison("write", &self.path))?;
        self.position += bytes;
        self.batches += batches;
        self.point = point;
        Ok(())
    }

    /// Makes durable what was written.
    pub(super) fn sync(&self) -> Result<(), Poisoned> {
        self.file.sync_data().map_err(poison("sync", &self.path))
    }

    /// Writes the footer and syncs it. The frames must be synced before: the trailer says so.
    pub(super) fn seal(&self, rows: &[PlacedRow]) -> Result<(), Poisoned> {
        let file_bytes = self.file.bytes().map_err(poison("look at", &self.path))?;
        write_footer(
            &*self.file,
            &self.header,
            self.position,
            &self.point,
            rows,
            file_bytes,
        )
        .and_then(|()| self.file.sync_data())
        .map_err(poison("seal", &self.path))
    }
}

/// Writes rows and trailer at the end of the segment's planned size, or behind the frames if they do not fit.
pub(super) fn write_footer(
    file: &dyn DiskFile,
    header: &SegmentHeader,
    frames_end: u32,
    point: &ChainPoint,
    rows: &[PlacedRow],
    file_bytes: u64,
) -> io::Result<()> {
    let rows_bytes = encode_rows(rows);
    let planned = u64::from(header.segment_bytes).max(file_bytes);
    let room = planned.saturating_sub((rows_bytes.len() + TRAILER_BYTES) as u64);
    let rows_at = room.max(u64::from(frames_end));
    let beyond = |_| io::Error::other("a segment beyond 4 GiB");
    let last = mq_common::ids::Lsn(point.next.0 - 1);
    let trailer = Trailer {
        segment: header.segment,
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

/// What the file has; unknown = all, for this is for speed only.
fn filled(file: &dyn DiskFile) -> u32 {
    file.bytes()
        .ok()
        .and_then(|bytes| u32::try_from(bytes).ok())
        .unwrap_or(u32::MAX)
}

/// Names what failed.
pub(super) fn poison(operation: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Poisoned {
    let path = path.to_owned();
    move |source| Poisoned {
        operation,
        path,
        source: Arc::new(source),
    }
}
