//! From (queue, offset) to a row. The index holds all rows of the segment that is not sealed yet; of a sealed
//! segment it holds only the first offset of each queue, and the footer has the rows. It also holds the
//! locations of half messages, and the changes of all this that the checkpoint does not have yet. Which
//! segments are no longer needed is decided in `liveness`.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use mq_common::batch::Stamp;
use mq_common::ids::Offset;

use super::halves::Halves;
use super::liveness::{Reference, references};
use super::queue_files::{Manifest, View};
use super::{HalfRow, Location, PlacedRow, Rows, SegmentId, SegmentRow, Update};
use crate::ids::{BatchAt, QueueKey};
use crate::log::Entry;
use crate::state::{Placement, Source};

/// Where a row is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RowLocation {
    /// In this index.
    Unsealed,
    /// In the footer of a sealed segment, which holds the queue's offsets up to `until`.
    Sealed {
        /// The segment.
        segment: SegmentId,
        /// First offset that a later segment holds.
        until: Option<Offset>,
    },
    /// In a queue file.
    File(View),
}

/// A sealed segment that has rows.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) segment: SegmentId,
    /// The first offset of each queue in it, sorted.
    pub(super) firsts: Vec<(QueueKey, Offset)>,
    /// The batches of older segments that its rows place; `None` = it was sealed by a broker that did not
    /// save them, and its footer has not been read since.
    pub(super) references: Option<Box<[Reference]>>,
}

/// The index of all queues.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) unsealed: BTreeMap<(QueueKey, Offset), PlacedRow>,
    /// The segment whose entries placed them.
    pub(super) unsealed_of: SegmentId,
    /// In order of segments.
    pub(super) sealed: Vec<Sealed>,
    pub(super) halves: Halves,
    /// Messages that were moved out of the journal.
    pub(super) files: Manifest,
    /// Queues with files that changed since the files were last checked for what the queues no longer need.
    pub(super) unjudged: BTreeSet<QueueKey>,
    /// Those of them whose starts moved.
    pub(super) moved: BTreeSet<QueueKey>,
    /// Queues with files that were checked, but not yet for whether key compaction is worthwhile.
    pub(super) changed: BTreeSet<QueueKey>,
    /// Queue files known to have little valid data.
    pub(super) sparse: BTreeSet<(QueueKey, Offset)>,
    /// Number of compaction rounds that switched to their copies since the start.
    pub(super) rounds: u64,
    pub(super) dirty: Rows,
}

impl Index {
    /// The index as the checkpoint saved it.
    pub(super) fn load(rows: Rows) -> Self {
        let mut segments: BTreeMap<SegmentId, Vec<(QueueKey, Offset)>> = BTreeMap::new();
        for row in rows.segments {
            segments
                .entry(row.segment)
                .or_default()
                .push((row.queue, row.first_offset));
        }
        let mut known: BTreeMap<SegmentId, Box<[Reference]>> = rows.references.into_iter().collect();
        let sealed = segments.into_iter().map(|(segment, mut firsts)| {
            firsts.sort_unstable();
            Sealed {
                segment,
                firsts,
                references: known.remove(&segment),
            }
        });
        let unsealed_of = rows.placed.last().map_or(SegmentId(0), |(segment, _)| *segment);
        let placed = rows
            .placed
            .into_iter()
            .filter(|(segment, _)| *segment == unsealed_of)
            .map(|(_, row)| ((row.queue, row.base_offset), row));
        let files = Manifest::load(rows.files);
        Self {
            sealed: sealed.collect(),
            unsealed: placed.collect(),
            unsealed_of,
            // The starts of their queues are not known here.
            unjudged: files.listed().collect(),
            files,
            halves: Halves::load(rows.halves),
            ..Self::default()
        }
    }

    /// Remembers the half messages of an entry; for its placements see [`Index::place`].
    pub(super) fn open_halves(&mut self, entry: &Entry<'_>, effects: &Update<'_>) {
        for index in effects.halves.iter().flat_map(Clone::clone) {
            let Some(stored) = entry.batches.get(index as usize) else {
                continue;
            };
            let half = HalfRow {
                at: BatchAt {
                    lsn: entry.lsn,
                    index,
                },
                location: stored.location,
                checksum: stored.checksum,
            };
            self.halves.insert(half);
            self.dirty.halves.push(half);
        }
    }

    /// Forgets what an entry decided or deleted.
    pub(super) fn close(&mut self, effects: &Update<'_>) {
        for lsn in effects.released_halves {
            self.halves.remove(*lsn);
            self.dirty.released_halves.push(*lsn);
        }
        // One pass, however many were decided or deleted: there may be hundreds of thousands.
        if !effects.released_halves.is_empty() {
            let opened = &self.halves;
            self.dirty.halves.retain(|half| opened.contains(half.at));
        }
        if !effects.deleted.is_empty() {
            self.forget_queues(effects.deleted);
            self.dirty.deleted.extend(effects.deleted);
        }
    }

    fn forget_queues(&mut self, deleted: &[QueueKey]) {
        for queue in deleted {
            let rows = (*queue, Offset(0))..=(*queue, Offset(u64::MAX));
            let rows: Vec<_> = self.unsealed.range(rows).map(|(key, _)| *key).collect();
            for key in rows {
                self.unsealed.remove(&key);
            }
        }
        let deleted: HashSet<_> = deleted.iter().collect();
        self.dirty.placed.retain(|(_, row)| !deleted.contains(&row.queue));
        self.dirty.segments.retain(|row| !deleted.contains(&row.queue));
        for sealed in &mut self.sealed {
            sealed.firsts.retain(|(queue, _)| !deleted.contains(queue));
        }
    }

