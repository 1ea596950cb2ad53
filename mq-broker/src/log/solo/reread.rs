//! Reading sealed segments again, long after recovery: for who has to know what an old entry said.

use bytes::Bytes;
use mq_common::ids::Lsn;

use super::scan;
use crate::log::Entry;
use crate::log::entry::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::store::disk::{Mode, read_up_to_at};
use crate::store::{Folder, SegmentId, layout};

/// Why a segment could not be read again.
#[derive(Debug, thiserror::Error)]
pub enum RereadError {
    /// Its beginning is damaged.
    #[error("the header of journal segment {} does not hold", segment.0)]
    Header {
        /// The segment.
        segment: SegmentId,
    },
    /// The disk failed.
    #[error("cannot read journal segment {}: {source}", segment.0)]
    Io {
        /// The segment.
        segment: SegmentId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl RereadError {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}

/// Shows every entry of a segment, in order, as far as its frames hold. Takes the memory of a whole segment meanwhile.
///
/// # Errors
/// [`RereadError`].
pub fn entries(
    folder: &Folder,
    segment: SegmentId,
    mut visit: impl FnMut(&Entry<'_>),
) -> Result<(), RereadError> {
    let io = |source| RereadError::Io { segment, source };
    let path = layout::segment_file(folder.path(), segment);
    let file = folder.disk().open(&path, Mode::Read).map_err(io)?;
    let bytes = usize::try_from(file.bytes().map_err(io)?).unwrap_or(usize::MAX);
    let bytes = Bytes::from(read_up_to_at(&*file, bytes.min(u32::MAX as usize), 0).map_err(io)?);
    let header = SegmentHeader::decode(&bytes[..bytes.len().min(SEGMENT_HEADER_BYTES)])
        .ok()
        .filter(|header| header.segment == segment)
        .ok_or(RereadError::Header { segment })?;
    // No batch is checked: whoever serves one does that.
    for frame in scan::walk(&bytes, &header, Lsn(u64::MAX)).frames {
        let start = frame.position as usize;
        let whole = bytes.slice(start..start + frame.header.frame_bytes as usize);
        let Ok((parts, batches)) = scan::read_entry(&whole, &frame.header, &header, frame.position) else {
            break;
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
    Ok(())
}

/// The segment before `before` that holds the entry, if its file is there and its header holds.
#[must_use]
pub fn segment_of(folder: &Folder, before: SegmentId, lsn: Lsn) -> Option<SegmentId> {
    let names = folder.disk().list(&layout::journal_folder(folder.path())).ok()?;
    let older = names.iter().filter_map(|name| layout::parse_segment(name));
    // The last one that begins at or before it.
    let mut older: Vec<SegmentId> = older.filter(|segment| *segment < before).collect();
    older.reverse();
    older.into_iter().find(|segment| {
        let path = layout::segment_file(folder.path(), *segment);
        let head = folder
            .disk()
            .open(&path, Mode::Read)
            .and_then(|file| read_up_to_at(&*file, SEGMENT_HEADER_BYTES, 0));
        head.ok()
            .and_then(|head| SegmentHeader::decode(&head).ok())
            .is_some_and(|header| header.point.next <= lsn)
    })
}
