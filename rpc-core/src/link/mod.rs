//! What both ends of a connection share: the queue of bytes to write, the task that writes it, and the buffer
//! that is read into.
//!
//! Not here: the meaning of frames (`invoker/`, `provider/`) and their encoding (`frame/`).

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

/// After reading this many bytes without a pause, a reader yields so that the receivers of those bytes run:
/// the parts of the buffer that they hold can then be reused while all of it is still in the processor's
/// cache.
pub(crate) const TURN_BYTES: usize = 256 * 1024;

/// Runs `encode` with this thread's empty scratch buffer, so that encoding allocates nothing and holds no lock.
pub(crate) fn with_scratch<T>(encode: impl FnOnce(&mut BytesMut) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(4 * 1024));
    }
    // Taken out, so that a nested use (a serializer that makes a call) gets a buffer of its own.
    let mut scratch = SCRATCH.with(RefCell::take);
    scratch.clear();
    let outcome = encode(&mut scratch);
    if scratch.capacity() <= SCRATCH_BYTES_KEPT {
        SCRATCH.with(|kept| kept.replace(scratch));
    }
    outcome
}
