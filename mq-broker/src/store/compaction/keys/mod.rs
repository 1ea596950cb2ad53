//! Key compaction: of each key of a queue only the last record is kept, as far as the queue is in queue
//! files. Rewrites the files of a queue from the first one on; offsets and order do not change.
//!
//! A file written by a pass has a generation above 0. The first files of a queue that share one such
//! generation are *clean*: no key occurs in them twice. The files after them are *dirty*. A pass notes the
//! last offset of each key in the dirty files, up to where its table is full. Then it writes the clean files
//! and that part of the dirty ones again, without the records for which a later offset was noted, all as one
//! new generation; the files after that keep their own. So whatever happens to single files (trimmed, left
//! alone, moved here late), the first generation is the one that was compared with itself.
//!
//! The one invariant: a record is removed only when a later one of its key is in a file that the checkpoint
//! lists. A tombstone is removed without one, but only if nothing below it was left out of the pass, so that
//! nothing it deleted comes back.

mod choice;
mod last;
mod opened;

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use mq_common::batch::Record;
use mq_common::ids::{Offset, Timestamp};

use self::last::LastOffsets;
use self::opened::{Opened, has_tombstone};

pub(super) use self::choice::Choice;
pub use self::choice::CompactionCandidate;

use super::{PlannedQueue, READ_BYTES, Round, RoundError};
use crate::ids::QueueKey;
use crate::store::found::compacted;
use crate::store::queue_files::{Appender, Appends, View};
use crate::store::{Found, HoleKind, Location, PlacedRow, Plan, ReadError, Store};

/// Settings of key compaction.
#[derive(Debug, Clone)]
pub struct KeySettings {
    /// A queue is compacted when this much of its files is dirty, percent of their bytes.
    pub dirty_percent: u64,
    /// How long a tombstone is kept after its append, milliseconds.
    pub tombstone_ms: u64,
    /// Bytes of memory for the last offsets of keys.
    pub map_bytes: usize,
}

impl Default for KeySettings {
    fn default() -> Self {
        Self {
            dirty_percent: 50,
            tombstone_ms: 24 * 60 * 60 * 1000,
            map_bytes: 16 * 1024 * 1024,
        }
    }
}

/// What is to be kept of a queue, as far as a pass over it knows.
struct Pass<'a> {
    last: &'a LastOffsets,
    /// Records below are not kept.
    start: Offset,
    /// Records from here on are kept as they are.
    until: Offset,
    /// Nothing below was left out.
    is_complete: bool,
    /// Tombstones that were appended before may be removed.
    tombstones_before: Timestamp,
    /// Number of records removed.
    let_go: u64,
    /// When the first tombstone that is kept was appended.
    tombstone: Option<Timestamp>,
}

/// The result of a pass.
struct Passed {
    /// The files that were replaced.
    old: Vec<View>,
    /// When the first tombstone that is kept was appended; `None` = there is none.
    tombstone: Option<Timestamp>,
}

/// The files that a pass writes, with every offset below accounted for.
struct Output<'b, 'a> {
    appender: Appender<'b, 'a>,
    at: Offset,
}

impl Store {
    /// Plans a round that compacts these queues by their keys. `now` is the log's time; `queue` returns what
    /// is known of a queue, `None` = it was deleted. No plan = nothing to do, or a round is running already.
    ///
    /// The manifest's files must be in a saved checkpoint, because records are removed on their account.
    #[must_use]
    pub fn plan_passes(
        &self,
        dirty: &[QueueKey],
        now: Timestamp,
        queue: impl Fn(QueueKey) -> Option<PlannedQueue>,
    ) -> Option<Plan> {
        let mut rounds = self.rounds();
        let known = dirty.iter().filter_map(|key| Some((*key, queue(*key)?)));
        let queues: BTreeMap<_, _> = known.filter(|(_, planned)| planned.compacts).collect();
        if rounds.is_running() || queues.is_empty() {
            return None;
        }
        for queue in queues.keys() {
            rounds.choice.begin(*queue, now);
        }
        Some(Plan {
            searches: queues
                .keys()
                .copied()
                .filter(|queue| rounds.choice.is_searched(*queue))
                .collect(),
            segments: Vec::new(),
            rewrites: Vec::new(),
            tombstones_before: Some(Timestamp(now.0.saturating_sub(self.keys.tombstone_ms))),
            _running: rounds.begin(&queues),
            queues,
        })
    }

