//! Reading ahead: a fetch that continues where the last one ended is most likely followed by another. What
//! that will read is requested from the system meanwhile, so that it is in the page cache and the next fetch
//! needs no thread that blocks.
//!
//! The system's own read-ahead is off for these files. It follows one open file, which all readers of a
//! segment share here, and takes their alternation for random access. It would also run where the disk is to
//! be spared, because a non-blocking read that misses the page cache starts it. Nor can it know that a reader
//! of one queue skips the batches of others, and that readers of several queues together skip nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mq_common::ids::Offset;

use crate::ids::QueueKey;
use crate::store::prefetch::shared::Stretches;
use crate::store::{Location, PlacedRow, SegmentId};

/// Bytes of its own queue that a reader should have ahead of it: eight responses of a usual size.
pub(in crate::store) const AHEAD_BYTES: usize = 8 * 1024 * 1024;
/// More is requested when this many are missing.
pub(in crate::store) const DUE_BYTES: usize = AHEAD_BYTES / 8;
/// Readers that are told apart; a new one replaces the one that read longest ago.
const READERS_MAX: usize = 64;
/// A reader that has not read for this long is inactive.
const ACTIVE: Duration = Duration::from_secs(2);

/// The readers.
#[derive(Debug, Default)]
pub(in crate::store) struct ReadAhead(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// With the time of each one's last read; the latest one is at the end.
    readers: Vec<(Reader, Instant)>,
    stretches: Stretches,
}

/// The position of one reader of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct Reader {
    pub(in crate::store) queue: QueueKey,
    /// Where its next fetch begins if it continues.
    next: Offset,
    /// Whether it has continued where a fetch ended.
    pub(in crate::store) is_sequential: bool,
    /// The offset after the last batch of the journal that was requested.
    pub(in crate::store) asked: Offset,
    /// The journal segment of that batch.
    segment: SegmentId,
    /// Bytes requested from `next` on.
    pub(in crate::store) ahead_bytes: usize,
    /// The index was requested of all segments up to this one.
    pub(in crate::store) index_asked: SegmentId,
    /// Only a thread that may block can request what it will want next.
    pub(in crate::store) is_stuck: bool,
}

impl Reader {
    fn is_at(&self, queue: QueueKey, from: Offset) -> bool {
        (self.queue, self.next) == (queue, from)
    }

    /// It reads this many bytes, up to this offset.
    pub(in crate::store) fn reads(&mut self, next: Offset, bytes: usize) {
        self.next = next;
        self.asked = self.asked.max(next);
        self.ahead_bytes = self.ahead_bytes.saturating_sub(bytes);
    }

    /// It reads these batches of the journal.
    pub(in crate::store) fn reads_rows(&mut self, rows: &[PlacedRow]) {
        if let Some(last) = rows.last() {
            self.segment = self.segment.max(last.location.segment);
            self.reads(last.end(), bytes_of(rows));
        }
    }

    /// These were requested ahead of it.
    pub(in crate::store) fn asks(&mut self, rows: &[PlacedRow]) {
        if let Some(last) = rows.last() {
            self.segment = self.segment.max(last.location.segment);
            self.asked = last.end();
            self.ahead_bytes += bytes_of(rows);
        }
    }
}

fn bytes_of(rows: &[PlacedRow]) -> usize {
    rows.iter().map(|row| row.location.bytes as usize).sum()
}

impl ReadAhead {
    /// The reader whose last fetch ended here, or a new one.
    pub(in crate::store) fn reader(&self, queue: QueueKey, from: Offset) -> Reader {
        let inner = self.lock();
        let known = inner.readers.iter().map(|(known, _)| known);
        match known.rev().find(|known| known.is_at(queue, from)) {
            Some(known) => Reader {
                is_sequential: true,
                ..known.clone()
            },
            None => Reader {
                queue,
                next: from,
                is_sequential: false,
                asked: from,
                segment: SegmentId(0),
                ahead_bytes: 0,
                index_asked: SegmentId(0),
                is_stuck: false,
            },
        }
    }

    /// Notes the new position of a reader that was found at `from`.
    pub(in crate::store) fn note(&self, from: Offset, reader: Reader, now: Instant) {
        let readers = &mut self.lock().readers;
        let was = readers
            .iter()
            .rposition(|(known, _)| known.is_at(reader.queue, from));
        match was {
            Some(at) => drop(readers.remove(at)),
            None if readers.len() == READERS_MAX => drop(readers.remove(0)),
            None => {}
        }
        readers.push((reader, now));
    }

