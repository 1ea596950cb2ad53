//! What the buffers of all connections that are read from may take together. A connection has a small one for nothing; a
//! larger one it gets only while there is room, and a frame that is larger than its buffer waits for all the room that it
//! needs before more of it is read. So frames that have begun never wait for each other, nor for buffers that are kept: half
//! of the room is for frames alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::waits::Waits;

/// Bytes of one permit.
const UNIT_BYTES: usize = 1024;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    /// Of buffers that are kept.
    kept: Arc<Semaphore>,
    /// Of large frames.
    frames: Arc<Semaphore>,
    frames_max: u32,
    /// Frames that wait for some of it.
    waiting: Arc<AtomicUsize>,
}

/// Some of it, given back when dropped.
#[derive(Debug)]
pub(crate) struct Taken(OwnedSemaphorePermit);

impl Room {
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

    /// Whether some frame waits for room.
    pub(crate) fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// So much of it for buffers, if that is free.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<Taken> {
        let taken = Arc::clone(&self.kept).try_acquire_many_owned(units(bytes));
        taken.ok().map(Taken)
    }

    /// So much of it for a frame, after all who asked before; what is more than there is for frames gets all of that.
    ///
    /// # Cancel safety
    /// Dropping the future gives the place in the line up.
    pub(crate) async fn take(&self, bytes: usize) -> Option<Taken> {
        let units = units(bytes).min(self.frames_max);
        let _waits = Waits::enter(&self.waiting);
        // Never closed.
        let taken = Arc::clone(&self.frames).acquire_many_owned(units).await;
        taken.ok().map(Taken)
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Taken {
    /// Both together.
    pub(crate) fn and(&mut self, more: Self) {
        self.0.merge(more.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_taken_is_not_given_twice_and_frames_do_not_wait_for_buffers() {
        let room = Room::new(20 * UNIT_BYTES);
        let mut kept = room.try_take(1).unwrap();
        kept.and(room.try_take(9 * UNIT_BYTES).unwrap());
        assert!(room.try_take(1).is_none());
        let frame = room.take(usize::MAX).await.unwrap();
        let mut waiting = Box::pin(room.take(UNIT_BYTES));
        let wait = std::time::Duration::ZERO;
        assert!(tokio::time::timeout(wait, waiting.as_mut()).await.is_err());
        assert!(room.is_short());
        drop(frame);
        let next = waiting.await.unwrap();
        assert!(!room.is_short());
        drop((kept, next));
        assert!(room.try_take(10 * UNIT_BYTES).is_some());
        assert!(room.try_take(usize::MAX).is_none());
    }
}
