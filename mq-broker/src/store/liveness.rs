//! Which sealed segments of the journal are no longer needed. A segment is needed by the batches that its own
//! rows place, by half messages of undecided transactions in it, and by rows of later segments that place a
//! half message of it. Pure; when this cannot be decided, the segment is kept.
//!
//! The one invariant: a dead segment stays dead. Deleted queues do not come back, starts do not move back,
//! and only an undecided transaction can create new rows that point into an older segment.

use std::collections::{BTreeMap, BTreeSet};

use mq_common::ids::Offset;

use super::index::{Index, Sealed};
use super::queue_files::View;
use super::{CompactionCandidate, FileRow, Location, PlacedRow, SegmentId, Span};
use crate::ids::QueueKey;

/// Queues whose files are checked under one hold of the core: after a start it may be all of them.
const JUDGED_MAX: usize = 50_000;

/// What is no longer needed of the journal and the queue files at the last entry applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dead {
    /// Segments that are no longer needed.
    pub segments: Vec<SegmentId>,
    /// Segments whose footers must be read before anything more can be decided: see [`super::Store::learn`].
    pub unknown: Vec<SegmentId>,
    /// Queue files that are no longer needed: see [`super::Store::remove_file`].
    pub files: Vec<FileRow>,
    /// Some queues with files were not checked: the next checkpoint continues.
    pub is_partial: bool,
    /// What would make more of them unneeded.
    pub hints: CompactionHints,
}

/// What compaction could do next, found while looking for what is [`Dead`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompactionHints {
    /// Queue files with little valid data, by queue and first offset: worth a rewrite.
    pub sparse: Vec<(QueueKey, Offset)>,
    /// Queues of key-compacted topics that have much data not compacted yet.
    pub candidates: Vec<CompactionCandidate>,
    /// Segments that hold messages of undecided transactions: no compaction round moves these.
    pub held: usize,
    /// Those of them that nothing else needs, with the bytes that it would take to move these messages.
    pub bare: Vec<(SegmentId, u64)>,
    /// Segments that are needed only by batches placed by the segment that is not sealed yet.
    pub unsealed: usize,
    /// The last compaction round whose copies had replaced what it moved by then: see
    /// [`super::Moved::round`].
    pub rounds: u64,
}

/// The rows of a queue that place batches of an older segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// The queue.
    pub queue: QueueKey,
    /// The offset after the last one that they place.
    pub end: Offset,
    /// The older segment.
    pub segment: SegmentId,
}

/// The batches of older segments that the rows of `segment` place.
pub(super) fn references(segment: SegmentId, rows: impl IntoIterator<Item = PlacedRow>) -> Box<[Reference]> {
    let mut ends: BTreeMap<(QueueKey, SegmentId), Offset> = BTreeMap::new();
    for row in rows.into_iter().filter(|row| row.location.segment != segment) {
        let end = ends.entry((row.queue, row.location.segment)).or_default();
        *end = row.end().max(*end);
    }
    ends.into_iter()
        .map(|((queue, segment), end)| Reference { queue, end, segment })
        .collect()
}

