//! How the store asks for the rows of a sealed segment to be rebuilt when its footer is damaged. The store
//! cannot do it itself, because it does not know what commands mean.

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

/// The rebuilt rows of a segment.
#[derive(Debug, Clone, Default)]
pub struct Rebuilt {
    /// Sorted by queue and base offset.
    pub rows: Vec<PlacedRow>,
    /// Whether the disk failed to read some of the entries that were needed: a queue that was left out may be
    /// found once they can be read.
    pub is_unread: bool,
}

impl From<Vec<PlacedRow>> for Rebuilt {
    /// Rows of which all entries could be read.
    fn from(rows: Vec<PlacedRow>) -> Self {
        Self {
            rows,
            is_unread: false,
        }
    }
}

/// Rebuilds rows.
pub trait Rebuild: Debug + Send + Sync {
    /// The rows of a sealed segment for these queues. Queues whose rows are uncertain are left out entirely.
    /// Reads files.
    ///
    /// # Errors
    /// [`ReadError`]: nothing can be said about the segment; or, when file descriptors are exhausted, not
    /// now.
    fn rows(&self, segment: SegmentId, spans: &[Span]) -> Result<Rebuilt, ReadError>;
}
