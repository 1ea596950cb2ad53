//! Half messages of undecided transactions leave segments of the journal that nothing else needs.
//!
//! Nobody decides a transaction but its producers or a person, so its messages may stay for as long as they like. Their
//! segment may not: a few bytes of each of many segments would fill the journal. So while the journal is above its
//! budget, they are written once more at its end, in a command that changes nothing but where they lie.
//!
//! The one invariant: only segments are emptied of which these messages, with what a command adds to them, are less than
//! half. What is written is then less than half of what is freed, so it comes to an end; and while the journal is above
//! its budget, of the segments that undecided transactions alone hold their messages come to be at least half.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mq_common::batch::Batch;
use mq_common::ids::Lsn;

use crate::core::{Answer, Core};
use crate::ids::BatchAt;
use crate::log::{self, SegmentId, Want};
use crate::state::{Command, Transaction};
use crate::store::{Dead, Store};

/// Bytes of half messages moved at once, about.
const BYTES_AT_ONCE: u64 = 4 << 20;
/// A segment that could not be emptied is tried again after this: what of it cannot be read now may be read then.
const RETRY: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub(crate) struct HalfMoves {
    core: Arc<Core>,
    segment_bytes: u64,
    /// Segments to empty, as of the last checkpoint.
    segments: VecDeque<SegmentId>,
    /// How far the first of them was gone through.
    after: Lsn,
    /// When segments were gone through that were not freed since.
    tried: BTreeMap<SegmentId, Instant>,
}

impl HalfMoves {
    pub(crate) const fn new(core: Arc<Core>, segment_bytes: u64) -> Self {
        Self {
            core,
            segment_bytes,
            segments: VecDeque::new(),
            after: Lsn(0),
            tried: BTreeMap::new(),
        }
    }

    /// A checkpoint was saved.
    pub(crate) fn saved(&mut self, dead: &Dead) {
        let is_bare = |segment: &SegmentId| dead.bare.iter().any(|(bare, _)| bare == segment);
        self.tried
            .retain(|segment, at| is_bare(segment) && at.elapsed() < RETRY);
        let under_way = self.segments.front().copied();
        let thin = dead
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

    /// Moves some, if there are any to move. The journal is above its budget.
    pub(crate) async fn tick(&mut self) {
        let Some(segment) = self.segments.front().copied() else {
            return;
        };
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
            .attend(move |holder, _| Ok(holder.undecided_in(&entries)));
        let Ok(transactions) = asking.await else { return };
        let reading = tokio::task::spawn_blocking(move || {
            let commands = transactions.into_iter().filter_map(|open| read(&store, open));
            commands.collect::<Vec<_>>()
        });
        let commands = match reading.await {
            Ok(commands) => commands,
            Err(error) => {
                tracing::error!(%error, "reading half messages broke");
                Vec::new()
            }
        };
        // They need no sync: their segments go after a checkpoint, which is synced.
        let commands = commands.into_iter().map(|command| (command, Want::Flushed));
        let answers = self.core.propose(commands.collect()).await;
        // What was decided meanwhile stays where it is and is garbage there.
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
            // No room, or the end: the next checkpoint says what is still to be done.
            self.segments.clear();
        }
    }
}

/// The command that moves the half messages of a transaction; `None` if they cannot be read whole.
fn read(store: &Store, open: Transaction) -> Option<log::Command> {
    let mut batches = Vec::with_capacity(open.parts.len());
    for index in (open.first.index..).take(open.parts.len()) {
        let at = BatchAt {
            lsn: open.first.lsn,
            index,
        };
        match store.half(at) {
            Ok(Some((_, region))) => batches.push(Batch::parse(region).ok()?),
            // Decided a moment ago, or damaged: the scrub tells that.
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
