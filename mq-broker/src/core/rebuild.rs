//! Rebuilds the rows of a sealed segment whose footer is damaged from the segment's entries.
//!
//! What its commands placed follows from the commands and the first offset of each queue in the segment, with
//! one exception: whether a commit found its transaction undecided. So the end of each queue is compared with
//! its first offset in later segments. A queue whose end does not match, or which had commits and nothing to
//! compare with, is left out: its offsets are a hole. Where damage hides entries, of this segment or of one
//! with half messages, two errors could cancel each other out; then queues with commits are left out, and all
//! queues that have nothing to compare with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mq_common::api::transaction::Decision;
use mq_common::batch::Stamp;
use mq_common::ids::{Lsn, Offset, TransactionNumber};

use crate::ids::QueueKey;
use crate::log::{self, Entry, Location, PlacedRow, Reach, RereadError, SegmentId, Stored};
use crate::state::Command;
use crate::state::command::Part;
use crate::store::disk::is_passing;
use crate::store::{Folder, ReadError, Rebuild, Rebuilt, Span};

/// Reads the journal in order to rebuild rows.
#[derive(Debug)]
pub struct FromEntries {
    /// The broker's data folder.
    pub folder: Arc<Folder>,
    /// Added to the lsn of the entry with half messages, this gives the number of their transaction.
    pub transactions_from: u64,
}

/// A batch of a half message: its queue, number of records, location, and checksum.
type HalfBatch = (QueueKey, u32, Location, u32);

impl Rebuild for FromEntries {
    fn rows(&self, segment: SegmentId, spans: &[Span]) -> Result<Rebuilt, ReadError> {
        let mut rows = Rows::new(spans, self.transactions_from);
        let reach = log::entries(&self.folder, segment, |entry| rows.note(entry))?;
        rows.note_reach(segment, reach);
        self.find_halves(segment, &mut rows)?;
        Ok(rows.finish())
    }
}

impl FromEntries {
    /// Half messages that were committed in this segment but sent, or moved, in older ones; and which were
    /// decided before.
    fn find_halves(&self, segment: SegmentId, rows: &mut Rows) -> Result<(), ReadError> {
        let missing = rows
            .wanted
            .iter()
            .filter(|number| !rows.sent_here.contains(number));
        let halves = missing.filter_map(|number| Some(Lsn(number.0.checked_sub(self.transactions_from)?)));
        let (mut oldest, mut is_unread): (Option<SegmentId>, bool) = (None, false);
        for half in halves {
            let found = log::segment_of(&self.folder, segment, half);
            let found = or_unread(&mut is_unread, found)?.flatten();
            oldest = found.into_iter().chain(oldest).min();
        }
        rows.is_unread |= is_unread;
        let Some(oldest) = oldest else { return Ok(()) };
        for older in oldest.0..segment.0 {
            let older = SegmentId(older);
            match log::entries(&self.folder, older, |entry| rows.note_earlier(entry)) {
                Ok(reach) => rows.note_reach(older, reach),
                // Freed: its entries about these transactions are unknown, so the ends of the queues must
                // decide.
                Err(error) if error.is_missing() => {}
                reach => {
                    let _none = or_unread(&mut rows.is_unread, reach)?;
                }
            }
        }
        Ok(())
    }
}

