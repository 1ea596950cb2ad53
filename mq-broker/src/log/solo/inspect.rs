//! Inspecting a segment frame by frame, also beyond damage, for tools that check or show what is stored.
//! Reads one frame at a time, changes nothing and decides nothing: what damage means for a start is up to
//! recovery.

use std::io;

use bytes::Bytes;
use mq_common::ids::Lsn;

use super::scan;
use super::segment::FIRST_POSITION;
use crate::log::entry::{
    Broken, ChainPoint, FRAME_HEADER_BYTES, Header, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use crate::log::{Part, Stored};
use crate::store::disk::{DiskFile, read_up_to_at};

/// Bytes that are searched for the next frame at once.
const SEARCH_BYTES: usize = 1 << 20;

/// Something found in a segment.
#[derive(Debug)]
pub enum Piece {
    /// A valid frame that continues the chain. A damaged batch in it is `None`.
    Entry {
        /// Bytes before it in the file.
        position: u32,
        /// Its header.
        header: Header,
        /// Its commands.
        parts: Vec<Part>,
        /// Its batches.
        batches: Vec<Stored>,
    },
    /// Bytes between two frames, or before the end, that are not a frame.
    Damaged {
        /// Where they begin.
        position: u32,
        /// The first byte after them.
        end: u32,
        /// The entry that should begin here.
        lsn: Lsn,
        /// What is wrong.
        reason: Broken,
    },
}

/// The state of an inspection: how far the segment was read.
#[derive(Debug, Clone)]
pub struct Inspection {
    header: SegmentHeader,
    position: u32,
    point: ChainPoint,
    proven: Lsn,
    broken: Broken,
}

/// Reads the head of a segment's file.
///
/// # Errors
/// The disk's error.
pub fn segment_header(file: &dyn DiskFile) -> io::Result<Result<SegmentHeader, Broken>> {
    let head = read_up_to_at(file, SEGMENT_HEADER_BYTES, 0)?;
    Ok(SegmentHeader::decode(&head))
}

impl Inspection {
    /// Starts at the first frame.
    #[must_use]
    pub const fn begin(header: SegmentHeader) -> Self {
        Self {
            header,
            position: FIRST_POSITION,
            point: header.point,
            proven: Lsn(header.point.next.0.saturating_sub(1)),
            broken: Broken::End,
        }
    }

    /// The position after the last piece.
    #[must_use]
    pub const fn position(&self) -> u32 {
        self.position
    }

    /// The chain there.
    #[must_use]
    pub const fn point(&self) -> ChainPoint {
        self.point
    }

    /// The last entry that the frames so far prove synced.
    #[must_use]
    pub const fn proven(&self) -> Lsn {
        self.proven
    }

    /// Why there are no more pieces.
    #[must_use]
    pub const fn broken(&self) -> &Broken {
        &self.broken
    }

    /// The next piece. `frames_end` is the end of the last frame according to a sealed segment's footer;
    /// without it, the end is where no further frame begins.
    ///
    /// # Errors
    /// The disk's error; try again, or continue elsewhere.
    pub fn next(&mut self, file: &dyn DiskFile, frames_end: Option<u32>) -> io::Result<Option<Piece>> {
        let limit = match frames_end {
            Some(end) => end,
            None => u32::try_from(file.bytes()?).unwrap_or(u32::MAX),
        };
        if self.position >= limit {
            return Ok(None);
        }
        match self.entry(file, limit)? {
            Ok(piece) => Ok(Some(piece)),
            Err(reason) => self.skip_damage(file, limit, frames_end.is_some(), reason),
        }
    }

    fn entry(&mut self, file: &dyn DiskFile, limit: u32) -> io::Result<Result<Piece, Broken>> {
        let (position, seed) = (self.position, self.header.point.checksum);
        let head = read_up_to_at(file, FRAME_HEADER_BYTES, u64::from(position))?;
        let header = match Header::decode(&head, seed) {
            Ok(header) if header.frame_bytes <= limit - position => header,
            Ok(_) => return Ok(Err(Broken::Cut)),
            Err(broken) => return Ok(Err(broken)),
        };
        let frame = Bytes::from(read_up_to_at(
            file,
            header.frame_bytes as usize,
            u64::from(position),
        )?);
        let checked = Header::check(&frame, seed).and_then(|header| {
            if !header.follows(&self.point) {
                return Err(Broken::Chain);
            }
            let (parts, batches) = scan::read_entry(&frame, &header, &self.header, position)?;
            Ok((header, parts, batches))
        });
        let (header, parts, batches) = match checked {
            Ok(entry) => entry,
            Err(broken) => return Ok(Err(broken)),
        };
        self.position += header.frame_bytes;
        self.point = header.point();
        self.proven = self.proven.max(header.synced);
        Ok(Ok(Piece::Entry {
            position,
            header,
            parts,
            batches,
        }))
    }

    /// No frame here: continues at the next one, if there is one.
    fn skip_damage(
        &mut self,
        file: &dyn DiskFile,
        limit: u32,
        is_sealed: bool,
        reason: Broken,
    ) -> io::Result<Option<Piece>> {
        let (position, lsn) = (self.position, self.point.next);
        let end = match self.find(file, limit)? {
            Some((at, header)) => {
                self.point = ChainPoint {
                    next: header.lsn,
                    checksum: header.previous_checksum,
                    term: header.term,
                    time: header.time,
                };
                at
            }
            None if is_sealed => limit,
            None => {
                self.broken = reason;
                return Ok(None);
            }
        };
        self.position = end;
        Ok(Some(Piece::Damaged {
            position,
            end,
            lsn,
            reason,
        }))
    }

    /// The next position of a valid header of a later frame.
    fn find(&self, file: &dyn DiskFile, limit: u32) -> io::Result<Option<(u32, Header)>> {
        let mut from = self.position + 1;
        while from < limit {
            let bytes = read_up_to_at(file, SEARCH_BYTES + FRAME_HEADER_BYTES, u64::from(from))?;
            if bytes.is_empty() {
                break;
            }
            let seed = self.header.point.checksum;
            let found = scan::first_header(&bytes, seed, |header| header.lsn >= self.point.next);
            if let Some((at, header)) = found {
                let at = u32::try_from(at).ok().and_then(|at| from.checked_add(at));
                return Ok(at.filter(|at| *at < limit).map(|at| (at, header)));
            }
            let step = u32::try_from(SEARCH_BYTES.min(bytes.len())).unwrap_or(u32::MAX);
            from = from.saturating_add(step);
        }
        Ok(None)
    }
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
mod tests;
