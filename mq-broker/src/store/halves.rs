//! The locations of the batches of undecided transactions, and which segments of the journal they hold. Pure.
//!
//! A half message is in the entry that its identity names, so the order of identities is the order of
//! segments.

use std::collections::BTreeMap;

use mq_common::ids::Lsn;

use super::{HalfRow, SegmentId};
use crate::ids::BatchAt;

/// The most that a command that moves a half message adds to its bytes in the journal: frame header, command,
/// location.
const COMMAND_BYTES: u64 = 104;

/// The messages of undecided transactions in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// No half message of the segment belongs to an earlier entry.
    from: Lsn,
    count: u64,
    /// Bytes of the messages.
    bytes: u64,
}

impl Held {
    /// The most bytes that moving all of it would write.
    const fn bytes_to_move(self) -> u64 {
        self.bytes + self.count * COMMAND_BYTES
    }
}

/// The half messages of all undecided transactions.
#[derive(Debug, Default)]
pub(super) struct Halves {
    rows: BTreeMap<BatchAt, HalfRow>,
    held: BTreeMap<SegmentId, Held>,
}

impl Halves {
    /// As the checkpoint kept them.
    pub(super) fn load(rows: Vec<HalfRow>) -> Self {
        let mut halves = Self::default();
        for row in rows {
            halves.insert(row);
        }
        halves
    }

    pub(super) fn insert(&mut self, row: HalfRow) {
        if self.rows.insert(row.at, row).is_some() {
            return;
        }
        let held = self.held.entry(row.location.segment).or_insert(Held {
            from: row.at.lsn,
            count: 0,
            bytes: 0,
        });
        held.from = held.from.min(row.at.lsn);
        held.count += 1;
        held.bytes += u64::from(row.location.bytes);
    }

    /// Forgets those of an entry.
    pub(super) fn remove(&mut self, lsn: Lsn) {
        while let Some((at, row)) = self.rows.range(BatchAt { lsn, index: 0 }..).next()
            && at.lsn == lsn
        {
            let (at, row) = (*at, *row);
            self.rows.remove(&at);
            if let Some(held) = self.held.get_mut(&row.location.segment) {
                held.count -= 1;
                held.bytes -= u64::from(row.location.bytes);
                if held.count == 0 {
                    self.held.remove(&row.location.segment);
                }
            }
        }
    }

    pub(super) fn get(&self, at: BatchAt) -> Option<HalfRow> {
        self.rows.get(&at).copied()
    }

    pub(super) fn contains(&self, at: BatchAt) -> bool {
        self.rows.contains_key(&at)
    }

    /// The segments that have any, and the bytes that it would take to move them.
    pub(super) fn segments(&self) -> impl ExactSizeIterator<Item = (SegmentId, u64)> {
        let held = self.held.iter();
        held.map(|(segment, held)| (*segment, held.bytes_to_move()))
    }

    /// Those in a segment, from the first one of an entry after `after` on.
    pub(super) fn of(&self, segment: SegmentId, after: Lsn) -> impl Iterator<Item = HalfRow> {
        let held = self.held.get(&segment);
        let from = held.map(|held| held.from.max(Lsn(after.0.saturating_add(1))));
        let rows = from.map(|lsn| self.rows.range(BatchAt { lsn, index: 0 }..));
        let rows = rows.into_iter().flatten().map(|(_, row)| *row);
        rows.take_while(move |row| row.location.segment == segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Location;

    fn row(lsn: u64, index: u32, segment: u64) -> HalfRow {
        HalfRow {
            at: BatchAt { lsn: Lsn(lsn), index },
            location: Location {
                segment: SegmentId(segment),
                position: index,
                bytes: 10,
            },
            checksum: 0,
        }
    }

    #[test]
    fn a_segment_is_held_by_what_it_has_and_no_longer() {
        let rows = [row(1, 0, 1), row(3, 0, 1), row(3, 1, 1), row(5, 2, 2)];
        let mut halves = Halves::load(rows.to_vec());
        let segments = |halves: &Halves| {
            let segments = halves.segments().map(|(segment, bytes)| (segment.0, bytes));
            segments.collect::<Vec<_>>()
        };
        let bytes = 10 + COMMAND_BYTES;
        assert_eq!(segments(&halves), [(1, 3 * bytes), (2, bytes)]);
        assert_eq!(halves.of(SegmentId(1), Lsn(0)).collect::<Vec<_>>(), rows[..3]);
        assert_eq!(halves.of(SegmentId(1), Lsn(1)).collect::<Vec<_>>(), rows[1..3]);
        assert_eq!(halves.of(SegmentId(2), Lsn(0)).collect::<Vec<_>>(), rows[3..]);
        halves.remove(Lsn(1));
        assert_eq!(halves.of(SegmentId(1), Lsn(0)).collect::<Vec<_>>(), rows[1..3]);
        halves.remove(Lsn(3));
        assert_eq!(segments(&halves), [(2, bytes)]);
        assert_eq!(halves.of(SegmentId(1), Lsn(0)).count(), 0);
        halves.remove(Lsn(4));
        assert!(halves.contains(rows[3].at));
    }
}
