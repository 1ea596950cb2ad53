//! Damage as consumers meet it: every served hole is counted, and each damaged place is logged once, however
//! many consumers read it.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use mq_common::ids::Offset;
use prometheus_client::metrics::counter::Counter;

use crate::ids::QueueKey;
use crate::store::{Found, HoleKind};

/// Places that are remembered. When there are more, all of them are logged again.
const PLACES_MAX: usize = 4096;

/// The damaged places that have been logged.
#[derive(Debug, Default)]
pub(crate) struct SeenDamage(Mutex<HashSet<(QueueKey, Offset)>>);

impl SeenDamage {
    /// Counts the damage in what is served of a queue, and logs the places that are new.
    pub(crate) fn note(&self, queue: QueueKey, found: &[Found], served: &Counter) {
        for found in found {
            let Found::Hole {
                from,
                end,
                kind: HoleKind::Damaged,
                reason,
            } = found
            else {
                continue;
            };
            served.inc();
            if self.is_new(queue, *end) {
                tracing::error!(queue = queue.0, %from, %end, reason, "damaged messages cannot be served");
            }
        }
    }

    /// A place is identified by its end: where it begins depends on the reader.
    fn is_new(&self, queue: QueueKey, end: Offset) -> bool {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if places.contains(&(queue, end)) {
            return false;
        }
        if places.len() >= PLACES_MAX {
            places.clear();
        }
        places.insert((queue, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_told_once_each_hole_that_is_served_counts_and_memory_is_bounded() {
        let (told, served) = (SeenDamage::default(), Counter::default());
        let hole = |from, end, kind| Found::Hole {
            from: Offset(from),
            end: Offset(end),
            kind,
            reason: "a test".to_owned(),
        };
        let queue = QueueKey(1);
        told.note(
            queue,
            &[hole(3, 4, HoleKind::Damaged), hole(5, 9, HoleKind::Compacted)],
            &served,
        );
        told.note(queue, &[hole(3, 4, HoleKind::Damaged)], &served);
        assert_eq!(served.get(), 2);
        assert!(!told.is_new(queue, Offset(4)));
        assert!(told.is_new(queue, Offset(9)), "nothing was lost there");
        assert!(told.is_new(QueueKey(2), Offset(4)));
        for end in 100..10_000 {
            assert!(told.is_new(queue, Offset(end)));
        }
        assert!(told.0.lock().unwrap().len() <= PLACES_MAX);
    }
}
