//! The bytes of a queue file's index; pure. Every few kilobytes a mark records where a batch begins, and when
//! it was appended. Each mark has its own checksum; marks after the first damaged one are ignored.

use bytes::Buf;
use mq_common::ids::{Offset, Timestamp};

/// A batch gets a mark if it begins at least this far after the last batch that has one.
pub(super) const INTERVAL_BYTES: u32 = 8 * 1024;
/// Bytes of the header, and of a mark.
pub(crate) const MARK_BYTES: usize = 32;
/// The most bytes read of an index file: twice what the largest segment needs.
pub(crate) const INDEX_BYTES_MAX: usize = 4 * 1024 * 1024;

const MAGIC: [u8; 8] = *b"hcmq-qix";
const VERSION: u16 = 1;

/// The position of a batch in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Its base offset.
    pub(crate) offset: Offset,
    /// Its append time.
    pub(crate) time: Timestamp,
    /// Its position.
    pub(crate) position: u32,
}

/// The marks of a file, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Marks(Vec<Mark>);

/// The header of an index.
pub(super) fn header(first: Offset) -> [u8; MARK_BYTES] {
    let mut out = [0; MARK_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_be_bytes());
    out[16..24].copy_from_slice(&first.0.to_be_bytes());
    let mut covered = out.to_vec();
    covered.drain(12..16);
    out[12..16].copy_from_slice(&crc32c::crc32c(&covered).to_be_bytes());
    out
}

impl Mark {
    /// Its bytes in the index of the file that begins with `first`.
    pub(super) fn encode(&self, first: Offset) -> [u8; MARK_BYTES] {
        let mut out = [0; MARK_BYTES];
        out[..8].copy_from_slice(&self.offset.0.to_be_bytes());
        out[8..16].copy_from_slice(&self.time.0.to_be_bytes());
        out[16..20].copy_from_slice(&self.position.to_be_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&first.0.to_be_bytes()), &out[..20]);
        out[20..24].copy_from_slice(&checksum.to_be_bytes());
        out
    }

    fn decode(bytes: &[u8; MARK_BYTES], first: Offset) -> Option<Self> {
        let mut rest = &bytes[..];
        let mark = Self {
            offset: Offset(rest.get_u64()),
            time: Timestamp(rest.get_u64()),
            position: rest.get_u32(),
        };
        (mark.encode(first) == *bytes).then_some(mark)
    }
}

impl Marks {
    /// The marks of an index file within the first `data_bytes` bytes of the data; none if its header is
    /// damaged.
    pub(crate) fn decode(bytes: &[u8], first: Offset, data_bytes: u32) -> Self {
        let mut marks = Self::default();
        let Some(rest) = bytes.strip_prefix(&header(first)) else {
            return marks;
        };
        let (found, _) = rest.as_chunks::<MARK_BYTES>();
        for bytes in found {
            let Some(mark) = Mark::decode(bytes, first) else {
                break;
            };
            if mark.position >= data_bytes || !marks.takes(mark) {
                break;
            }
            marks.0.push(mark);
        }
        marks
    }

    /// Whether an index file belongs to the queue file that begins with `first`.
    pub(crate) fn holds_header(bytes: &[u8], first: Offset) -> bool {
        bytes.starts_with(&header(first))
    }

    /// The whole index file.
    pub(super) fn encode(&self, first: Offset) -> Vec<u8> {
        let mut out = header(first).to_vec();
        for mark in &self.0 {
            out.extend_from_slice(&mark.encode(first));
        }
        out
    }

    fn takes(&self, mark: Mark) -> bool {
        self.0.last().is_none_or(|last| {
            last.offset < mark.offset && last.position < mark.position && last.time <= mark.time
        })
    }

    /// Adds a batch if it is far enough after the last mark; returns whether it got one.
    pub(super) fn note(&mut self, mark: Mark) -> bool {
        let due = self
            .0
            .last()
            .is_none_or(|last| mark.position.saturating_sub(last.position) >= INTERVAL_BYTES);
        if due {
            self.0.push(mark);
        }
        due
    }

    /// The last mark at or before an offset.
    pub(super) fn at_or_before(&self, offset: Offset) -> Option<Mark> {
        let behind = self.0.partition_point(|mark| mark.offset <= offset);
        self.0.get(behind.checked_sub(1)?).copied()
    }

    /// The marks after a position.
    pub(super) fn behind(&self, position: u32) -> &[Mark] {
        let first = self.0.partition_point(|mark| mark.position <= position);
        &self.0[first..]
    }

    /// Number of marks.
    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Mark] {
        &self.0
    }

    /// Bytes of memory.
    pub(super) const fn bytes(&self) -> usize {
        self.0.len() * size_of::<Mark>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Offset = Offset(100);

    fn marks() -> Marks {
        let mut marks = Marks::default();
        for n in 0..5_u32 {
            assert!(marks.note(Mark {
                offset: Offset(100 + u64::from(n) * 7),
                time: Timestamp(1000 + u64::from(n)),
                position: n * INTERVAL_BYTES,
            }));
        }
        marks
    }

    #[test]
    fn marks_come_back_up_to_the_bytes_that_count() {
        let bytes = marks().encode(FIRST);
        assert_eq!(Marks::decode(&bytes, FIRST, u32::MAX), marks());
        assert_eq!(Marks::decode(&bytes, FIRST, 2 * INTERVAL_BYTES + 1).len(), 3);
        assert_eq!(Marks::decode(&bytes, FIRST, 2 * INTERVAL_BYTES).len(), 2);
        assert_eq!(
            Marks::decode(&bytes, Offset(99), u32::MAX).len(),
            0,
            "of another file"
        );
    }

    #[test]
    fn s12_after_any_flipped_bit_only_whole_marks_before_it_are_taken() {
        let bytes = marks().encode(FIRST);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let whole = (bit / 8 / MARK_BYTES).saturating_sub(1);
            let found = Marks::decode(&damaged, FIRST, u32::MAX);
            assert_eq!(found.all(), &marks().all()[..whole], "bit {bit}");
        }
        for cut in 0..bytes.len() {
            let whole = (cut / MARK_BYTES).saturating_sub(1);
            assert_eq!(
                Marks::decode(&bytes[..cut], FIRST, u32::MAX).len(),
                whole,
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn marks_are_found_by_offset_and_position() {
        let marks = marks();
        let at = |offset| {
            marks
                .at_or_before(Offset(offset))
                .map(|mark| mark.position / INTERVAL_BYTES)
        };
        assert_eq!(
            [99, 100, 106, 107, 500].map(at),
            [None, Some(0), Some(0), Some(1), Some(4)]
        );
        assert_eq!(marks.behind(INTERVAL_BYTES).len(), 3);
        assert_eq!(marks.behind(INTERVAL_BYTES - 1).len(), 4);
    }
}
