//! A compaction round: the valid part of the oldest sealed segments of the journal is copied into queue
//! files, then the index switches to the copies. Blocks; one round at a time.
//!
//! The order is such that a crash after any step loses nothing: the copies are written and synced; the index
//! switches, in memory; the next checkpoint saves the manifest and forgets the journal's rows in one
//! transaction; only then are the segments dead, like any other that is no longer needed.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use mq_common::ids::{Offset, Timestamp};

use crate::ids::QueueKey;
use crate::store::disk::{is_full, is_passing};
use crate::store::queue_files::{AppendError, Appender, Appends, SoFar, View};
use crate::store::segment_index::footer::FooterRows;
use crate::store::{FileKey, Found, HoleKind, PlacedRow, ReadError, SegmentId, Span, Store};

mod durable;
mod keys;
mod plan;
mod present;
mod stats;
mod stuck;

use self::keys::Choice;
use self::stats::Stats;
use self::stuck::Stuck;

pub use self::keys::{CompactionCandidate, KeySettings};
pub use self::plan::{Plan, PlannedQueue};

/// Rows read at once.
const ROWS_MAX: usize = 1024;
/// Bytes read at once.
const READ_BYTES: usize = 1024 * 1024;

/// The result of a round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Number of this round since the start. A checkpoint contains its result if its
    /// [`crate::store::CompactionHints::rounds`] is at least this.
    pub round: u64,
    /// Segments of the journal that are no longer needed for the batches they placed.
    pub segments: usize,
    /// Batches copied.
    pub batches: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Damaged batches, or runs of them, that were left out.
    pub holes: u64,
    /// Queue files that were rewritten.
    pub rewritten: usize,
    /// Queues that were compacted by their keys.
    pub passes: usize,
    /// Messages that this removed.
    pub let_go: u64,
    /// Passes that met a damaged file: the next ones leave it alone.
    pub left_alone: usize,
}

/// Why a round had no result. What it wrote is discarded.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// It was stopped.
    #[error("the round was stopped")]
    Stopped,
    /// Something to be copied cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The copies cannot be written: nothing is lost, it may be tried again.
    #[error("cannot write queue files: {0}")]
    Write(#[source] io::Error),
    /// The files of one queue cannot be written: nothing is lost, it may be tried again.
    #[error("cannot write queue files: `{}`: {source}", path.display())]
    Queue {
        /// The file, or the folder of the queue.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The copies were to replace a file in use: it was left alone, and nothing is lost.
    #[error("cannot write queue files: `{}` is in use already, and no other file may replace it", path.display())]
    Counts {
        /// The file.
        path: PathBuf,
    },
    /// A sync failed: the process must stop.
    #[error("cannot sync queue files: {0}")]
    Sync(#[source] io::Error),
}

impl From<AppendError> for RoundError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Io { path, source } => Self::Queue { path, source },
            AppendError::Sync(error) => Self::Sync(error),
            AppendError::Counts { path } => Self::Counts { path },
        }
    }
}

impl RoundError {
    /// Whether others can still be moved: the error concerns the files of one queue alone.
    fn is_of_one_queue(&self) -> bool {
        match self {
            Self::Queue { source, .. } => {
                let is_of_all = is_full(source)
                    || is_passing(source)
                    || source.kind() == io::ErrorKind::ReadOnlyFilesystem;
                !is_of_all
            }
            Self::Counts { .. } => true,
            _ => false,
        }
    }

    /// Whether a queue file is left as it is while others are not.
    fn leaves_a_queue_file(&self) -> bool {
        match self {
            Self::Read(error) => !error.is_passing(),
            error => error.is_of_one_queue(),
        }
    }

    /// Whether a segment stays in the journal while others do not.
    fn leaves_a_segment(&self) -> bool {
        let is_of_others = matches!(
            self,
            Self::Read(ReadError::NotStored { .. } | ReadError::WouldBlock | ReadError::QueueFile { .. })
        );
        !is_of_others && self.leaves_a_queue_file()
    }
}

/// Slows a round down so that producers keep the disk.
pub trait Pace {
    /// Called after each piece of work with its duration; may wait. `false` = stop.
    fn pause(&mut self, took: Duration) -> bool;

    /// Whether something else needs the disk more: then a round of key compaction ends after its current
    /// queue. Its work up to then counts, even if it has to stop within that queue.
    fn gives_way(&self) -> bool {
        false
    }
}