    /// The files of a queue, and a generation above that of any existing one.
    fn files_and_generation(&self, queue: QueueKey) -> (Vec<View>, Option<u32>) {
        let inner = self.lock();
        let listed: Vec<View> = inner.index.files.of(queue).collect();
        let gone = inner.index.files.gone().iter().filter(|view| view.queue == queue);
        let last = listed.iter().chain(gone).map(|view| view.generation).max();
        (listed, last.unwrap_or(0).checked_add(1))
    }
}

impl Round<'_> {
    /// Compacts the queues of the plan one after another; returns the files that were replaced.
    pub(super) fn passes(
        &mut self,
        tombstones_before: Timestamp,
        appends: &mut Appends<'_>,
    ) -> Result<Vec<View>, RoundError> {
        let mut last = LastOffsets::new(self.store.keys.map_bytes);
        let mut gone = Vec::new();
        let plan = self.plan;
        for (queue, planned) in &plan.queues {
            let before = (appends.so_far(), self.moved);
            let (topic, number) = (&planned.name.topic, &planned.name.number);
            match self.pass((*queue, planned), tombstones_before, &mut last, appends) {
                Ok(Some(passed)) => {
                    gone.extend(passed.old);
                    self.tombstones.push((*queue, passed.tombstone));
                }
                Ok(None) => {}
                Err(error) if error.leaves_a_queue_file() => {
                    tracing::error!(%topic, queue = %number, %error, "a queue is left as it is: it cannot be compacted by keys");
                    if error.is_of_one_queue() {
                        self.store.queue_left_alone(*queue);
                    }
                    self.leave_out(before, error, appends);
                    self.moved.left_alone += 1;
                }
                Err(RoundError::Stopped) if self.pace.gives_way() => {
                    if gone.is_empty() {
                        // As the first of its round it had all the time there is: begun again at once, it would
                        // never end.
                        tracing::warn!(%topic, queue = %number, "a queue's keys are not compacted for a while: it took too long");
                        self.store.queue_left_alone(*queue);
                        return Err(RoundError::Stopped);
                    }
                    self.leave_out(before, RoundError::Stopped, appends);
                }
                Err(error) => return Err(error),
            }
            if self.pace.gives_way() {
                break;
            }
        }
        Ok(gone)
    }

    /// A damaged file ends it; the next pass skips that file. `None` = there is nothing to do.
    fn pass(
        &mut self,
        (queue, planned): (QueueKey, &PlannedQueue),
        tombstones_before: Timestamp,
        last: &mut LastOffsets,
        appends: &mut Appends<'_>,
    ) -> Result<Option<Passed>, RoundError> {
        let (listed, generation) = self.store.files_and_generation(queue);
        let mut views = listed.clone();
        let rounds = self.store.rounds();
        views.retain(|view| !rounds.stuck_files.contains(&(queue, view.first)));
        drop(rounds);
        let Some(generation) = generation else {
            return Ok(None);
        };
        let is_search = self.plan.searches.contains(&queue);
        if is_search {
            let first = self.first_tombstone(&views, planned.start, tombstones_before)?;
            if first.is_none_or(|first| tombstones_before <= first) {
                return Ok(Some(Passed {
                    old: Vec::new(),
                    tombstone: first,
                }));
            }
        }
        let dirty = match first_dirty(&views) {
            None if !is_search => return Ok(None),
            dirty => dirty.unwrap_or(views.len()),
        };
        let mut until = self.note_keys(&views[dirty..], planned.start, last)?;
        if dirty == views.len() {
            // No comparison is needed: only tombstones are removed.
            until = views.last().map_or(until, |view| view.segment.end);
        }
        let mut pass = Pass {
            last,
            start: planned.start,
            until,
            is_complete: true,
            tombstones_before,
            let_go: 0,
            tombstone: None,
        };
        let mut output = Output {
            appender: appends.apart(queue, &planned.name, generation, &listed)?,
            at: planned.start,
        };
        // The files after it, or those left alone, may have tombstones, none of which is younger than this
        // moment.
        let is_all = views.len() == listed.len() && views.last().is_none_or(|view| view.segment.end <= until);
        let unseen =
            (!is_all).then(|| Timestamp(tombstones_before.0.saturating_add(self.store.keys.tombstone_ms)));
        let mut old = Vec::new();
        for view in views.into_iter().take_while(|view| view.first < until) {
            self.write(&view, &mut pass, &mut output)?;
            old.push(view);
        }
        output.appender.finish()?;
        let (let_go, tombstone) = (pass.let_go, pass.tombstone.into_iter().chain(unseen).min());
        appends.forget_tip(queue);
        self.moved.passes += 1;
        self.moved.let_go += let_go;
        Ok(Some(Passed { old, tombstone }))
    }

    /// When the first tombstone in these files was appended, as far as that was before `before` or it is the
    /// first of all.
    fn first_tombstone(
        &mut self,
        views: &[View],
        start: Offset,
        before: Timestamp,
    ) -> Result<Option<Timestamp>, RoundError> {
        let mut first: Option<Timestamp> = None;
        let early = self.each_batch(views, start, |row, region| {
            if has_tombstone(row, region, start) {
                first = first.into_iter().chain([row.time]).min();
            }
            first.filter(|first| *first < before)
        })?;
        Ok(early.or(first))
    }

    /// Notes the keys of these files; returns the offset after the last one noted.
    fn note_keys(
        &mut self,
        views: &[View],
        start: Offset,
        last: &mut LastOffsets,
    ) -> Result<Offset, RoundError> {
        last.clear();
        let full = self.each_batch(views, start, |row, region| note_batch(row, region, start, last))?;
        let ends = views.iter().map(|view| view.segment.end);
        Ok(full.unwrap_or_else(|| ends.fold(start, Offset::max)))
    }

    /// Visits the batches of these files, from an offset on, until the callback returns something.
    fn each_batch<R>(
        &mut self,
        views: &[View],
        start: Offset,
        mut look: impl FnMut(&PlacedRow, Bytes) -> Option<R>,
    ) -> Result<Option<R>, RoundError> {
        for view in views {
            let mut next = view.first.max(start);
            while next < view.segment.end {
                for found in self.read_intact(view, next)? {
                    next = found.end();
                    if let Found::Batch { row, region } = found
                        && let Some(answer) = look(&row, region)
                    {
                        return Ok(Some(answer));
                    }
                }
                self.pause()?;
            }
        }
        Ok(None)
    }

    /// Writes the records of a file that are kept.
    fn write(
        &mut self,
        view: &View,
        pass: &mut Pass<'_>,
        output: &mut Output<'_, '_>,
    ) -> Result<(), RoundError> {
        if output.at < view.first {
            // A file that was left alone, or messages that are still in the journal.
            pass.is_complete = false;
            output.at = view.first;
        }
        let mut next = view.first.max(pass.start);
        while next < view.segment.end {
            for found in self.read_intact(view, next)? {
                next = found.end();
                let Found::Batch { row, region } = found else {
                    continue;
                };
                if row.base_offset < pass.until {
                    match pass.look_at(&row, &region) {
                        Some((batch, keep)) => self.put_runs(output, (view, &row), &batch, &keep)?,
                        None => self.put(output, row, region.clone())?,
                    }
                }
                if pass.until < row.end() {
                    self.put_behind(view, pass, output, &row, region)?;
                }
            }
            self.pause()?;
        }
        self.reach(output, view.segment.end)
    }

    /// Writes the part of a batch after the end of the pass, as it is.
    fn put_behind(
        &mut self,
        view: &View,
        pass: &Pass<'_>,
        output: &mut Output<'_, '_>,
        row: &PlacedRow,
        region: Bytes,
    ) -> Result<(), RoundError> {
        self.reach(output, pass.until)?;
        output.appender.of_generation(view.generation);
        if pass.until <= row.base_offset {
            return self.put(output, *row, region);
        }
        let Some(batch) = Opened::new(region) else {
            let what = "a batch can no longer be taken apart".to_owned();
            return Err(self.left_alone(view, damaged(self.store, view, what)));
        };
        let keep: Vec<bool> = offsets(row).map(|offset| pass.until <= offset).collect();
        self.put_runs(output, (view, row), &batch, &keep)
    }

    fn put_runs(
        &mut self,
        output: &mut Output<'_, '_>,
        (view, row): (&View, &PlacedRow),
        batch: &Opened,
        keep: &[bool],
    ) -> Result<(), RoundError> {
        for run in batch.batch.runs(&batch.records, keep) {
            let (first, run) = run.map_err(|error| {
                let what = format!("the rest of the batch at {}: {error}", row.base_offset);
                self.left_alone(view, damaged(self.store, view, what))
            })?;
            let run_row = PlacedRow {
                base_offset: Offset(row.base_offset.0 + u64::from(first)),
                count: run.record_count(),
                location: Location {
                    bytes: run.header().region_bytes,
                    ..row.location
                },
                checksum: run.checksum(),
                ..*row
            };
            self.put(output, run_row, run.into_bytes())?;
        }
        Ok(())
    }

    fn put(&mut self, output: &mut Output<'_, '_>, row: PlacedRow, region: Bytes) -> Result<(), RoundError> {
        self.reach(output, row.base_offset)?;
        output.at = row.end();
        self.append(&mut output.appender, vec![Found::Batch { row, region }])
    }

    /// Accounts for the records that were not kept.
    fn reach(&mut self, output: &mut Output<'_, '_>, to: Offset) -> Result<(), RoundError> {
        if to <= output.at {
            return Ok(());
        }
        let from = std::mem::replace(&mut output.at, to);
        self.append(&mut output.appender, vec![compacted(from, to)])
    }

    /// Reads the next part of a file, in which nothing may be damaged.
    fn read_intact(&self, view: &View, from: Offset) -> Result<Vec<Found>, RoundError> {
        let read = self.store.files.read(view, from, view.segment.end, READ_BYTES);
        let found = read.and_then(|found| intact(self.store, view, found));
        found.map_err(|error| self.left_alone(view, error))
    }

    /// Remembers a damaged file, so that the next pass skips it.
    fn left_alone(&self, view: &View, error: ReadError) -> RoundError {
        if !error.is_passing() {
            self.store.left_alone(view.queue, view.first);
        }
        error.into()
    }
}

