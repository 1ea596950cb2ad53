//! Reading a segment back; pure. Walks its frames as far as the chain is intact, and searches the bytes after
//! that point for proof of what had been synced.

use std::collections::BTreeSet;

use bytes::Bytes;
use mq_common::batch::Batch;
use mq_common::ids::Lsn;

use super::segment::FIRST_POSITION;
use crate::log::entry::{
    Broken, ChainPoint, FORMAT_VERSION, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Header, SegmentHeader,
    decode_commands,
};
use crate::log::{Part, Stored};

/// A valid frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameAt {
    pub(super) position: u32,
    pub(super) header: Header,
    /// One of its batches is damaged.
    pub(super) damaged: bool,
}

/// The frames found in a segment.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) frames: Vec<FrameAt>,
    /// The end of the last valid frame.
    pub(super) end: u32,
    /// The chain there.
    pub(super) point: ChainPoint,
    /// Why there is no further frame.
    pub(super) broken: Broken,
    /// The last entry that these frames prove synced.
    pub(super) proven: Lsn,
}

/// Walks the frames of a segment. Batches of entries above `checked` are checked too.
pub(super) fn walk(bytes: &Bytes, header: &SegmentHeader, checked: Lsn) -> Walk {
    let mut walk = Walk {
        frames: Vec::new(),
        end: FIRST_POSITION,
        point: header.point,
        broken: Broken::End,
        proven: Lsn(header.point.next.0.saturating_sub(1)),
    };
    loop {
        let rest = bytes.get(walk.end as usize..).unwrap_or(&[]);
        let frame = match Header::check(rest, header.point.checksum) {
            Ok(frame) if frame.follows(&walk.point) => frame,
            Ok(_) => {
                walk.broken = Broken::Chain;
                return walk;
            }
            Err(broken) => {
                walk.broken = broken;
                return walk;
            }
        };
        let Some(end) = walk.end.checked_add(frame.frame_bytes) else {
            walk.broken = Broken::Cut;
            return walk;
        };
        let whole = bytes.slice(walk.end as usize..end as usize);
        let damaged = match read_entry(&whole, &frame, header, walk.end) {
            Ok((_, batches)) => frame.lsn > checked && batches.iter().any(|stored| stored.batch.is_none()),
            Err(broken) => {
                walk.broken = broken;
                return walk;
            }
        };
        walk.frames.push(FrameAt {
            position: walk.end,
            header: frame,
            damaged,
        });
        walk.proven = walk.proven.max(frame.synced);
        walk.point = frame.point();
        walk.end = end;
    }
}

/// The commands and batches of a frame; a damaged batch is `None`.
pub(super) fn read_entry(
    frame: &Bytes,
    header: &Header,
    segment: &SegmentHeader,
    position: u32,
) -> Result<(Vec<Part>, Vec<Stored>), Broken> {
    let (parts, mut batches) = decode_commands(header, frame, segment.segment, position)?;
    for stored in &mut batches {
        let from = (stored.location.position - position) as usize;
        let region = frame.slice(from..from + stored.location.bytes as usize);
        stored.batch = Batch::parse(region)
            .ok()
            .filter(|batch| batch.checksum() == stored.checksum);
    }
    Ok((parts, batches))
}

/// The last entry that was synced according to any frame of this segment in `bytes` whose lsn is above
/// `above`. Tries every byte, because damage may hide where frames begin. Only the header of a frame must be
/// valid: its checksum starts from the segment's seed, which no message can know.
pub(super) fn later_proof(bytes: &[u8], seed: u32, above: Lsn) -> Lsn {
    let later = written_headers(bytes, seed).filter(|header| header.lsn > above);
    later.map(|header| header.synced).max().unwrap_or(Lsn(0))
}

/// Entries whose frame headers are valid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entries {
    /// How many.
    pub(super) count: usize,
    /// The first and the last of them.
    pub(super) ends: Option<(Lsn, Lsn)>,
}