    /// Whether this segment may get rows: no rows of another one are here.
    pub(super) fn takes(&self, segment: SegmentId) -> bool {
        self.unsealed.is_empty() || self.unsealed_of == segment
    }

    /// Remembers the row of a placement and returns it.
    pub(super) fn place(&mut self, entry: &Entry<'_>, placement: &Placement) -> PlacedRow {
        let known = match placement.source {
            Source::Here(index) => entry
                .batches
                .get(index as usize)
                .map(|stored| (stored.location, stored.checksum)),
            Source::Half(at) => self.halves.get(at).map(|half| (half.location, half.checksum)),
        };
        let (location, checksum) = known.unwrap_or_else(|| {
            tracing::error!(
                queue = placement.queue.0, offset = %placement.base_offset, source = ?placement.source,
                "data lost: a placed batch is not stored; its offsets cannot be served"
            );
            (Location::default(), 0)
        });
        let row = PlacedRow {
            queue: placement.queue,
            base_offset: placement.base_offset,
            count: placement.records,
            location,
            checksum,
            lsn: entry.lsn,
            term: entry.term,
            time: entry.time,
            flags: match placement.source {
                Source::Here(_) => 0,
                Source::Half(_) => Stamp::TRANSACTIONAL,
            },
        };
        assert!(
            self.takes(entry.segment),
            "rows of segment {:?} were not sealed before {:?}",
            self.unsealed_of,
            entry.segment
        );
        self.unsealed_of = entry.segment;
        self.unsealed.insert((row.queue, row.base_offset), row);
        self.dirty.placed.push((entry.segment, row));
        row
    }

    /// Seals the segment: returns its rows for the footer, sorted, and keeps the first offsets. Empty when it
    /// has no rows, or was sealed before.
    pub(super) fn seal(&mut self, segment: SegmentId) -> Vec<PlacedRow> {
        if self.unsealed_of != segment {
            return Vec::new();
        }
        let rows: Vec<_> = std::mem::take(&mut self.unsealed).into_values().collect();
        let mut firsts: Vec<(QueueKey, Offset)> =
            rows.iter().map(|row| (row.queue, row.base_offset)).collect();
        firsts.dedup_by_key(|(queue, _)| *queue);
        self.dirty.placed.retain(|(of, _)| *of != segment);
        // Also without rows: a checkpoint may have some of queues that were deleted since.
        self.dirty.sealed.push(segment);
        if !rows.is_empty() {
            self.dirty
                .segments
                .extend(firsts.iter().map(|(queue, first_offset)| SegmentRow {
                    segment,
                    queue: *queue,
                    first_offset: *first_offset,
                }));
            let references = references(segment, rows.iter().copied());
            self.dirty.references.push((segment, references.clone()));
            self.sealed.push(Sealed {
                segment,
                firsts,
                references: Some(references),
            });
        }
        rows
    }

    /// The batches that these segments placed are in queue files now, as far as they are needed; `gone` are
    /// files that were replaced by others. Returns the number of the round.
    pub(super) fn switch(&mut self, done: &[SegmentId], changed: &[View], gone: &[View]) -> u64 {
        self.rounds += 1;
        self.sealed.retain(|sealed| !done.contains(&sealed.segment));
        self.dirty.freed.extend(done);
        // New files may begin where replaced ones did.
        for view in gone {
            self.drop_file(view);
        }
        for view in changed {
            self.dirty.files.push(view.row(false));
            self.files.put(view.clone());
            self.unjudged.insert(view.queue);
        }
        self.rounds
    }

    /// This queue file is no longer needed.
    pub(super) fn drop_file(&mut self, view: &View) {
        self.dirty.files.push(view.row(true));
        self.files.drop_segment(view);
        self.sparse.remove(&(view.queue, view.first));
    }

    /// The number of rows that sealing this segment would return.
    pub(super) fn rows(&self, segment: SegmentId) -> usize {
        if self.unsealed_of == segment {
            self.unsealed.len()
        } else {
            0
        }
    }

    pub(super) fn take_dirty(&mut self) -> Rows {
        std::mem::take(&mut self.dirty)
    }

    /// The location of the row of the batch that contains this offset, if it is placed.
    pub(super) fn locate(&self, queue: QueueKey, offset: Offset) -> Option<RowLocation> {
        if let Some(view) = self.files.find(queue, offset) {
            return Some(RowLocation::File(view));
        }
        let first_unsealed = self
            .unsealed
            .range((queue, Offset(0))..=(queue, Offset(u64::MAX)))
            .next();
        let mut until = first_unsealed.map(|((_, base), _)| *base);
        if until.is_some_and(|first| first <= offset) {
            return Some(RowLocation::Unsealed);
        }
        for sealed in self.sealed.iter().rev() {
            let Ok(at) = sealed.firsts.binary_search_by_key(&queue, |(queue, _)| *queue) else {
                continue;
            };
            let first = sealed.firsts[at].1;
            if first <= offset {
                let segment = sealed.segment;
                let filed = self.files.first_behind(queue, offset);
                let until = until.into_iter().chain(filed).min();
                return Some(RowLocation::Sealed { segment, until });
            }
            until = Some(first);
        }
        None
    }

    /// Rows of the unsealed segment from the one that contains `offset`.
    pub(super) fn unsealed_from(
        &self,
        queue: QueueKey,
        offset: Offset,
    ) -> impl Iterator<Item = PlacedRow> + '_ {
        let first = self
            .unsealed
            .range((queue, Offset(0))..=(queue, offset))
            .next_back();
        let base = first.map_or(offset, |((_, base), _)| *base);
        let rows = self.unsealed.range((queue, base)..=(queue, Offset(u64::MAX)));
        rows.map(|(_, row)| *row)
            .skip_while(move |row| row.end() <= offset)
    }
}