impl Pass<'_> {
    /// Which records of a batch are kept; `None` = all of it.
    fn look_at(&mut self, row: &PlacedRow, region: &Bytes) -> Option<(Opened, Vec<bool>)> {
        let Some(batch) = Opened::new(region.clone()) else {
            // It may contain what a tombstone deleted.
            self.is_complete = false;
            return None;
        };
        let records = offsets(row).zip(&batch.records);
        let keep: Vec<bool> = records
            .map(|(offset, record)| record.is_ok_and(|record| self.stays(row, offset, &record)))
            .collect();
        let below_until = offsets(row)
            .zip(&keep)
            .filter(|(offset, _)| self.start <= *offset && *offset < self.until);
        self.let_go += below_until.filter(|(_, keep)| !**keep).count() as u64;
        keep.contains(&false).then_some((batch, keep))
    }

    fn stays(&mut self, row: &PlacedRow, offset: Offset, record: &Record<'_>) -> bool {
        if offset < self.start || self.until <= offset {
            return false;
        }
        let Some(key) = record.key else { return true };
        let is_tombstone = record.payload.is_empty();
        let goes = is_tombstone && row.time < self.tombstones_before && self.is_complete;
        let stays = !(goes || self.last.is_behind(key, offset));
        if is_tombstone && stays {
            self.tombstone = self.tombstone.into_iter().chain([row.time]).min();
        }
        stays
    }
}