/// What later rounds need to know about earlier ones.
#[derive(Debug, Default)]
pub(in crate::store) struct Rounds {
    running: Arc<AtomicBool>,
    swept: HashSet<QueueKey>,
    /// Segments that cannot be read: they are not moved.
    stuck: Stuck<SegmentId>,
    /// Queue files that cannot be read: they are not rewritten.
    stuck_files: Stuck<(QueueKey, Offset)>,
    /// Queues whose files cannot be written, or whose pass took too long: their keys are not compacted.
    stuck_queues: Stuck<QueueKey>,
    /// Queue files that a rewrite would not make smaller, as long as their queues begin at the offset they
    /// had when it was tried.
    not_worth: BTreeMap<(QueueKey, Offset), Offset>,
    /// The current starts of the queues of the running round; `None` = deleted. Freed data is below.
    starts: BTreeMap<QueueKey, Option<Offset>>,
    stats: Stats,
    choice: Choice,
}

impl Rounds {
    /// Whether a round was planned and is not done yet.
    pub(in crate::store) fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Queues whose files changed, or whose starts moved, with their starts.
    pub(in crate::store) fn files_changed(&mut self, queues: impl IntoIterator<Item = (QueueKey, Offset)>) {
        self.stats.changed(queues);
    }

    /// Those of these queue files whose rewrite has not been tried in vain.
    pub(in crate::store) fn worth_a_rewrite(
        &mut self,
        sparse: &mut Vec<(QueueKey, Offset)>,
        ends: impl Fn(QueueKey) -> Option<(Offset, Offset)>,
    ) {
        self.not_worth
            .retain(|(queue, _), tried| ends(*queue).is_some_and(|(start, _)| start == *tried));
        sparse.retain(|file| !self.stuck_files.contains(file) && !self.not_worth.contains_key(file));
    }
}

/// A running round.
struct Round<'a> {
    store: &'a Store,
    plan: &'a Plan,
    pace: &'a mut dyn Pace,
    since: Instant,
    moved: Moved,
    /// For queues that were compacted by keys: the append time of the first tombstone that is kept.
    tombstones: Vec<(QueueKey, Option<Timestamp>)>,
    /// Why a part was left out, the first time that the files of a queue could not be written.
    refused: Option<RoundError>,
}

impl Store {
    /// Runs a round. Reads and writes files for a long time.
    ///
    /// # Errors
    /// [`RoundError`]; the index is unchanged.
    pub fn compact(&self, plan: &Plan, pace: &mut dyn Pace) -> Result<Moved, RoundError> {
        let mut round = Round {
            store: self,
            plan,
            pace,
            since: Instant::now(),
            moved: Moved::default(),
            tombstones: Vec::new(),
            refused: None,
        };
        let mut swept = std::mem::take(&mut self.rounds().swept);
        let done = round.run(&mut swept);
        self.rounds().swept = swept;
        if done.is_ok() {
            let tombstones = std::mem::take(&mut round.tombstones);
            self.note_tombstones(plan, tombstones);
            self.write_stats(Instant::now());
        }
        done
    }

    /// A queue file cannot be read: no round touches it for a while.
    fn left_alone(&self, queue: QueueKey, first: Offset) {
        self.rounds().stuck_files.insert((queue, first));
        self.lock().index.changed.insert(queue);
    }

    /// A pass over this queue failed and would fail again: none touches it for a while, and then it is checked again.
    fn queue_left_alone(&self, queue: QueueKey) {
        self.rounds().stuck_queues.insert(queue);
        self.lock().index.changed.insert(queue);
    }

    /// Locked before the index, never after it.
    pub(in crate::store) fn rounds(&self) -> std::sync::MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of a sealed segment, if all of them are known.
    pub(in crate::store) fn all_rows(&self, segment: SegmentId) -> Result<FooterRows, ReadError> {
        let rows = match self.segments.footer(segment) {
            Err(error) if error.hides_rows() => self.rebuild(segment, error)?.0,
            rows => rows?,
        };
        let spans = self.lock().index.spans(segment);
        let known = |queue, first| {
            rows.get(rows.find(queue, first))
                .is_some_and(|row| row.queue == queue)
        };
        // Rebuilt rows may end too early: more may be known of the queue now.
        let reaches = |span: &Span| {
            let behind = rows.find(QueueKey(span.queue.0.saturating_add(1)), Offset(0));
            let last = behind.checked_sub(1).and_then(|at| rows.get(at));
            span.until
                .is_none_or(|until| last.is_some_and(|row| row.end() == until))
        };
        let is_whole = |span: &Span| known(span.queue, span.first) && (!rows.are_rebuilt() || reaches(span));
        match spans.iter().find(|span| !is_whole(span)) {
            None => Ok(rows),
            Some(span) => Err(ReadError::Footer {
                segment,
                reason: format!("it lacks rows of queue {}", span.queue.0),
            }),
        }
    }
}

