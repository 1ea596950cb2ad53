//! The way from (queue, offset) to batches, and what the applier tells the store: the facade that the core and the
//! fetch path use.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use mq_common::ids::{Lsn, Offset};

use super::{Folder, HalfRow, PlacedRow, Placement, Rows, SegmentId};
use crate::ids::{BatchAt, QueueKey};
use crate::log::Entry;

/// Sizes of the store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of memory for the newest batches of all queues, counting capacity.
    pub tail_bytes: usize,
    /// Bytes of memory for `Placed` footers of sealed segments.
    pub footer_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tail_bytes: 64 * 1024 * 1024,
            footer_bytes: 16 * 1024 * 1024,
        }
    }
}

/// What lies at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A batch: everything its stamp says, and the producer region as it was written.
    Batch {
        /// Its place.
        row: PlacedRow,
        /// The producer region. Read from a file, it is not checked; its stored checksum is the row's.
        region: Bytes,
    },
    /// Damaged bytes: these offsets cannot be served.
    Hole {
        /// First offset of it.
        from: Offset,
        /// Behind its last one.
        end: Offset,
        /// What is wrong, for people.
        reason: String,
    },
}

/// A read that failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not stored: beyond what was placed, or trimmed.
    #[error("offset {offset} of queue {} is not stored", queue.0)]
    NotStored {
        /// The queue.
        queue: QueueKey,
        /// The offset.
        offset: Offset,
    },
    /// The footer of a sealed segment, which says where its batches lie, is damaged.
    #[error("the index of journal segment {} is damaged: {reason}", segment.0)]
    Footer {
        /// The segment.
        segment: SegmentId,
        /// What is wrong.
        reason: String,
    },
    /// The disk failed.
    #[error("cannot read journal segment {}: {source}", segment.0)]
    Io {
        /// The segment.
        segment: SegmentId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What `apply` made of an entry, as far as the store is concerned.
#[derive(Debug, Clone, Copy, Default)]
pub struct Effects<'a> {
    /// Batches that got their place in a queue.
    pub placements: &'a [Placement],
    /// Batches of this entry (by index) that transactions opened by it hold back.
    pub halves: &'a [Range<u32>],
    /// Transactions decided by it; their half batches were placed above, or are garbage.
    pub decided: &'a [Lsn],
    /// Queues that exist no more.
    pub deleted: &'a [QueueKey],
}

/// Where the broker's batches are. Shared: fetches run on any thread beside the one that applies.
#[derive(Debug)]
pub struct Store {
    folder: Arc<Folder>,
    settings: Settings,
}

impl Store {
    /// The store of a folder, with the rows that the checkpoint kept.
    #[must_use]
    pub fn open(folder: &Arc<Folder>, settings: Settings, rows: Rows) -> Self {
        drop(rows);
        Self {
            folder: Arc::clone(folder),
            settings,
        }
    }

    /// Remembers where an entry's batches lie. Called by the applier for every entry, in order.
    pub fn apply(&self, entry: &Entry<'_>, effects: &Effects<'_>) {
        todo!("{entry:?} {effects:?}")
    }

    /// The rows of a segment's `Placed` footer, sorted; see [`crate::log::Applier::seal`], which calls this.
    #[must_use]
    pub fn seal(&self, segment: SegmentId) -> Vec<PlacedRow> {
        todo!("{segment:?}")
    }

    /// What the checkpoint must keep, since it was last taken.
    #[must_use]
    pub fn take_rows(&self) -> Rows {
        todo!()
    }

    /// Batches from `from` on (the first one contains it), at most `bytes_max` bytes of them but at least one, none
    /// that begins at or behind `end`, the visible end of the queue. May read files: call it where blocking is allowed,
    /// unless [`Store::in_memory`] says it will not.
    ///
    /// # Errors
    /// [`ReadError`]; damaged batches are no error but a [`Found::Hole`].
    pub fn fetch(
        &self,
        queue: QueueKey,
        from: Offset,
        end: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Found>, ReadError> {
        todo!(
            "{queue:?} {from} {end} {bytes_max} {:?} {:?}",
            self.folder,
            self.settings
        )
    }

    /// Whether a fetch from this offset needs no file.
    #[must_use]
    pub fn in_memory(&self, queue: QueueKey, from: Offset) -> bool {
        todo!("{queue:?} {from}")
    }

    /// A half batch of an open transaction, for the question of a check-back. May read a file.
    ///
    /// # Errors
    /// [`ReadError`]; `None` when no open transaction has it, or its bytes are damaged.
    pub fn half(&self, at: BatchAt) -> Result<Option<(HalfRow, Bytes)>, ReadError> {
        todo!("{at:?}")
    }
}
