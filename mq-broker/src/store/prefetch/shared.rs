//! Prefetching for several readers of a segment together. Where most of a segment is being read by nearby
//! readers of several queues, its file is requested in stretches for all of them, each stretch once. Batch by
//! batch, the disk would get a request for each, and the system would read a page at a time: see
//! `docs/performance-notes.md`, "Reading old messages".

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::ids::QueueKey;
use crate::store::{Location, PlacedRow, SegmentId};

/// Bytes of a segment's file requested at once.
pub(in crate::store) const STRETCH_BYTES: u32 = 1024 * 1024;
/// Remembered requests: more than all readers that are told apart have ahead of them.
const ASKED_MAX: usize = 512;
/// For this long, a requested stretch counts as being in memory.
const ASKED_FOR: Duration = Duration::from_secs(5);
/// Queues with a smaller share than one in this many do not count: all readers that are told apart would not
/// add up to half of a segment.
const SHARE_MIN: u64 = 128;

/// The bytes of each queue in a segment, for queues that have many.
#[derive(Debug, Default)]
pub(in crate::store) struct Shares {
    /// Bytes of all queues.
    whole: u64,
    queues: Vec<(QueueKey, u64)>,
}

impl Shares {
    /// The next row of the segment; rows come sorted by queue.
    pub(in crate::store) fn add(&mut self, row: &PlacedRow) {
        let bytes = u64::from(row.location.bytes);
        self.whole += bytes;
        match self.queues.last_mut() {
            Some((queue, sum)) if *queue == row.queue => *sum += bytes,
            _ => {
                self.drop_small_last();
                self.queues.push((row.queue, bytes));
            }
        }
    }

    /// All rows have come.
    pub(in crate::store) fn finish(mut self) -> Self {
        let least = self.whole / SHARE_MIN;
        self.queues.retain(|(_, bytes)| *bytes >= least);
        self.queues.shrink_to_fit();
        self
    }

    /// Bytes of memory, not counting the struct itself.
    pub(in crate::store) const fn bytes(&self) -> usize {
        self.queues.len() * size_of::<(QueueKey, u64)>()
    }

    /// Keeps memory small while there are many queues: too small a share of the rows so far is too small a
    /// share of all, too.
    fn drop_small_last(&mut self) {
        self.queues.pop_if(|(_, bytes)| *bytes < self.whole / SHARE_MIN);
    }

    /// Whether these queues, each named once, have at least half of the segment.
    pub(in crate::store) fn are_most(&self, queues: &[QueueKey]) -> bool {
        let of = |(queue, bytes): &(QueueKey, u64)| queues.contains(queue).then_some(*bytes);
        self.queues.iter().filter_map(of).sum::<u64>() * 2 >= self.whole.max(1)
    }
}

/// The stretches that were requested last.
#[derive(Debug, Default)]
pub(in crate::store) struct Stretches(VecDeque<(SegmentId, u32, Instant)>);

impl Stretches {
    /// Whether all of a location was requested a short time ago.
    pub(in crate::store) fn hold(&self, place: Location, now: Instant) -> bool {
        stretches(place).all(|stretch| self.holds(place.segment, stretch, now))
    }

    fn holds(&self, segment: SegmentId, stretch: u32, now: Instant) -> bool {
        let mut asked = self.0.iter().rev();
        asked.any(|(of, at, when)| {
            (*of, *at) == (segment, stretch) && now.saturating_duration_since(*when) < ASKED_FOR
        })
    }

    /// Notes all stretches of a location; returns those that have to be requested, as locations.
    pub(in crate::store) fn take(&mut self, place: Location, now: Instant) -> Vec<Location> {
        let mut missing = Vec::new();
        for stretch in stretches(place) {
            if self.holds(place.segment, stretch, now) {
                continue;
            }
            if self.0.len() == ASKED_MAX {
                self.0.pop_front();
            }
            self.0.push_back((place.segment, stretch, now));
            missing.push(Location {
                segment: place.segment,
                position: stretch.saturating_mul(STRETCH_BYTES),
                bytes: STRETCH_BYTES,
            });
        }
        missing
    }
}

