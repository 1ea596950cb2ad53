//! Moves half messages of undecided transactions out of journal segments that nothing else needs.
//!
//! Only its producers or an operator decide a transaction, so its messages may remain for any length of time.
//! Their segment must not: a few bytes in each of many segments would fill the journal. So while the journal
//! is above its budget, they are written again at its end, in a command that changes nothing but their
//! location.
//!
//! The one invariant: a segment is emptied only if these messages, with what a command adds to them, take
//! less than half of it. Then less is written than half of what is freed, so the work ends; and while the
//! journal is above its budget, the segments that only undecided transactions hold end up at least half full
//! of their messages.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mq_common::batch::Batch;
use mq_common::ids::Lsn;

use crate::background::disk_share::Turns;
use crate::core::{Answer, Core};
use crate::ids::BatchAt;
use crate::log::{self, SegmentId, Want};
use crate::state::{Command, Transaction};
use crate::store::{CompactionHints, Store};

/// Approximate bytes of half messages moved at once.
const BYTES_AT_ONCE: u64 = 4 << 20;
/// A segment that could not be emptied is tried again after this time, when bytes that cannot be read now may
/// be readable.
const RETRY: Duration = Duration::from_secs(600);

/// Moves half messages.
#[derive(Debug)]
pub(crate) struct HalfMoves {
    core: Arc<Core>,
    segment_bytes: u64,
    turns: Turns,
    /// Segments to empty, as of the last checkpoint.
    segments: VecDeque<SegmentId>,
    /// The position reached in the first of them.
    after: Lsn,
    /// When segments were processed that have not been freed since.
    tried: BTreeMap<SegmentId, Instant>,
}

impl HalfMoves {
    /// `disk_percent` is its share of the disk's time while there are producers.
    pub(crate) fn new(core: Arc<Core>, segment_bytes: u64, disk_percent: u64) -> Self {
        Self {
            core,
            segment_bytes,
            turns: Turns::new(disk_percent),
            segments: VecDeque::new(),
            after: Lsn(0),
            tried: BTreeMap::new(),
        }
    }

    /// A checkpoint was saved.
    pub(crate) fn saved(&mut self, hints: &CompactionHints) {
        let is_bare = |segment: &SegmentId| hints.bare.iter().any(|(bare, _)| bare == segment);
        self.tried
            .retain(|segment, at| is_bare(segment) && at.elapsed() < RETRY);
        let under_way = self.segments.front().copied();
        let thin = hints
            .bare
            .iter()
            .filter(|(_, bytes)| bytes * 2 < self.segment_bytes);
        let wanted = thin.map(|(segment, _)| *segment);
        self.segments = wanted
            .filter(|segment| !self.tried.contains_key(segment))
            .collect();
        if self.segments.front().copied() != under_way {
            self.after = Lsn(0);
        }
    }

    /// Moves some half messages if there are any to move and producers leave time. Called while the journal is
    /// above its budget.
    pub(crate) async fn tick(&mut self) {
        let begun = Instant::now();
        if let Some(segment) = self.segments.front().copied()
            && self.turns.may_work(begun, self.core.journal_growth())
        {
            self.empty(segment).await;
            self.turns
                .worked(begun, Instant::now(), self.core.journal_growth());
        }
    }

    async fn empty(&mut self, segment: SegmentId) {
        let store = Arc::clone(&self.core.published().store);
        let entries = store.entries_with_halves(segment, self.after, BYTES_AT_ONCE);
        let Some(last) = entries.last().copied() else {
            self.segments.pop_front();
            self.after = Lsn(0);
            self.tried.insert(segment, Instant::now());
            return;
        };
        let asking = self
            .core
            .visit_for_upkeep(move |holder, _| Ok(holder.undecided_in(&entries)));
        let Ok(transactions) = asking.await else { return };
        let reading = tokio::task::spawn_blocking(move || {
            let commands = transactions.into_iter().filter_map(|open| read(&store, open));
            commands.collect::<Vec<_>>()
        });
        let commands = match reading.await {
            Ok(commands) => commands,
            Err(error) => {
                tracing::error!(%error, "reading half messages panicked");
                Vec::new()
            }
        };
        // They need no sync: their segments are freed after a checkpoint, which is synced.
        let commands = commands.into_iter().map(|command| (command, Want::Flushed));
        let answers = self.core.propose(commands.collect()).await;
        // Messages of transactions decided meanwhile stay where they are and are garbage there.
        if answers
            .iter()
            .all(|answer| matches!(answer, Answer::Applied { .. }))
        {
            tracing::debug!(
                segment = segment.0,
                transactions = answers.len(),
                "moved half messages"
            );
            self.after = last;
        } else {
            // No space, or the end: the next checkpoint shows what is still to be done.
            self.segments.clear();
        }
    }
}

/// The command that moves the half messages of a transaction; `None` if they cannot all be read.
fn read(store: &Store, open: Transaction) -> Option<log::Command> {
    let mut batches = Vec::with_capacity(open.parts.len());
    for index in (open.first.index..).take(open.parts.len()) {
        let at = BatchAt {
            lsn: open.first.lsn,
            index,
        };
        match store.half(at) {
            Ok(Some((_, region))) => batches.push(Batch::parse(region).ok()?),
            // Decided a moment ago, or damaged, which the scrub reports.
            Ok(None) => return None,
            Err(error) => {
                tracing::warn!(transaction = %open.number, %error, "half messages stay where they are: they cannot be read");
                return None;
            }
        }
    }
    let command = Command::MoveHalf {
        number: open.number,
        parts: open.parts,
    };
    Some(log::Command::new(command.encode(), batches).with_own_lsn())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::background::upkeep::tests::start;
    use crate::checkpoint::Saved;
    use crate::store::disk::TestDisk;

    #[tokio::test]
    async fn nothing_is_moved_during_its_rest_beside_producers() {
        let (core, _metrics) = start(&TestDisk::default(), Saved::default()).unwrap();
        let mut moves = HalfMoves::new(Arc::clone(&core), 4096, 25);
        moves.segments.push_back(SegmentId(1));
        let later = Instant::now() + Duration::from_secs(3600);
        moves.turns.worked(later, later, core.journal_growth() + 1);
        moves.tick().await;
        assert_eq!(moves.segments, [SegmentId(1)]);
        moves.turns = Turns::new(25);
        moves.tick().await;
        assert!(moves.segments.is_empty(), "nothing is left to be moved of it");
    }
}