impl Round<'_> {
    fn run(&mut self, swept: &mut HashSet<QueueKey>) -> Result<Moved, RoundError> {
        let store = self.store;
        let syncing = durable::begin_sync(store).map_err(RoundError::Write)?;
        // None is added while a round runs.
        let gone = waiting(store);
        let (bytes, syncs_each) = (store.queue_segment_bytes, syncing.is_none());
        let mut appends = Appends::new(&store.files, bytes, swept, gone, syncs_each);
        let copied = self.copy(&mut appends);
        appends.tidy(copied.is_ok());
        let (done, gone) = copied?;
        let changed: Vec<View> = appends.changed().cloned().collect();
        durable::sync(store, &mut appends, &changed, syncing)?;
        self.moved.round = store.lock().index.switch(&done, &changed, &gone);
        let queues = self
            .plan
            .queues
            .iter()
            .map(|(queue, planned)| (*queue, planned.start));
        store.rounds().files_changed(queues);
        for view in changed.iter().chain(&gone) {
            store.files.forget(view.key());
        }
        self.moved.segments = done.len();
        self.moved.rewritten = gone.len();
        self.moved.batches = appends.batches;
        self.moved.bytes = appends.bytes;
        Ok(self.moved)
    }

    /// Returns the segments of the journal that were moved, and the queue files that were rewritten. What
    /// cannot be read, or whose queue's files cannot be written, does not keep anything else from being
    /// moved.
    fn copy(&mut self, appends: &mut Appends<'_>) -> Result<(Vec<SegmentId>, Vec<View>), RoundError> {
        let (mut done, mut gone) = (Vec::new(), Vec::new());
        for segment in &self.plan.segments {
            let before = (appends.so_far(), self.moved);
            let rows = match self.store.all_rows(*segment) {
                // Everything in it was deleted or trimmed meanwhile.
                Err(ReadError::Freed { .. }) => continue,
                rows => rows.map_err(RoundError::Read),
            };
            match rows.and_then(|rows| self.move_segment(&rows, appends)) {
                Ok(()) => done.push(*segment),
                Err(error) if error.leaves_a_segment() => {
                    tracing::error!(segment = segment.0, %error, "a journal segment stays: it cannot be moved");
                    self.leave_out(before, error, appends);
                    self.store.rounds().stuck.insert(*segment);
                }
                Err(error) => return Err(error),
            }
        }
        for (queue, first) in &self.plan.rewrites {
            let before = (appends.so_far(), self.moved);
            match self.rewrite(*queue, *first, appends) {
                Ok(old) => gone.extend(old),
                Err(error) if error.leaves_a_queue_file() => {
                    tracing::error!(queue = queue.0, %first, %error, "a queue file is not rewritten");
                    self.leave_out(before, error, appends);
                    self.store.left_alone(*queue, *first);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(tombstones_before) = self.plan.tombstones_before {
            gone.extend(self.passes(tombstones_before, appends)?);
        }
        match self.refused.take() {
            Some(error) if done.is_empty() && gone.is_empty() => Err(error),
            _ => Ok((done, gone)),
        }
    }

    /// Discards what was appended since `before`.
    fn leave_out(&mut self, before: (SoFar, Moved), error: RoundError, appends: &mut Appends<'_>) {
        let (so_far, moved) = before;
        appends.back_to(so_far);
        self.moved = moved;
        if error.is_of_one_queue() {
            self.refused.get_or_insert(error);
        }
    }

    fn move_segment(&mut self, rows: &FooterRows, appends: &mut Appends<'_>) -> Result<(), RoundError> {
        let mut at = 0;
        while let Some(row) = rows.get(at) {
            let behind = rows
                .find(QueueKey(row.queue.0.saturating_add(1)), Offset(0))
                .max(at + 1);
            if let Some(planned) = self.plan.queues.get(&row.queue) {
                let first = rows.find(row.queue, planned.start).max(at);
                if first < behind {
                    self.move_queue(rows, first..behind, planned, appends)?;
                }
            }
            at = behind;
        }
        Ok(())
    }

    fn move_queue(
        &mut self,
        rows: &FooterRows,
        range: Range<usize>,
        planned: &PlannedQueue,
        appends: &mut Appends<'_>,
    ) -> Result<(), RoundError> {
        let Some(first) = rows.get(range.start) else {
            return Ok(());
        };
        let (queue, mut next) = (first.queue, first.base_offset);
        let listed: Vec<View> = self.store.lock().index.files.of(queue).collect();
        let mut appender = appends.queue(queue, &planned.name, &listed)?;
        let mut at = range.start;
        while at < range.end {
            let mut bytes = 0;
            let chunk: Vec<PlacedRow> = (at..range.end)
                .take(ROWS_MAX)
                .map_while(|at| rows.get(at))
                .take_while(|row| {
                    let is_first = bytes == 0;
                    bytes += row.location.bytes as usize;
                    is_first || bytes <= READ_BYTES
                })
                .collect();
            at += chunk.len().max(1);
            let found = self.read_present(queue, chunk)?;
            let found = self.without_jumps(queue, &mut next, found);
            self.append(&mut appender, found)?;
        }
        appender.finish()?;
        self.pause()
    }

    fn append(&mut self, appender: &mut Appender<'_, '_>, found: Vec<Found>) -> Result<(), RoundError> {
        let mut written = 0;
        for found in found {
            written += match found {
                Found::Batch { row, region } => appender.batch(&row, region),
                Found::Hole {
                    from,
                    end,
                    kind,
                    reason,
                } => {
                    if kind == HoleKind::Damaged {
                        let (queue, topic) = (appender.name().number, &appender.name().topic);
                        tracing::error!(%topic, %queue, %from, %end, reason, "damaged messages are left out of a queue file");
                        self.moved.holes += 1;
                    }
                    appender.hole(from, end)
                }
            }?;
        }
        if written > 0 { self.pause() } else { Ok(()) }
    }

    /// Copies the valid part of a queue file into new ones; returns the old one.
    fn rewrite(
        &mut self,
        queue: QueueKey,
        first: Offset,
        appends: &mut Appends<'_>,
    ) -> Result<Option<View>, RoundError> {
        let listed: Vec<View> = self.store.lock().index.files.of(queue).collect();
        let view = listed.iter().find(|view| view.first == first).cloned();
        let (Some(view), Some(planned)) = (view, self.plan.queues.get(&queue)) else {
            return Ok(None);
        };
        let files = &self.store.files;
        let mut appender = appends.apart(queue, &planned.name, view.generation, &listed)?;
        let mut next = planned.start.max(first);
        while next < view.segment.end {
            let found = files.read(&view, next, view.segment.end, READ_BYTES)?;
            let Some(last) = found.last() else { break };
            // A single batch fills nearly all of it.
            if matches!(found.first(), Some(Found::Batch { row, .. }) if row.base_offset <= first) {
                self.store
                    .rounds()
                    .not_worth
                    .insert((queue, first), planned.start);
                return Ok(None);
            }
            next = last.end();
            self.hides_no_damage(&view, &found)?;
            self.append(&mut appender, found)?;
        }
        appender.finish()?;
        appends.forget_tip(queue);
        Ok(Some(view))
    }

    /// What a compacted file skips is missing on purpose, so damage left out of one would never be reported
    /// again. A damaged file is left as it is.
    fn hides_no_damage(&self, view: &View, found: &[Found]) -> Result<(), ReadError> {
        if view.generation > 0 && found.iter().any(Found::is_damage) {
            let damaged = io::Error::new(io::ErrorKind::InvalidData, "some of its messages are damaged");
            return Err(self.store.files.failed(view, damaged));
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), RoundError> {
        let took = self.since.elapsed();
        let goes_on = self.pace.pause(took);
        self.since = Instant::now();
        if goes_on { Ok(()) } else { Err(RoundError::Stopped) }
    }
}

/// Files that wait for removal.
fn waiting(store: &Store) -> HashSet<FileKey> {
    let inner = store.lock();
    let gone = inner.index.files.gone().iter();
    gone.map(View::key).collect()
}

#[cfg(test)]
mod tests;