impl Index {
    /// Which of the `sealed` segments are no longer needed. `ends` returns the start and end of a queue;
    /// `None` = it was deleted.
    pub(super) fn dead(
        &self,
        sealed: &[SegmentId],
        ends: impl Fn(QueueKey) -> Option<(Offset, Offset)>,
    ) -> Dead {
        let mut dead: BTreeSet<SegmentId> = sealed.iter().copied().collect();
        let mut unknown = Vec::new();
        let alive: Vec<&Sealed> = self
            .sealed
            .iter()
            .enumerate()
            .filter(|(at, _)| self.is_alive(*at, &ends))
            .map(|(_, sealed)| sealed)
            .collect();
        for sealed in &alive {
            dead.remove(&sealed.segment);
        }
        let needed = |queue, end| ends(queue).is_some_and(|(start, _)| start < end);
        for sealed in alive {
            // The usual case, in which nothing else has to be known.
            let Some(first) = dead.first().copied() else { break };
            match &sealed.references {
                Some(references) => {
                    let references = references.iter();
                    for reference in references.filter(|reference| needed(reference.queue, reference.end)) {
                        dead.remove(&reference.segment);
                    }
                }
                None if first < sealed.segment => {
                    unknown.push(sealed.segment);
                    dead = dead.split_off(&sealed.segment);
                }
                None => {}
            }
        }
        let mut unsealed = 0;
        if !dead.is_empty() {
            for row in self.unsealed.values().filter(|row| needed(row.queue, row.end())) {
                unsealed += usize::from(dead.remove(&row.location.segment));
            }
        }
        let bare = self
            .halves
            .segments()
            .filter(|(segment, _)| dead.contains(segment));
        let bare: Vec<(SegmentId, u64)> = bare.collect();
        for (segment, _) in self.halves.segments() {
            dead.remove(&segment);
        }
        Dead {
            segments: dead.into_iter().collect(),
            unknown,
            hints: CompactionHints {
                held: self.halves.segments().len(),
                bare,
                unsealed,
                rounds: self.rounds,
                ..CompactionHints::default()
            },
            ..Dead::default()
        }
    }

    /// The starts of these queues moved, or they were deleted: some of their files may be dead.
    pub(super) fn start_moved(&mut self, queues: impl IntoIterator<Item = QueueKey>) {
        for queue in queues {
            if self.files.has(queue) {
                self.unjudged.insert(queue);
                self.moved.insert(queue);
            }
        }
    }

    /// For queues that changed since the last call, drops the files below the start, or all if the queue was
    /// deleted, and notes those of which less than `valid_percent` is valid. `false` = there is more than
    /// should be done at once.
    pub(super) fn judge_files(
        &mut self,
        valid_percent: u64,
        bytes_min: u32,
        ends: impl Fn(QueueKey) -> Option<(Offset, Offset)>,
    ) -> bool {
        for _ in 0..JUDGED_MAX {
            let Some(queue) = self.unjudged.pop_first() else {
                return true;
            };
            self.changed.insert(queue);
            let all = (queue, Offset(0))..=(queue, Offset(u64::MAX));
            let noted: Vec<_> = self.sparse.range(all).copied().collect();
            for file in noted {
                self.sparse.remove(&file);
            }
            let start = ends(queue).map(|(start, _)| start);
            let views: Vec<View> = self.files.of(queue).collect();
            for view in views {
                let (first, segment) = (view.first, view.segment);
                let Some(start) = start.filter(|start| *start < segment.end) else {
                    self.drop_file(&view);
                    continue;
                };
                let (valid, all) = (segment.end.0 - start.max(first).0, segment.end.0 - first.0);
                if segment.bytes >= bytes_min
                    && u128::from(valid) * 100 < u128::from(all) * u128::from(valid_percent)
                {
                    self.sparse.insert((queue, first));
                }
            }
        }
        self.unjudged.is_empty()
    }

    /// All queue files that only wait for their removal.
    pub(super) fn files_gone(&self) -> Vec<FileRow> {
        self.files.gone().iter().map(|view| view.row(true)).collect()
    }

    /// Segments that must exist: if one is missing, its messages are lost.
    pub(super) fn needed(
        &self,
        ends: impl Fn(QueueKey) -> Option<(Offset, Offset)>,
    ) -> impl Iterator<Item = SegmentId> {
        let mut needed: BTreeSet<_> = self.halves.segments().map(|(segment, _)| segment).collect();
        for (at, sealed) in self.sealed.iter().enumerate() {
            if !self.is_alive(at, &ends) {
                continue;
            }
            needed.insert(sealed.segment);
            // Unknown ones are learnt from the footer: its readers find what is missing.
            for reference in sealed.references.iter().flatten() {
                if ends(reference.queue).is_some_and(|(start, _)| start < reference.end) {
                    needed.insert(reference.segment);
                }
            }
        }
        for row in self.unsealed.values() {
            if ends(row.queue).is_some_and(|(start, _)| start < row.end()) {
                needed.insert(row.location.segment);
            }
        }
        // A batch that was placed but never stored has no location.
        needed.remove(&Location::default().segment);
        needed.into_iter()
    }

