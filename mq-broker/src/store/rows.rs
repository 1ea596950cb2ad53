//! The facts that the store keeps of batches: identities and locations, what one entry changed, and the rows
//! of the checkpoint.

use std::ops::Range;

use mq_common::ids::{Lsn, Offset, Term, Timestamp};

use super::liveness::Reference;
use super::queue_files::{FileKey, FileRow};
use crate::ids::{BatchAt, QueueKey};
use crate::state::Placement;

/// A segment of the journal: numbered densely from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u64);

/// Where one batch's producer region lies in the journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// The segment.
    pub segment: SegmentId,
    /// Bytes before it in the segment's file.
    pub position: u32,
    /// Its length.
    pub bytes: u32,
}

/// A batch's place in a queue, its location in the journal, and the values of its stamp: a row of the
/// `Placed` footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedRow {
    /// The queue.
    pub queue: QueueKey,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Its records.
    pub count: u32,
    /// The location of its bytes: in the footer's own segment, or in an older one.
    pub location: Location,
    /// The CRC-32C stored in the region.
    pub checksum: u32,
    /// The entry that made it visible.
    pub lsn: Lsn,
    /// That entry's term.
    pub term: Term,
    /// That entry's time.
    pub time: Timestamp,
    /// The stamp's flags.
    pub flags: u16,
}

/// The first offset of a queue in a sealed segment: a row of the checkpoint, by which a fetch finds its
/// segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentRow {
    /// The segment.
    pub segment: SegmentId,
    /// The queue.
    pub queue: QueueKey,
    /// The base offset of its first batch placed there.
    pub first_offset: Offset,
}

/// A batch stored by an undecided transaction: a row of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HalfRow {
    /// Its identity.
    pub at: BatchAt,
    /// The location of its bytes.
    pub location: Location,
    /// The CRC-32C stored in the region.
    pub checksum: u32,
}

/// What the checkpoint saves for the store, besides the state: the changes since it was last taken, and all
/// rows when they are loaded. Take it under the same hold of the core as the state's, so that both are at one
/// lsn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Rows of segments that were sealed. Kept until their segment is freed.
    pub segments: Vec<SegmentRow>,
    /// The batches of older segments that sealed segments place, complete.
    pub references: Vec<(SegmentId, Box<[Reference]>)>,
    /// Rows placed by entries of the segment that is not sealed yet. Its footer will hold them; until then
    /// only the checkpoint does, because entries up to the checkpoint are not applied again.
    pub placed: Vec<(SegmentId, PlacedRow)>,
    /// Segments sealed since: their `placed` rows may be deleted.
    pub sealed: Vec<SegmentId>,
    /// Batches of transactions that opened.
    pub halves: Vec<HalfRow>,
    /// Entries whose half batches no transaction needs any longer: their half rows may be deleted.
    pub released_halves: Vec<Lsn>,
    /// Queues that were deleted: their rows may be deleted.
    pub deleted: Vec<QueueKey>,
    /// Segments that were freed, or whose batches are in queue files now: their rows may be deleted.
    pub freed: Vec<SegmentId>,
    /// Segments of queue files: new ones, longer ones, and ones that only wait for their removal; of several
    /// for one file, the last one counts.
    pub files: Vec<FileRow>,
    /// Queue files that were removed.
    pub files_removed: Vec<FileKey>,
}

/// The result of `apply` for an entry, as far as the store is concerned.
#[derive(Debug, Clone, Copy, Default)]
pub struct Update<'a> {
    /// Batches that got their place in a queue.
    pub placements: &'a [Placement],
    /// Batches of this entry (by index) that belong to transactions opened by it, not yet placed.
    pub halves: &'a [Range<u32>],
    /// Entries whose half batches no transaction needs any longer: it was decided (they were placed above, or
    /// are garbage), or its half messages were moved.
    pub released_halves: &'a [Lsn],
    /// Queues that were deleted.
    pub deleted: &'a [QueueKey],
    /// Queues whose start moved, or whose topic was declared again.
    pub touched: &'a [QueueKey],
}
