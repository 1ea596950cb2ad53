//! Reading sealed segments again, long after recovery, for callers that need the content of old entries.

use std::io;

use bytes::Bytes;
use mq_common::ids::Lsn;

use super::scan;
use crate::log::Entry;
use crate::log::entry::{ChainPoint, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::store::disk::{Mode, lacks_descriptors, read_up_to_at};
use crate::store::io::unreadable::Around;
use crate::store::segment_index::footer::{TRAILER_BYTES, Trailer};
use crate::store::{Folder, ReadError, SegmentId, layout};

/// Why a segment could not be read again.
#[derive(Debug, thiserror::Error)]
pub enum RereadError {
    /// Its header is damaged.
    #[error("the header of journal segment {} is damaged", segment.0)]
    Header {
        /// The segment.
        segment: SegmentId,
    },
    /// The disk failed.
    #[error("cannot read journal segment {}: {source}", segment.0)]
    Io {
        /// The segment.
        segment: SegmentId,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

impl From<RereadError> for ReadError {
    fn from(error: RereadError) -> Self {
        match error {
            RereadError::Io { segment, source } => Self::Io { segment, source },
            RereadError::Header { segment } => Self::Footer {
                segment,
                reason: "its header is damaged, too".to_owned(),
            },
        }
    }
}

impl RereadError {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// How far a sealed segment could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Reach {
    /// To its end: its trailer or the next segment goes on from there.
    End,
    /// Up to this entry, which is damaged; or it is the first of the next segment, but nothing proves that.
    Before(Lsn),
    /// Like `Before`, but the disk failed to read part of the segment, which may be temporary.
    Unread(Lsn),
}

/// Visits every entry of a sealed segment, in order, as far as its frames are intact. Takes the memory of a
/// whole segment meanwhile.
///
/// # Errors
/// [`RereadError`].
pub fn entries(
    folder: &Folder,
    segment: SegmentId,
    mut visit: impl FnMut(&Entry<'_>),
) -> Result<Reach, RereadError> {
    let io = |source| RereadError::Io { segment, source };
    let path = layout::segment_file(folder.path(), segment);
    let file = folder.disk().open(&path, Mode::Read).map_err(io)?;
    let bytes = usize::try_from(file.bytes().map_err(io)?).unwrap_or(usize::MAX);
    // What the disk cannot read counts as damage; no entry after it is visited.
    let file = Around::new(&*file);
    let bytes = Bytes::from(read_up_to_at(&file, bytes.min(u32::MAX as usize), 0).map_err(io)?);
    let header = SegmentHeader::decode(&bytes[..bytes.len().min(SEGMENT_HEADER_BYTES)])
        .ok()
        .filter(|header| header.segment == segment)
        .ok_or_else(|| match file.unreadable().is_empty() {
            true => RereadError::Header { segment },
            false => io(io::Error::from_raw_os_error(libc::EIO)),
        })?;
    let mut is_unread = !file.unreadable().is_empty();
    let before = |is_unread, lsn| match is_unread {
        true => Reach::Unread(lsn),
        false => Reach::Before(lsn),
    };
    // No batch is checked: the code that serves a batch does that.
    let walk = scan::walk(&bytes, &header, Lsn(u64::MAX));
    for frame in walk.frames {
        let start = frame.position as usize;
        let whole = bytes.slice(start..start + frame.header.frame_bytes as usize);
        let Ok((parts, batches)) = scan::read_entry(&whole, &frame.header, &header, frame.position) else {
            return Ok(before(is_unread, frame.header.lsn));
        };
        visit(&Entry {
            lsn: frame.header.lsn,
            term: frame.header.term,
            time: frame.header.time,
            segment,
            replayed: true,
            parts: &parts,
            batches: &batches,
        });
    }
    let is_end = ends_at(&bytes, segment, &walk.point)
        || match begins_at(folder, segment, &walk.point) {
            Err(error) if lacks_descriptors(&error) => return Err(io(error)),
            Err(_) => {
                is_unread = true;
                false
            }
            Ok(begins) => begins,
        };
    Ok(match is_end {
        true => Reach::End,
        false => before(is_unread, walk.point.next),
    })
}

/// Whether the trailer of a segment confirms that its frames end here.
fn ends_at(bytes: &[u8], segment: SegmentId, point: &ChainPoint) -> bool {
    let trailer = bytes.last_chunk::<TRAILER_BYTES>();
    trailer
        .and_then(|block| Trailer::decode(block).ok())
        .is_some_and(|trailer| {
            trailer.segment == segment
                && trailer.last.0 + 1 == point.next.0
                && trailer.chain == point.checksum
        })
}

/// Whether the next segment exists and continues from here.
fn begins_at(folder: &Folder, segment: SegmentId, point: &ChainPoint) -> io::Result<bool> {
    let next = SegmentId(segment.0 + 1);
    let header = header_of(folder, next)?;
    Ok(header.is_some_and(|header| header.segment == next && header.point == *point))
}

/// The header of a segment, if its file exists and the header is valid.
fn header_of(folder: &Folder, segment: SegmentId) -> io::Result<Option<SegmentHeader>> {
    let path = layout::segment_file(folder.path(), segment);
    let file = folder.disk().open(&path, Mode::Read);
    match file.and_then(|file| read_up_to_at(&*file, SEGMENT_HEADER_BYTES, 0)) {
        Ok(head) => Ok(SegmentHeader::decode(&head).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The segment before `before` that holds the entry, if its file exists and its header is valid; otherwise
/// the oldest segment, if the entry is older. `None` = there is no older segment.
///
/// # Errors
/// The folder cannot be listed, or there is no file descriptor left to search for the entry.
pub fn segment_of(folder: &Folder, before: SegmentId, lsn: Lsn) -> Result<Option<SegmentId>, RereadError> {
    let io = |source| RereadError::Io {
        segment: before,
        source,
    };
    let names = folder.disk().list(&layout::journal_folder(folder.path()));
    let names = names.map_err(io)?;
    let older = names.iter().filter_map(|name| layout::parse_segment(name));
    // The last one that begins at or before the entry.
    let mut older: Vec<SegmentId> = older.filter(|segment| *segment < before).collect();
    older.reverse();
    let mut oldest = None;
    for segment in older {
        let header = match header_of(folder, segment) {
            Err(error) if lacks_descriptors(&error) => return Err(io(error)),
            // Reading the segment reports that.
            header => header.ok().flatten(),
        };
        oldest = Some(segment);
        if header.is_some_and(|header| header.point.next <= lsn) {
            break;
        }
    }
    Ok(oldest)
}
