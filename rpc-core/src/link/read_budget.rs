//! A memory budget for the read buffers of all connections. A small buffer is free; a connection gets a
//! larger one only while the budget allows it, and a frame larger than its buffer waits until all the memory
//! it needs is available before more of it is read. So frames that have begun never wait for each other, nor
//! for retained buffers: half of the budget is for frames alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::waits::Waits;

/// Bytes of one permit.
const UNIT_BYTES: usize = 1024;

/// The budget; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct ReadBudget {
    /// For buffers that connections keep.
    kept: Arc<Semaphore>,
    /// For large frames.
    frames: Arc<Semaphore>,
    frames_max: u32,
    /// Frames that wait for memory.
    waiting: Arc<AtomicUsize>,
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Reserved(OwnedSemaphorePermit);

impl ReadBudget {
    pub(crate) fn new(bytes: usize) -> Self {
        let frames_max = units(bytes / 2).max(1);
        let permits = usize::try_from(frames_max).unwrap_or(Semaphore::MAX_PERMITS);
        let half = || Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self {
            kept: half(),
            frames: half(),
            frames_max,
            waiting: Arc::default(),
        }
    }

    /// Whether a frame waits for memory.
    pub(crate) fn is_contended(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Reserves `bytes` for a buffer, if they are free.
    pub(crate) fn try_reserve(&self, bytes: usize) -> Option<Reserved> {
        let taken = Arc::clone(&self.kept).try_acquire_many_owned(units(bytes));
        taken.ok().map(Reserved)
    }

    /// Reserves `bytes` for a frame, in the order of the requests; a request beyond the whole share of frames
    /// gets all of that share.
    ///
    /// # Cancel safety
    /// Dropping the future gives up its place in the queue.
    pub(crate) async fn reserve(&self, bytes: usize) -> Option<Reserved> {
        let units = units(bytes).min(self.frames_max);
        let _waits = Waits::enter(&self.waiting);
        // The semaphore is never closed.
        let taken = Arc::clone(&self.frames).acquire_many_owned(units).await;
        taken.ok().map(Reserved)
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Reserved {
    /// Merges two reservations.
    pub(crate) fn and(&mut self, more: Self) {
        self.0.merge(more.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_taken_is_not_given_twice_and_frames_do_not_wait_for_buffers() {
        let budget = ReadBudget::new(20 * UNIT_BYTES);
        let mut kept = budget.try_reserve(1).unwrap();
        kept.and(budget.try_reserve(9 * UNIT_BYTES).unwrap());
        assert!(budget.try_reserve(1).is_none());
        let frame = budget.reserve(usize::MAX).await.unwrap();
        let mut waiting = Box::pin(budget.reserve(UNIT_BYTES));
        let wait = std::time::Duration::ZERO;
        assert!(tokio::time::timeout(wait, waiting.as_mut()).await.is_err());
        assert!(budget.is_contended());
        drop(frame);
        let next = waiting.await.unwrap();
        assert!(!budget.is_contended());
        drop((kept, next));
        assert!(budget.try_reserve(10 * UNIT_BYTES).is_some());
        assert!(budget.try_reserve(usize::MAX).is_none());
    }
}
