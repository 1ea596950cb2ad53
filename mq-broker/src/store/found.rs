//! The result of a read from the store.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use mq_common::batch::Batch;
use mq_common::ids::Offset;

use super::disk::is_passing;
use super::io::unreadable::is_rot;
use super::{PlacedRow, SegmentId};
use crate::ids::QueueKey;

/// How a fetch may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only from memory, the system's page cache included: for threads that must not block. A sequential read
    /// prefetches.
    CacheOnly,
    /// Like [`Access::CacheOnly`] without prefetching, because others need the disk more.
    CacheOnlyNoPrefetch,
    /// From memory or, where necessary, from the disk. A sequential read prefetches.
    Blocking,
    /// Like [`Access::Blocking`] without prefetching, because others need the disk more.
    BlockingNoPrefetch,
    /// From the disk even if memory has the bytes, because those may be damaged. No prefetching.
    BypassCache,
}

impl Access {
    /// Whether the read may block on the disk.
    #[must_use]
    pub const fn may_block(self) -> bool {
        matches!(
            self,
            Self::Blocking | Self::BlockingNoPrefetch | Self::BypassCache
        )
    }

    /// Whether the read may ask the system for more than the caller wants.
    #[must_use]
    pub const fn may_prefetch(self) -> bool {
        matches!(self, Self::CacheOnly | Self::Blocking)
    }
}

/// What the store has at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A batch: all values of its stamp, and the producer region as it was written.
    Batch {
        /// Its row.
        row: PlacedRow,
        /// The producer region; checked.
        region: Bytes,
    },
    /// Offsets without messages: nothing can be served for them.
    Hole {
        /// Its first offset.
        from: Offset,
        /// The offset after its last one.
        end: Offset,
        /// Whether messages were lost.
        kind: HoleKind,
        /// Why, for people.
        reason: String,
    },
}

/// Why offsets have no messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HoleKind {
    /// Their bytes are damaged: the messages are lost.
    Damaged,
    /// Their messages were deleted by key compaction, because later ones have the same keys.
    Compacted,
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
    /// The footer of a sealed segment, which contains the locations of its batches, is damaged.
    #[error("the index of journal segment {} is damaged: {reason}", segment.0)]
    Footer {
        /// The segment.
        segment: SegmentId,
        /// What is wrong.
        reason: String,
    },
    /// Its segment was freed during the search: the queue was deleted, or trimmed to this offset or beyond.
    #[error("journal segment {} was freed: what it held was deleted or trimmed", segment.0)]
    Freed {
        /// The segment.
        segment: SegmentId,
    },
    /// The read would have to block on the disk, which its [`Access`] forbids.
    #[error("the messages would have to be read from the disk")]
    WouldBlock,
    /// A queue file cannot be read.
    #[error("cannot read the queue file `{}`: {source}", path.display())]
    QueueFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk failed.
    #[error("cannot read journal segment {}: {source}", segment.0)]
    Io {
        /// The segment.
        segment: SegmentId,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Found {
    /// Whether messages were lost here.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        let lost = HoleKind::Damaged;
        matches!(self, Self::Hole { kind, .. } if *kind == lost)
    }

    /// Its first offset.
    pub(in crate::store) const fn from(&self) -> Offset {
        match self {
            Self::Batch { row, .. } => row.base_offset,
            Self::Hole { from, .. } => *from,
        }
    }

    /// The offset after it.
    #[must_use]
    pub const fn end(&self) -> Offset {
        match self {
            Self::Batch { row, .. } => row.end(),
            Self::Hole { end, .. } => *end,
        }
    }
}

impl ReadError {
    /// Whether there is nothing to read because the queue was trimmed or deleted.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::NotStored { .. }) || self.may_have_moved()
    }

    /// Whether the disk or the file system reports that the bytes are lost.
    pub(super) fn is_loss(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::QueueFile { source, .. } => {
                is_rot(source) || source.kind() == io::ErrorKind::NotFound
            }
            _ => false,
        }
    }

    /// Whether the rows of a segment cannot be read: they may be rebuilt from its entries.
    pub(super) fn hides_rows(&self) -> bool {
        matches!(self, Self::Footer { .. }) || matches!(self, Self::Io { source, .. } if is_rot(source))
    }

    /// Whether the error says nothing about the bytes: the same read may succeed in a moment.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::QueueFile { source, .. } => is_passing(source),
            _ => false,
        }
    }

    /// Whether the messages may be elsewhere now: in a queue file instead of the journal, or in another queue
    /// file.
    pub(super) fn may_have_moved(&self) -> bool {
        match self {
            Self::Freed { .. } => true,
            Self::QueueFile { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }
}

/// A region read from a file is checked as a whole: it is served as it was written, or not at all.
pub(super) fn check(region: &Bytes, checksum: u32) -> Option<()> {
    let batch = Batch::parse(region.clone()).ok()?;
    (batch.checksum() == checksum).then_some(())
}

/// Offsets that a file skips after key compaction.
pub(super) fn compacted(from: Offset, end: Offset) -> Found {
    Found::Hole {
        from,
        end,
        kind: HoleKind::Compacted,
        reason: "later messages of the same keys took their places".to_owned(),
    }
}

/// A hole made by damage.
pub(super) fn hole(from: Offset, end: Offset, reason: &dyn Display) -> Found {
    Found::Hole {
        from,
        end,
        kind: HoleKind::Damaged,
        reason: reason.to_string(),
    }
}
