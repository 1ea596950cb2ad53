//! Reading ahead: a fetch that goes on where the last one ended is followed by another one, most likely. What that will
//! read is asked of the system meanwhile, so that it finds it in memory and needs no thread that waits.
//!
//! The system's own read-ahead looks at one open file, which here all readers of a segment share, and sees their turns as
//! jumps.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::SegmentId;

/// So far ahead of a reader: four answers of a usual size.
const AHEAD_BYTES: u64 = 4 * 1024 * 1024;
/// Asked for again when less than this is left.
const LEFT_BYTES: u64 = AHEAD_BYTES / 2;
/// A read that begins at most so far behind the last one's end goes on with it: other queues' batches lie in between.
const SKIPPED_BYTES: u64 = AHEAD_BYTES;
/// Readers that are told apart; more replace the one that read longest ago.
const READERS_MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ReadAhead(Mutex<Vec<Reader>>);

/// How far one reader is; the last in the list read last.
#[derive(Debug)]
struct Reader {
    segment: SegmentId,
    read: u64,
    asked: u64,
}

impl ReadAhead {
    /// Notes a read; what the system is to be asked for now, if `wanted` and the read goes on with an earlier one.
    pub(super) fn next(&self, segment: SegmentId, read: Range<u64>, wanted: bool) -> Option<Range<u64>> {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |reader: &Reader| {
            reader.segment == segment && (reader.read..=reader.read + SKIPPED_BYTES).contains(&read.start)
        };
        let Some(at) = readers.iter().rposition(goes_on) else {
            if readers.len() == READERS_MAX {
                readers.remove(0);
            }
            readers.push(Reader {
                segment,
                read: read.end,
                asked: read.end,
            });
            return None;
        };
        let mut reader = readers.remove(at);
        reader.read = read.end;
        reader.asked = reader.asked.max(read.end);
        let next = reader.asked..read.end + AHEAD_BYTES;
        let due = wanted && reader.asked - read.end < LEFT_BYTES;
        if due {
            reader.asked = next.end;
        }
        readers.push(reader);
        due.then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn sequential_reads_keep_some_megabytes_ahead_and_nothing_is_asked_for_twice() {
        let ahead = ReadAhead::default();
        let segment = SegmentId(3);
        let asked: Vec<_> = (0..8)
            .map(|turn| ahead.next(segment, turn * MIB..(turn + 1) * MIB, true))
            .collect();
        let ranges: Vec<_> = asked.iter().flatten().cloned().collect();
        assert_eq!(asked[0], None, "one read is no sequence");
        assert_eq!(asked[1], Some(2 * MIB..6 * MIB));
        assert!(
            ranges.windows(2).all(|pair| pair[0].end == pair[1].start),
            "{ranges:?}"
        );
        assert!(
            ranges.last().is_some_and(|last| last.end >= 8 * MIB + LEFT_BYTES),
            "{ranges:?}"
        );
    }

    #[test]
    fn jumps_and_unwanted_reads_ask_for_nothing() {
        let ahead = ReadAhead::default();
        for position in [50, 10, 30, 60] {
            let at = position * MIB;
            assert_eq!(ahead.next(SegmentId(1), at..at + 100, true), None);
        }
        for turn in 0..4 {
            let read = turn * MIB..(turn + 1) * MIB;
            assert_eq!(ahead.next(SegmentId(2), read, false), None);
        }
        assert!(
            ahead.next(SegmentId(2), 4 * MIB..5 * MIB, true).is_some(),
            "it was sequential all the time"
        );
    }

    #[test]
    fn two_readers_of_a_segment_are_told_apart() {
        let ahead = ReadAhead::default();
        let segment = SegmentId(1);
        let mut asked = 0;
        for turn in 0..5 {
            for begin in [0, 40 * MIB] {
                let at = begin + turn * MIB;
                asked += usize::from(ahead.next(segment, at..at + MIB, true).is_some());
            }
        }
        assert_eq!(asked, 4);
    }

    #[test]
    fn memory_is_bounded() {
        let ahead = ReadAhead::default();
        for segment in 0..1000 {
            assert_eq!(ahead.next(SegmentId(segment), 0..1, true), None);
        }
        assert_eq!(ahead.0.lock().unwrap().len(), READERS_MAX);
    }
}