/// The numbers of the stretches that cover a location.
fn stretches(place: Location) -> RangeInclusive<u32> {
    let last = place.position.saturating_add(place.bytes.saturating_sub(1));
    place.position / STRETCH_BYTES..=last / STRETCH_BYTES
}

#[cfg(test)]
mod tests {
    use mq_common::ids::{Lsn, Offset, Term, Timestamp};

    use super::*;

    fn place(segment: u64, position: u32, bytes: u32) -> Location {
        Location {
            segment: SegmentId(segment),
            position,
            bytes,
        }
    }

    fn row(queue: u32, bytes: u32) -> PlacedRow {
        PlacedRow {
            queue: QueueKey(queue),
            base_offset: Offset(0),
            count: 1,
            location: place(1, 0, bytes),
            checksum: 0,
            lsn: Lsn(1),
            term: Term(1),
            time: Timestamp(1),
            flags: 0,
        }
    }

    fn shares(rows: impl IntoIterator<Item = PlacedRow>) -> Shares {
        let mut shares = Shares::default();
        rows.into_iter().for_each(|row| shares.add(&row));
        shares.finish()
    }

    #[test]
    fn queues_are_most_of_a_segment_from_half_of_its_bytes_on() {
        let rows = [row(1, 10), row(1, 15), row(2, 25), row(3, 50)];
        let shares = shares(rows);
        for (queues, are_most) in [
            (&[1, 2][..], true),
            (&[3], true),
            (&[1], false),
            (&[2, 9], false),
            (&[], false),
        ] {
            let queues: Vec<_> = queues.iter().copied().map(QueueKey).collect();
            assert_eq!(shares.are_most(&queues), are_most, "{queues:?}");
        }
        assert!(!Shares::default().are_most(&[QueueKey(1)]), "nothing is not most");
    }

    #[test]
    fn shares_of_many_small_queues_take_no_memory() {
        let rows = (0..100_000).map(|queue| row(queue, 1));
        let shares = shares(rows.chain([row(100_000, 100_000)]));
        assert_eq!(shares.queues, [(QueueKey(100_000), 100_000)]);
        assert!(shares.queues.capacity() <= 4, "{}", shares.queues.capacity());
        assert!(shares.are_most(&[QueueKey(100_000)]));
    }

    #[test]
    fn a_stretch_is_taken_once_until_it_may_be_forgotten() {
        let mut asked = Stretches::default();
        let now = Instant::now();
        let last = STRETCH_BYTES - 1;
        assert_eq!(asked.take(place(1, 0, 1), now), [place(1, 0, STRETCH_BYTES)]);
        assert!(asked.hold(place(1, last, 1), now));
        assert!(!asked.hold(place(1, last, 2), now), "half of it lies behind");
        assert!(!asked.hold(place(2, 0, 1), now), "it is another file");
        let behind = place(1, STRETCH_BYTES, STRETCH_BYTES);
        assert_eq!(asked.take(place(1, last, 2), now), [behind]);
        assert_eq!(asked.take(place(1, last, 2), now + ASKED_FOR / 2), []);
        let later = now + ASKED_FOR;
        assert_eq!(asked.take(place(1, last, 2), later).len(), 2);
    }

    #[test]
    fn stretches_that_are_remembered_are_bounded() {
        let mut asked = Stretches::default();
        let now = Instant::now();
        for segment in 0..=ASKED_MAX as u64 {
            asked.take(place(segment, 0, 1), now);
        }
        assert_eq!(asked.0.len(), ASKED_MAX);
        assert!(!asked.hold(place(0, 0, 1), now));
        assert!(asked.hold(place(1, 0, 1), now));
    }
}
