//! The requests running on one connection: their number, and the signals that notify handlers when the caller
//! has gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::context::Cancellation;

/// Incremented by one reader, decremented by any thread.
#[derive(Debug, Default)]
pub(super) struct Running {
    table: Mutex<Table>,
    /// A copy of the table's count that can be read without the lock.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    /// Each with the number of its request: a peer may use one id twice, and the end of the first request
    /// must not remove the signal of the second.
    cancels: HashMap<i64, (u64, Cancellation), Spread>,
    /// Not the length of the map, for the same reason.
    count: usize,
    /// Requests so far; the number of the newest.
    total: u64,
}

impl Running {
    /// Requests running now.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Requests so far.
    pub(super) fn total(&self) -> u64 {
        self.table().total
    }

    /// Counts one more request, which is cancelled through `cancelled`. Returns its number, and the signal of
    /// the request that already had this id, if there is one.
    pub(super) fn enter(&self, id: i64, cancelled: Cancellation) -> (u64, Option<Cancellation>) {
        let mut table = self.table();
        table.count += 1;
        table.total += 1;
        self.count.store(table.count, Ordering::Release);
        let number = table.total;
        let twin = table.cancels.insert(id, (number, cancelled));
        (number, twin.map(|(_, cancelled)| cancelled))
    }

    /// The request with this number has been answered.
    pub(super) fn leave(&self, id: i64, number: u64) {
        let mut table = self.table();
        table.count -= 1;
        self.count.store(table.count, Ordering::Release);
        let cancelled = match table.cancels.entry(id) {
            Entry::Occupied(known) if known.get().0 == number => Some(known.remove()),
            _ => None,
        };
        drop(table);
        // Freed outside the lock.
        drop(cancelled);
    }

    /// Notifies the handler of this request.
    pub(super) fn cancel(&self, id: i64) {
        let known = self.table().cancels.get(&id).cloned();
        if let Some((_, cancelled)) = known {
            cancelled.cancel();
        }
    }

    /// Notifies all handlers.
    pub(super) fn cancel_all(&self) {
        let all: Vec<_> = self.table().cancels.values().cloned().collect();
        all.iter().for_each(|(_, cancelled)| cancelled.cancel());
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Spreads request ids over a table at the cost of a multiplication. A peer that chooses colliding ids slows
/// down only its own connection, which has a bounded number of them.
#[derive(Debug, Clone, Copy, Default)]
struct Spread;

#[derive(Debug)]
struct Spreading(u64);

impl BuildHasher for Spread {
    type Hasher = Spreading;

    fn build_hasher(&self) -> Spreading {
        Spreading(0)
    }
}

impl Hasher for Spreading {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Ids are written by `write_i64`; this satisfies the trait's contract for anything else.
        bytes.iter().for_each(|byte| self.write_i64(i64::from(*byte)));
    }

    fn write_i64(&mut self, id: i64) {
        // The golden ratio, as in Knuth's multiplicative hashing; both halves of the product folded together.
        let product = u128::from(self.0 ^ id.cast_unsigned()) * 0x9e37_79b9_7f4a_7c15;
        let [low, high] = [product & u128::from(u64::MAX), product >> 64];
        self.0 = u64::try_from(low ^ high).unwrap_or_default();
    }
}