/// Continues without what the disk cannot read now, and notes that.
fn or_unread<T>(is_unread: &mut bool, read: Result<T, RereadError>) -> Result<Option<T>, ReadError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(RereadError::Io { source, .. }) if !is_passing(&source) => {
            *is_unread = true;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// The data of one placement apart from its offset.
#[derive(Debug, Clone, Copy)]
enum Placed {
    /// One batch.
    Batch(HalfBatch),
    /// The batches of this transaction.
    Commit(TransactionNumber),
}

struct Rows {
    transactions_from: u64,
    spans: BTreeMap<QueueKey, Span>,
    /// The placements in order, each with a row that holds its entry's lsn, term and time.
    placed: Vec<(Placed, PlacedRow)>,
    /// Half messages of this segment, and those of older segments at the location they were moved to last.
    halves: BTreeMap<TransactionNumber, Vec<HalfBatch>>,
    halves_before: BTreeMap<TransactionNumber, Vec<HalfBatch>>,
    /// Transactions whose half messages were sent in this segment: older segments contain nothing about them.
    sent_here: BTreeSet<TransactionNumber>,
    wanted: BTreeSet<TransactionNumber>,
    decided: BTreeSet<TransactionNumber>,
    decided_before: BTreeSet<TransactionNumber>,
    /// Damage hides entries.
    is_partial: bool,
    /// The disk does.
    is_unread: bool,
}

impl Rows {
    fn new(spans: &[Span], transactions_from: u64) -> Self {
        Self {
            transactions_from,
            spans: spans.iter().map(|span| (span.queue, *span)).collect(),
            placed: Vec::new(),
            halves: BTreeMap::new(),
            halves_before: BTreeMap::new(),
            sent_here: BTreeSet::new(),
            wanted: BTreeSet::new(),
            decided: BTreeSet::new(),
            decided_before: BTreeSet::new(),
            is_partial: false,
            is_unread: false,
        }
    }

    fn note_reach(&mut self, segment: SegmentId, reach: Reach) {
        self.is_unread |= matches!(reach, Reach::Unread(_));
        if let Reach::Before(lsn) | Reach::Unread(lsn) = reach {
            tracing::error!(segment = segment.0, from = %lsn, "entries of a sealed journal segment cannot be read");
            self.is_partial = true;
        }
    }

    /// Whether half messages are missing that may have been placed here.
    fn lacks_halves(&self) -> bool {
        let mut wanted = self.wanted.difference(&self.decided_before);
        wanted.any(|number| self.half(*number).is_none())
    }

    fn half(&self, number: TransactionNumber) -> Option<&[HalfBatch]> {
        let half = self.halves.get(&number);
        half.or_else(|| self.halves_before.get(&number))
            .map(Vec::as_slice)
    }

    /// A transaction's number follows from the lsn of the entry with which its half messages came.
    fn number(&self, entry: &Entry<'_>) -> TransactionNumber {
        TransactionNumber(self.transactions_from.saturating_add(entry.lsn.0))
    }

    fn note(&mut self, entry: &Entry<'_>) {
        let row = PlacedRow {
            queue: QueueKey(0),
            base_offset: Offset(0),
            count: 0,
            location: Location::default(),
            checksum: 0,
            lsn: entry.lsn,
            term: entry.term,
            time: entry.time,
            flags: 0,
        };
        for command in entry.commands() {
            match (Command::decode(command.meta), command.batches) {
                (Ok(Command::Append(part)), [stored]) if part.records > 0 => {
                    let batch = (part.queue, part.records, stored.location, stored.checksum);
                    self.placed.push((Placed::Batch(batch), row));
                }
                (Ok(Command::SendHalf(half)), stored) => {
                    let number = self.number(entry);
                    self.sent_here.insert(number);
                    self.halves.insert(number, batches(&half.parts, stored));
                }
                // A decided transaction does not need them, and they stay at their old location.
                (Ok(Command::MoveHalf { number, parts }), stored) if !self.decided.contains(&number) => {
                    self.halves.insert(number, batches(&parts, stored));
                }
                (Ok(Command::EndTransaction { number, decision }), _) if decision != Decision::Unknown => {
                    // The first decision is the one that counts.
                    let first = self.decided.insert(number);
                    if first && decision == Decision::Commit {
                        self.wanted.insert(number);
                        self.placed.push((Placed::Commit(number), row));
                    }
                }
                _ => {}
            }
        }
    }

    /// Notes an entry of an older segment.
    fn note_earlier(&mut self, entry: &Entry<'_>) {
        for command in entry.commands() {
            match Command::decode(command.meta) {
                Ok(Command::SendHalf(half)) if self.wanted.contains(&self.number(entry)) => {
                    let half = batches(&half.parts, command.batches);
                    self.halves_before.insert(self.number(entry), half);
                }
                Ok(Command::MoveHalf { number, parts }) if self.wanted.contains(&number) => {
                    let half = batches(&parts, command.batches);
                    self.halves_before.insert(number, half);
                }
                Ok(Command::EndTransaction { number, decision })
                    if decision != Decision::Unknown && self.wanted.contains(&number) =>
                {
                    self.decided_before.insert(number);
                }
                _ => {}
            }
        }
    }

    fn finish(self) -> Rebuilt {
        let mut next: BTreeMap<QueueKey, Offset> =
            self.spans.values().map(|span| (span.queue, span.first)).collect();
        let mut rows = Vec::new();
        let mut doubtful = BTreeSet::new();
        for (placed, row) in &self.placed {
            let (batches, flags) = match placed {
                Placed::Batch(batch) => (std::slice::from_ref(batch), 0),
                Placed::Commit(number) if self.decided_before.contains(number) => continue,
                // Not found: see `lacks_halves`.
                Placed::Commit(number) => (self.half(*number).unwrap_or_default(), Stamp::TRANSACTIONAL),
            };
            for (queue, count, location, checksum) in batches {
                if flags != 0 {
                    doubtful.insert(*queue);
                }
                // A queue without a span was deleted.
                if let Some(next) = next.get_mut(queue) {
                    rows.push(PlacedRow {
                        queue: *queue,
                        base_offset: *next,
                        count: *count,
                        location: *location,
                        checksum: *checksum,
                        flags,
                        ..*row
                    });
                    *next = Offset(next.0.saturating_add(u64::from(*count)));
                }
            }
        }
        let is_unsure = self.is_partial || self.is_unread || self.lacks_halves();
        let comes_out = |queue: &QueueKey| {
            let had_commits = doubtful.contains(queue);
            self.spans.get(queue).is_some_and(|span| match span.until {
                Some(until) => next.get(queue) == Some(&until) && !(is_unsure && had_commits),
                None => !is_unsure && !had_commits,
            })
        };
        rows.retain(|row| comes_out(&row.queue));
        rows.sort_unstable_by_key(|row| (row.queue, row.base_offset));
        Rebuilt {
            rows,
            is_unread: self.is_unread,
        }
    }
}

fn batches(parts: &[Part], stored: &[Stored]) -> Vec<HalfBatch> {
    let batches = parts.iter().zip(stored);
    batches
        .map(|(part, stored)| (part.queue, part.records, stored.location, stored.checksum))
        .collect()
}

#[cfg(test)]
#[path = "rebuild_tests.rs"]
mod tests;