/// Notes the keys of a batch from `start` on; returns the offset of the first that has no room.
fn note_batch(row: &PlacedRow, region: Bytes, start: Offset, last: &mut LastOffsets) -> Option<Offset> {
    let batch = Opened::new(region)?;
    let mut keys = offsets(row)
        .zip(&batch.records)
        .filter(|(offset, _)| start <= *offset)
        .filter_map(|(offset, record)| Some((offset, record.ok()?.key?)));
    keys.find(|(offset, key)| !last.note(key, *offset))
        .map(|(offset, _)| offset)
}

fn offsets(row: &PlacedRow) -> impl Iterator<Item = Offset> + use<> {
    (row.base_offset.0..row.end().0).map(Offset)
}

/// The first file that is not of the first one's generation, or of none.
fn first_dirty(views: &[View]) -> Option<usize> {
    let clean = views.first()?.generation;
    views
        .iter()
        .position(|view| view.generation == 0 || view.generation != clean)
}

/// The batches read, if none of them is damaged.
fn intact(store: &Store, view: &View, found: Vec<Found>) -> Result<Vec<Found>, ReadError> {
    let damage = found.iter().find_map(|found| match found {
        Found::Hole {
            from,
            end,
            kind: HoleKind::Damaged,
            reason,
        } => Some(format!("of offsets {from} to {end}: {reason}")),
        _ => None,
    });
    match damage {
        Some(damage) => Err(damaged(store, view, damage)),
        None if found.is_empty() => Err(damaged(store, view, "it ends too early".to_owned())),
        None => Ok(found),
    }
}

fn damaged(store: &Store, view: &View, what: String) -> ReadError {
    store
        .files
        .failed(view, io::Error::new(io::ErrorKind::InvalidData, what))
}
