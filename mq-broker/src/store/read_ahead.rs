//! Reading ahead: a fetch that goes on where the last one ended is followed by another one, most likely. What that will
//! read is asked of the system meanwhile, so that it finds it in memory and needs no thread that waits.
//!
//! The system's own read-ahead looks at one open file, which here all readers of a segment share, and sees their turns as
//! jumps. It cannot know either that a reader of one queue passes over the batches of others.

use std::sync::{Mutex, PoisonError};

use mq_common::ids::Offset;

use crate::ids::QueueKey;

/// Bytes of its own queue that a reader is to have ahead of it: four answers of a usual size.
pub(super) const AHEAD_BYTES: usize = 4 * 1024 * 1024;
/// Asked for again when so many are missing.
pub(super) const DUE_BYTES: usize = AHEAD_BYTES / 8;
/// Readers that are told apart; more replace the one that read longest ago.
const READERS_MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ReadAhead(Mutex<Vec<Reader>>);

/// How far one reader of a queue is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reader {
    pub(super) queue: QueueKey,
    /// Where its next fetch begins, if it goes on.
    next: Offset,
    /// Whether it has gone on where a fetch ended.
    pub(super) is_sequential: bool,
    /// Behind the last batch of the journal that was asked for.
    pub(super) asked: Offset,
    /// Bytes that were asked for from `next` on.
    pub(super) ahead_bytes: usize,
}

impl Reader {
    /// It reads so many bytes, up to this offset.
    pub(super) fn reads(&mut self, next: Offset, bytes: usize) {
        self.next = next;
        self.asked = self.asked.max(next);
        self.ahead_bytes = self.ahead_bytes.saturating_sub(bytes);
    }
}

impl ReadAhead {
    /// The reader whose last fetch ended here, or a new one.
    pub(super) fn reader(&self, queue: QueueKey, from: Offset) -> Reader {
        let readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = readers
            .iter()
            .rfind(|known| (known.queue, known.next) == (queue, from));
        match known {
            Some(known) => Reader {
                is_sequential: true,
                ..known.clone()
            },
            None => Reader {
                queue,
                next: from,
                is_sequential: false,
                asked: from,
                ahead_bytes: 0,
            },
        }
    }

    /// Notes how far a reader is that was found at `from`.
    pub(super) fn note(&self, from: Offset, reader: Reader) {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let was = readers
            .iter()
            .rposition(|known| (known.queue, known.next) == (reader.queue, from));
        match was {
            Some(at) => drop(readers.remove(at)),
            None if readers.len() == READERS_MAX => drop(readers.remove(0)),
            None => {}
        }
        // The last one read last.
        readers.push(reader);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: QueueKey = QueueKey(3);

    /// One fetch: what the reader is like in front of it.
    fn fetch(ahead: &ReadAhead, queue: QueueKey, from: u64, end: u64) -> Reader {
        let reader = ahead.reader(queue, Offset(from));
        let mut read = reader.clone();
        read.reads(Offset(end), 1000);
        ahead.note(Offset(from), read);
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
        assert_eq!(ahead.0.lock().unwrap().len(), 2);
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
    fn memory_is_bounded_and_the_reader_that_read_longest_ago_gives_way() {
        let ahead = ReadAhead::default();
        let readers = u32::try_from(READERS_MAX).unwrap();
        for queue in 0..=readers {
            fetch(&ahead, QueueKey(queue), 0, 10);
        }
        assert_eq!(ahead.0.lock().unwrap().len(), READERS_MAX);
        assert!(!ahead.reader(QueueKey(0), Offset(10)).is_sequential);
        assert!(ahead.reader(QueueKey(1), Offset(10)).is_sequential);
    }
}