    /// The queues, each once, that are being read in sequence in this segment or an adjacent one; and `own`.
    pub(in crate::store) fn queues_near(
        &self,
        segment: SegmentId,
        own: QueueKey,
        now: Instant,
    ) -> Vec<QueueKey> {
        let mut queues = vec![own];
        for (reader, at) in &self.lock().readers {
            let is_near = reader.segment.0.abs_diff(segment.0) <= 1;
            let is_active = reader.is_sequential && now.saturating_duration_since(*at) < ACTIVE;
            if is_near && is_active && !queues.contains(&reader.queue) {
                queues.push(reader.queue);
            }
        }
        queues
    }

    /// What has to be requested so that a location of the journal is soon in memory: if it `is_shared`, whole
    /// stretches for all who read there.
    pub(in crate::store) fn to_ask(&self, place: Location, is_shared: bool, now: Instant) -> Vec<Location> {
        let stretches = &mut self.lock().stretches;
        if is_shared {
            stretches.take(place, now)
        } else if stretches.hold(place, now) {
            Vec::new()
        } else {
            vec![place]
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: QueueKey = QueueKey(3);

    /// One fetch; returns the reader before it.
    fn fetch(ahead: &ReadAhead, queue: QueueKey, from: u64, end: u64) -> Reader {
        let reader = ahead.reader(queue, Offset(from));
        let mut read = reader.clone();
        read.reads(Offset(end), 1000);
        ahead.note(Offset(from), read, Instant::now());
        reader
    }

    #[test]
    fn a_reader_is_known_again_where_it_ended_and_only_there() {
        let ahead = ReadAhead::default();
        assert!(
            !fetch(&ahead, QUEUE, 0, 10).is_sequential,
            "one fetch is no sequence"
        );
        assert!(!ahead.reader(QUEUE, Offset(9)).is_sequential);
        assert!(!ahead.reader(QueueKey(4), Offset(10)).is_sequential);
        assert!(fetch(&ahead, QUEUE, 10, 20).is_sequential);
        assert!(!ahead.reader(QUEUE, Offset(10)).is_sequential, "it has gone on");
        assert!(ahead.reader(QUEUE, Offset(20)).is_sequential);
    }

    #[test]
    fn two_readers_of_a_queue_are_told_apart() {
        let ahead = ReadAhead::default();
        for turn in 0..5 {
            for begin in [0, 400] {
                let at = begin + turn * 10;
                assert_eq!(fetch(&ahead, QUEUE, at, at + 10).is_sequential, turn > 0);
            }
        }
        assert_eq!(ahead.lock().readers.len(), 2);
    }

    #[test]
    fn what_was_asked_for_is_used_up_by_reading_it() {
        let mut reader = ReadAhead::default().reader(QUEUE, Offset(0));
        (reader.asked, reader.ahead_bytes) = (Offset(100), 2500);
        reader.reads(Offset(40), 1000);
        assert_eq!((reader.asked, reader.ahead_bytes), (Offset(100), 1500));
        reader.reads(Offset(120), 2000);
        assert_eq!((reader.asked, reader.ahead_bytes), (Offset(120), 0));
    }

    #[test]
    fn queues_near_a_segment_are_those_of_which_somebody_reads_in_sequence_there_and_just_now() {
        let (ahead, now) = (ReadAhead::default(), Instant::now());
        let note = |queue, segment, is_sequential, at| {
            let mut reader = ahead.reader(QueueKey(queue), Offset(0));
            (reader.segment, reader.is_sequential) = (SegmentId(segment), is_sequential);
            ahead.note(Offset(0), reader, at);
        };
        let long_ago = now.checked_sub(ACTIVE).unwrap();
        for (queue, segment, is_sequential, at) in [
            (1, 5, true, now),
            (2, 6, true, now),
            (3, 4, true, now),
            (4, 7, true, now),
            (5, 5, false, now),
            (6, 5, true, long_ago),
        ] {
            note(queue, segment, is_sequential, at);
        }
        let near = |own| ahead.queues_near(SegmentId(5), QueueKey(own), now);
        assert_eq!(near(9), [9, 1, 2, 3].map(QueueKey));
        assert_eq!(near(2), [2, 1, 3].map(QueueKey), "each once");
    }

    #[test]
    fn memory_is_bounded_and_the_reader_that_read_longest_ago_gives_way() {
        let ahead = ReadAhead::default();
        let readers = u32::try_from(READERS_MAX).unwrap();
        for queue in 0..=readers {
            fetch(&ahead, QueueKey(queue), 0, 10);
        }
        assert_eq!(ahead.lock().readers.len(), READERS_MAX);
        assert!(!ahead.reader(QueueKey(0), Offset(10)).is_sequential);
        assert!(ahead.reader(QueueKey(1), Offset(10)).is_sequential);
    }
}
