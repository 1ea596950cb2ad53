//! A fetch that other things fall into: what it answers is what there was when it began, or what was trimmed
//! meanwhile is said to be gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mq_broker::ids::QueueKey;
use mq_broker::store::{Found, HoleKind, ReadError};
use mq_common::ids::Offset;

use super::Whole;
use super::beside::advance;
use crate::support::baton::Errand;
use crate::support::compacted::{Message, messages};
use crate::support::workload::Piece;

/// See the module.
#[derive(Debug)]
pub(super) struct Fetching {
    queue: u32,
    from: u64,
    /// Batches that there were, the first one with `from` in it.
    expected: Vec<(u64, Bytes)>,
    /// Of these messages some may have gone for later ones of their keys.
    compacts: bool,
    errand: Errand<Result<Vec<Found>, ReadError>>,
    pieces: usize,
}

impl Whole {
    /// Begins a fetch, or goes on with the one under way.
    pub(super) fn fetch(&mut self, (queue, from): (u32, u64), bytes_max: usize, piece: Piece) {
        let Some(mut fetching) = self.beside.fetching.take() else {
            self.begin_fetch((queue, from), bytes_max);
            return;
        };
        fetching.pieces += 1;
        // A disk that cannot be read is another matter.
        advance(&mut fetching.errand, piece.unharmed(), true);
        if fetching.errand.at().is_some() {
            self.beside.fetching = Some(fetching);
        } else {
            self.answered(fetching);
        }
    }

    fn begin_fetch(&mut self, (queue, from): (u32, u64), bytes_max: usize) {
        let known = &self.model().queues[&queue];
        let later = known.batches.iter().filter(|(base, _)| *base > from);
        let first = known.batches.iter().rfind(|(base, _)| *base <= from);
        let expected = first.into_iter().chain(later).cloned().collect();
        let store = Arc::clone(&self.core.published().store);
        let (key, at, end) = (QueueKey(queue), Offset(from), Offset(known.end));
        self.beside.fetching = Some(Fetching {
            queue,
            from,
            expected,
            compacts: self.model().compacting.contains(&queue),
            errand: Errand::begin(move || store.fetch(key, at, end, bytes_max)),
            pieces: 0,
        });
    }

    /// Lets the one under way come to its end.
    pub(super) fn finish_fetch(&mut self) {
        while let Some(Fetching { queue, from, .. }) = self.beside.fetching {
            self.fetch((queue, from), 0, Piece::WHOLE);
        }
    }

    fn answered(&mut self, fetching: Fetching) {
        let Fetching {
            queue,
            from,
            expected,
            compacts,
            errand,
            pieces,
        } = fetching;
        self.reached.fetches_cut += usize::from(pieces > 1);
        // Of a deleted queue nothing is needed.
        let start = self
            .model()
            .queues
            .get(&queue)
            .map_or(u64::MAX, |known| known.start);
        let found = match errand.end() {
            Ok(found) => found,
            Err(error) => {
                assert!(
                    error.is_gone() && from < start,
                    "{error} at {from} of queue {queue}"
                );
                return;
            }
        };
        assert!(!found.is_empty(), "nothing at {from} of queue {queue}");
        if compacts {
            is_part_of(&expected, start, found);
            return;
        }
        let mut expected = expected.into_iter();
        for found in found {
            match found {
                Found::Batch { row, region } => {
                    assert_eq!(Some((row.base_offset.0, region)), expected.next());
                }
                Found::Hole {
                    from, end, reason, ..
                } => {
                    assert!(end.0 <= start, "{from} to {end} of queue {queue}: {reason}");
                    return;
                }
            }
        }
    }
}

/// What was found is some of what was expected, the rest went for later messages, or lies below the start.
fn is_part_of(expected: &[(u64, Bytes)], start: u64, found: Vec<Found>) {
    let expected = expected.iter().flat_map(|(base, region)| messages(*base, region));
    let expected: BTreeMap<u64, Message> = expected.collect();
    for found in found {
        match found {
            Found::Batch { row, region } => {
                for (offset, message) in messages(row.base_offset.0, &region) {
                    assert_eq!(expected.get(&offset), Some(&message), "at {offset}");
                }
            }
            Found::Hole { end, .. } if end.0 <= start => return,
            Found::Hole { from, end, kind, .. } => {
                assert_eq!(kind, HoleKind::Compacted, "{from} to {end}");
                for (offset, (key, _)) in expected.range(from.0..end.0) {
                    assert!(key.is_some(), "{offset} has no key");
                }
            }
        }
    }
}