    /// Whether any row of this sealed segment is of a queue that still has it.
    fn is_alive(&self, at: usize, ends: &impl Fn(QueueKey) -> Option<(Offset, Offset)>) -> bool {
        self.sealed[at].firsts.iter().any(|(queue, first)| {
            ends(*queue)
                .is_some_and(|(start, end)| start <= *first || start < self.until(at, *queue).unwrap_or(end))
        })
    }

    /// The offset after the queue's last one in this sealed segment, since offsets are dense; `None` = no
    /// later segment has any of the queue.
    fn until(&self, at: usize, queue: QueueKey) -> Option<Offset> {
        let first = |sealed: &Sealed| {
            let found = sealed.firsts.binary_search_by_key(&queue, |(queue, _)| *queue);
            found.ok().map(|at| sealed.firsts[at].1)
        };
        let filed = first(&self.sealed[at]).and_then(|first| self.files.first_behind(queue, first));
        let later = self.sealed[at + 1..].iter().find_map(first).or_else(|| {
            let rows = (queue, Offset(0))..=(queue, Offset(u64::MAX));
            self.unsealed.range(rows).next().map(|((_, base), _)| *base)
        });
        later.into_iter().chain(filed).min()
    }

    /// The first offset that a queue has in a sealed segment.
    pub(super) fn first_in(&self, segment: SegmentId, queue: QueueKey) -> Option<Offset> {
        let sealed = self.sealed.iter().find(|sealed| sealed.segment == segment)?;
        let at = sealed.firsts.binary_search_by_key(&queue, |(queue, _)| *queue);
        Some(sealed.firsts[at.ok()?].1)
    }

    /// The offsets of each queue in a sealed segment.
    pub(super) fn spans(&self, segment: SegmentId) -> Vec<Span> {
        let Some(at) = self.sealed.iter().position(|sealed| sealed.segment == segment) else {
            return Vec::new();
        };
        let firsts = self.sealed[at].firsts.iter();
        firsts
            .map(|(queue, first)| Span {
                queue: *queue,
                first: *first,
                until: self.until(at, *queue),
            })
            .collect()
    }

    /// The sealed segments whose rows may place batches of this one: itself, and later ones that committed
    /// some.
    pub(super) fn placing(&self, segment: SegmentId) -> impl Iterator<Item = SegmentId> + '_ {
        let places = move |sealed: &&Sealed| {
            let refers = |known: &[Reference]| known.iter().any(|known| known.segment == segment);
            let is_later = sealed.segment > segment;
            sealed.segment == segment || (is_later && sealed.references.as_deref().is_none_or(refers))
        };
        let sealed = self.sealed.iter().filter(places);
        sealed.map(|sealed| sealed.segment)
    }

    /// Remembers the batches of older segments that the rows of a sealed segment place.
    pub(super) fn learn(&mut self, segment: SegmentId, references: Box<[Reference]>) {
        if let Some(sealed) = self.sealed.iter_mut().find(|sealed| sealed.segment == segment) {
            self.dirty.references.push((segment, references.clone()));
            sealed.references = Some(references);
        }
    }

    /// Forgets a dead segment.
    pub(super) fn forget(&mut self, segment: SegmentId) {
        self.sealed.retain(|sealed| sealed.segment != segment);
        self.dirty.freed.push(segment);
    }
}

#[cfg(test)]
#[path = "liveness_tests.rs"]
mod tests;
