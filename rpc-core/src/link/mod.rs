//! What both ends of a connection share: the queue of bytes to be written, the task that writes it, and the buffer that
//! is read into.
//!
//! Not here: what the frames mean (`invoker/`, `provider/`) and how they look (`frame/`).

mod backlog;
mod inbox;
mod outbox;
mod read_budget;
mod waits;
mod writer;

use std::cell::RefCell;

use bytes::BytesMut;

pub(crate) use backlog::Backlog;
pub(crate) use inbox::Inbox;
pub(crate) use outbox::{Outbox, Refused};
pub(crate) use read_budget::ReadBudget;
pub(crate) use writer::write_all;

/// A scratch buffer above this size is given back to the allocator.
const SCRATCH_BYTES_KEPT: usize = 64 * 1024;

/// A reader that has read so much without a pause lets those run for whom it was: what they hold of its buffer can then be
/// read into again, while all of it is still in the processor's cache.
pub(crate) const TURN_BYTES: usize = 256 * 1024;

/// Runs `encode` with this thread's empty scratch buffer, so that encoding allocates nothing and holds no lock.
pub(crate) fn with_scratch<T>(encode: impl FnOnce(&mut BytesMut) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(4 * 1024));
    }
    // Taken out, so that a nested use (a serializer that makes a call) gets one of its own.
    let mut scratch = SCRATCH.with(RefCell::take);
    scratch.clear();
    let outcome = encode(&mut scratch);
    if scratch.capacity() <= SCRATCH_BYTES_KEPT {
        SCRATCH.with(|kept| kept.replace(scratch));
    }
    outcome
}
