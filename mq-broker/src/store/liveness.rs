//! Which sealed segments of the journal hold nothing any more. A segment is needed by the batches that its own rows
//! place, by half messages of undecided transactions in it, and by rows of later segments that place a half message of
//! it. Pure; when it cannot tell, the segment stays.
//!
//! The one invariant: a dead segment stays dead. Queues do not come back and their starts do not go back, and only an
//! undecided transaction can make new rows that point into an older segment.

use std::collections::{BTreeMap, BTreeSet};

use mq_common::ids::Offset;

use super::index::{Index, Sealed};
use super::{Dirty, FileRow, PlacedRow, SegmentId, Span};
use crate::ids::QueueKey;

/// What of the journal holds nothing any more, as of the last entry applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dead {
    /// Segments that nothing needs.
    pub segments: Vec<SegmentId>,
    /// Segments whose footers have to be looked at before anything more can be told: see [`super::Store::learn`].
    pub unknown: Vec<SegmentId>,
    /// Queue files that nothing needs: see [`super::Store::remove_file`].
    pub files: Vec<FileRow>,
    /// Queue files of which little is valid, by queue and first offset: worth a rewrite.
    pub sparse: Vec<(QueueKey, Offset)>,
    /// Segments that hold messages of undecided transactions: no round moves these.
    pub held: usize,
    /// Queues with much that was not compacted by keys yet, of topics that want it.
    pub dirty: Vec<Dirty>,
    /// The last round of compaction whose copies took the place of what it moved by then: see [`super::Moved::round`].
    pub rounds: u64,
}

/// Rows of a queue that place batches of an older segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// The queue.
    pub queue: QueueKey,
    /// Behind the last offset that they place.
    pub end: Offset,
    /// The older segment.
    pub segment: SegmentId,
}

/// What the rows of `segment` place of older segments.
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
    /// Those of the `sealed` segments that nothing needs. `ends` answers what a queue still has, from its start to its
    /// end; `None` = it was deleted.
    pub(super) fn dead(
        &self,
        sealed: &[SegmentId],
        ends: impl Fn(QueueKey) -> Option<(Offset, Offset)>,
    ) -> Dead {
        let mut dead: BTreeSet<SegmentId> = sealed.iter().copied().collect();
        let mut unknown = Vec::new();
        let held: BTreeSet<SegmentId> = self.halves.values().map(|half| half.location.segment).collect();
        for segment in &held {
            dead.remove(segment);
        }
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
            // The usual case, and then nothing more needs to be known.
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
        if !dead.is_empty() {
            for row in self.unsealed.values().filter(|row| needed(row.queue, row.end())) {
                dead.remove(&row.location.segment);
            }
        }
        Dead {
            segments: dead.into_iter().collect(),
            unknown,
            held: held.len(),
            rounds: self.rounds,
            ..Dead::default()
        }
    }

    /// Drops the queue files of deleted queues and those below the starts; answers all that wait for their removal, and
    /// those of which at most `valid_percent` is valid.
    pub(super) fn dead_files(
        &mut self,
        valid_percent: u64,
        bytes_min: u32,
        ends: impl Fn(QueueKey) -> Option<(Offset, Offset)>,
    ) -> (Vec<FileRow>, Vec<(QueueKey, Offset)>) {
        let is_gone = |queue, end| ends(queue).is_none_or(|(start, _)| end <= start);
        for view in self.files.select(|queue, _, segment| is_gone(queue, segment.end)) {
            self.drop_file(&view);
        }
        let sparse = self.files.select(|queue, first, segment| {
            let start = ends(queue).map_or(first, |(start, _)| start.max(first));
            let (valid, all) = (segment.end.0 - start.0, segment.end.0 - first.0);
            segment.bytes >= bytes_min
                && u128::from(valid) * 100 < u128::from(all) * u128::from(valid_percent)
        });
        let gone = self.files.gone().iter().map(|view| view.row(true)).collect();
        (
            gone,
            sparse.into_iter().map(|view| (view.queue, view.first)).collect(),
        )
    }

    /// Segments that must be there: what is missing of them is lost.
    pub(super) fn needed(
        &self,
        ends: impl Fn(QueueKey) -> Option<(Offset, Offset)>,
    ) -> impl Iterator<Item = SegmentId> {
        let mut needed: BTreeSet<_> = self.halves.values().map(|half| half.location.segment).collect();
        for (at, sealed) in self.sealed.iter().enumerate() {
            if !self.is_alive(at, &ends) {
                continue;
            }
            needed.insert(sealed.segment);
            // Unknown ones are learnt from the footer: then whoever reads finds what is missing.
            for reference in sealed.references.iter().flatten() {
                if ends(reference.queue).is_some_and(|(start, _)| start < reference.end) {
                    needed.insert(reference.segment);
                }
            }
        }
        needed.into_iter()
    }

    /// Whether any row of this sealed segment is of a queue that still has it.
    fn is_alive(&self, at: usize, ends: &impl Fn(QueueKey) -> Option<(Offset, Offset)>) -> bool {
        self.sealed[at].firsts.iter().any(|(queue, first)| {
            ends(*queue)
                .is_some_and(|(start, end)| start <= *first || start < self.until(at, *queue).unwrap_or(end))
        })
    }

    /// Behind the last offset that the queue has in this sealed segment, for offsets are dense; `None` = no later segment
    /// has any of it.
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

    /// What each queue has in a sealed segment.
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

    /// Remembers what the rows of a sealed segment place of older ones.
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