/// The entries from `next` on with valid frame headers in `bytes`. Tries every byte, as [`later_proof`] does.
pub(super) fn entries_in(bytes: &[u8], seed: u32, next: Lsn) -> Entries {
    let entries = written_headers(bytes, seed).map(|header| header.lsn);
    let entries: BTreeSet<Lsn> = entries.filter(|lsn| *lsn >= next).collect();
    Entries {
        count: entries.len(),
        ends: entries.first().copied().zip(entries.last().copied()),
    }
}

/// The valid headers, wherever anything is written; some of them twice.
fn written_headers(bytes: &[u8], seed: u32) -> impl Iterator<Item = Header> + '_ {
    written_blocks(bytes, 0).flat_map(move |block| {
        // A frame may begin before the block: lengths begin with a zero byte.
        let from = block.start.saturating_sub(FRAME_HEADER_BYTES);
        let end = (block.end + FRAME_HEADER_BYTES).min(bytes.len());
        headers(&bytes[from..end], seed).map(|(_, header)| header)
    })
}

/// The first position in `bytes` of a valid frame header of this segment that is `wanted`.
pub(super) fn first_header(
    bytes: &[u8],
    seed: u32,
    wanted: impl Fn(&Header) -> bool,
) -> Option<(usize, Header)> {
    headers(bytes, seed).find(|(_, header)| wanted(header))
}

/// Every position of a valid frame header of this segment.
fn headers(bytes: &[u8], seed: u32) -> impl Iterator<Item = (usize, Header)> + '_ {
    const VERSION_AT: usize = 44;
    let version = FORMAT_VERSION.to_be_bytes();
    // The cheap check first: it rules out nearly every position.
    let possible =
        move |window: &[u8]| window[VERSION_AT..VERSION_AT + 2] == version && window[0] <= LENGTH_TOP_MAX;
    let windows = bytes.windows(FRAME_HEADER_BYTES).enumerate();
    windows
        .filter(move |(_, window)| possible(window))
        .filter_map(move |(at, window)| Some((at, Header::decode(window, seed).ok()?)))
}

const LENGTH_TOP_MAX: u8 = (FRAME_BYTES_MAX >> 24).to_le_bytes()[0];

/// Blocks of `bytes`, starting at `from`, that are not all zero, as ranges.
pub(super) fn written_blocks(bytes: &[u8], from: usize) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    const ZEROS: [u8; 4096] = [0; 4096];
    (from..bytes.len()).step_by(ZEROS.len()).filter_map(move |start| {
        let end = (start + ZEROS.len()).min(bytes.len());
        (bytes[start..end] != ZEROS[..end - start]).then_some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use mq_common::ids::{Term, Timestamp};

    use super::*;
    use crate::log::entry::encode;

    #[test]
    fn a_proof_is_found_at_any_byte_and_only_with_the_seed_and_a_later_entry() {
        let header = Header {
            frame_bytes: 0,
            checksum: 0,
            previous_checksum: 0,
            lsn: Lsn(20),
            term: Term(1),
            time: Timestamp(1),
            synced: Lsn(17),
            version: 0,
            commands: 0,
            commands_bytes: 0,
            batches: 0,
        };
        let mut frame = Vec::new();
        encode(&mut frame, 9, header, &[], &[]);
        for at in (0..9000).step_by(7).chain(4030..4110) {
            let mut bytes = vec![0; 10_000];
            bytes[at..at + frame.len()].copy_from_slice(&frame);
            assert_eq!(later_proof(&bytes, 9, Lsn(19)), Lsn(17), "at {at}");
            assert_eq!(later_proof(&bytes, 8, Lsn(19)), Lsn(0), "another seed");
            assert_eq!(later_proof(&bytes, 9, Lsn(20)), Lsn(0), "not a later entry");
        }
        assert_eq!(later_proof(&[0; 10_000], 9, Lsn(0)), Lsn(0));
    }
}
