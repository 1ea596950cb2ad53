//! What the store asks for when the footer of a sealed segment is damaged: its rows, made again. The store cannot do it,
//! because it does not know what commands mean.

use std::fmt::Debug;

use mq_common::ids::Offset;

use crate::ids::QueueKey;
use crate::store::{PlacedRow, ReadError, SegmentId};

/// The offsets that a queue has in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The queue.
    pub queue: QueueKey,
    /// Its first offset there.
    pub first: Offset,
    /// Its first offset in a later segment; `None` = there is none yet.
    pub until: Option<Offset>,
}

/// Makes rows again.
pub trait Rebuild: Debug + Send + Sync {
    /// The rows of a sealed segment for these queues, sorted by queue and base offset. Queues of which it is not sure are
    /// left out whole. Reads files.
    ///
    /// # Errors
    /// [`ReadError`]: nothing can be told of the segment; or, without file descriptors, not now.
    fn rows(&self, segment: SegmentId, spans: &[Span]) -> Result<Vec<PlacedRow>, ReadError>;
}
