//! Hands changes from checkpoints to the projection. At most one change is pending, so an unreachable
//! database costs no memory: what it missed is read from the checkpoint later.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mq_common::ids::{Lsn, Term, Timestamp};
use tokio::sync::Notify;

use crate::state::rows::{Changes, Counters};

/// A change with more rows is not kept; its rows are read from the checkpoint instead.
const ROWS_MAX: usize = 100_000;

/// The checkpoint that rows correspond to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) lsn: Lsn,
    pub(super) term: Term,
    pub(super) time: Timestamp,
}

impl From<&Counters> for Mark {
    fn from(counters: &Counters) -> Self {
        Self {
            lsn: counters.lsn,
            term: counters.term,
            time: counters.time,
        }
    }
}

/// The rows that one checkpoint changed.
#[derive(Debug)]
pub(super) struct Change {
    /// The previous checkpoint.
    pub(super) from: Mark,
    pub(super) to: Mark,
    pub(super) dirty: Changes,
}

/// What is still to be projected.
#[derive(Debug, Default)]
pub(super) enum Pending {
    #[default]
    Nothing,
    Change(Box<Change>),
    /// Changes were missed.
    Gap,
}

#[derive(Debug)]
struct Slot {
    inner: Mutex<(Mark, Pending)>,
    wake: Notify,
}

/// Receives the checkpoints. It never blocks the sender.
#[derive(Debug, Clone)]
pub(crate) struct Feed {
    slot: Arc<Slot>,
}

impl Feed {
    /// `last` is the checkpoint that the broker starts from.
    pub(crate) fn new(last: &Counters) -> Self {
        Self {
            slot: Arc::new(Slot {
                inner: Mutex::new((last.into(), Pending::Nothing)),
                wake: Notify::new(),
            }),
        }
    }

    /// Reports a saved checkpoint; must be called for each one, in order.
    pub(crate) fn saved(&self, mut dirty: Changes) {
        // Decisions are not projected.
        drop(std::mem::take(&mut dirty.rows.decisions));
        drop(std::mem::take(&mut dirty.decisions_gone));
        let mut inner = self.lock();
        let (from, to) = (inner.0, Mark::from(&dirty.rows.counters));
        let alone = matches!(inner.1, Pending::Nothing) && rows(&dirty) <= ROWS_MAX;
        let pending = if alone {
            Pending::Change(Box::new(Change { from, to, dirty }))
        } else {
            Pending::Gap
        };
        *inner = (to, pending);
        drop(inner);
        self.slot.wake.notify_one();
    }

    /// Returns when something may be pending.
    pub(super) async fn changed(&self) {
        self.slot.wake.notified().await;
    }

    /// Takes what is pending, with the last reported checkpoint.
    pub(super) fn take(&self) -> (Pending, Mark) {
        let mut inner = self.lock();
        (std::mem::take(&mut inner.1), inner.0)
    }

    /// Reports that what was taken could not be projected.
    pub(super) fn missed(&self) {
        self.lock().1 = Pending::Gap;
    }

    fn lock(&self) -> MutexGuard<'_, (Mark, Pending)> {
        self.slot.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rows(dirty: &Changes) -> usize {
    let rows = &dirty.rows;
    rows.topics.len()
        + rows.queues.len()
        + rows.groups.len()
        + rows.cursors.len()
        + rows.transactions.len()
        + dirty.queues_gone.len()
        + dirty.groups_gone.len()
        + dirty.transactions_gone.len()
}

#[cfg(test)]
mod tests {
    use mq_common::ids::TransactionNumber;

    use super::*;

    fn saved(feed: &Feed, lsn: u64) {
        let mut dirty = Changes::default();
        dirty.rows.counters.lsn = Lsn(lsn);
        feed.saved(dirty);
    }

    #[test]
    fn one_change_is_kept_and_a_second_one_is_a_gap() {
        let feed = Feed::new(&Counters::default());
        saved(&feed, 5);
        let Pending::Change(change) = feed.take().0 else {
            panic!("a change")
        };
        assert_eq!((change.from.lsn, change.to.lsn), (Lsn(0), Lsn(5)));
        assert!(matches!(feed.take().0, Pending::Nothing));
        saved(&feed, 7);
        saved(&feed, 9);
        assert!(matches!(feed.take().0, Pending::Gap));
        saved(&feed, 11);
        let Pending::Change(change) = feed.take().0 else {
            panic!("a change")
        };
        assert_eq!((change.from.lsn, change.to.lsn), (Lsn(9), Lsn(11)));
    }

    #[test]
    fn change_of_many_rows_is_not_kept() {
        let feed = Feed::new(&Counters::default());
        feed.saved(Changes {
            transactions_gone: vec![TransactionNumber(1); ROWS_MAX + 1],
            ..Changes::default()
        });
        assert!(matches!(feed.take().0, Pending::Gap));
    }
}
