//! Unreadable regions as readers see them: first an error, because the fault may be transient; and after
//! `fetch.unreadable_ms`, a hole, so that no reader is kept from the rest of a queue for ever. Compaction
//! rounds are stricter: what they cannot read stays where it is.
//!
//! Neighbouring bytes share one time-out, and a hole is not requested from the disk again at each fetch. When
//! many files fail at once, the device is probably away, rather than that many places bad: then the time-out
//! is longer.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mq_common::ids::Offset;

use crate::store::clock::Clock;
use crate::store::queue_files::View;
use crate::store::{FileKey, Found, Location, PlacedRow, ReadError, SegmentId};

/// Regions that are remembered. While there are more, new ones are errors and no holes.
const PLACES_MAX: usize = 4096;
/// Batches that are remembered as unreadable. When there are more, they are read again each time.
const UNREAD_MAX: usize = 16 * 1024;
/// A region not met for this long starts over.
const FORGOTTEN: Duration = Duration::from_secs(10 * 60);
/// A hole is read again when the last attempt was this long ago.
const AGAIN: Duration = Duration::from_secs(60);
/// Expired entries are dropped this often ..
const SWEPT_EACH: Duration = AGAIN;
/// .. and this often while there is no room for more.
const SWEPT_EACH_FULL: Duration = Duration::from_secs(1);
/// Bytes of a file that share one time-out.
const STRETCH_BYTES: u32 = 1024 * 1024;
/// When more files than this failed within [`AGAIN`], the fault is the device's.
const FILES_MAX: usize = 4;
/// Then the time-out is longer by this factor.
const DEVICE_PATIENCE: u32 = 10;

/// What could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unread {
    Batch(Location),
    /// The rows of a segment, which could not be rebuilt either.
    Rows(SegmentId),
    /// A queue file from an offset on.
    File(FileKey, Offset),
}

/// What shares one time-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Region {
    /// The index of a stretch.
    Journal(SegmentId, u32),
    Rows(SegmentId),
    /// The index of a stretch, as if all messages of the file had the same size.
    File(FileKey, u64),
}

/// The regions that could not be read, and since when.
#[derive(Debug)]
pub(in crate::store) struct UnreadableRegions {
    patience: Duration,
    /// Nothing is remembered: the usual case costs no more than this check.
    is_empty: AtomicBool,
    memory: Mutex<Memory>,
    pub(super) clock: Clock,
}

#[derive(Debug, Default)]
struct Memory {
    places: BTreeMap<Region, Met>,
    /// The current holes: the last attempt at each, and the offset after it.
    holes: BTreeMap<Unread, (Instant, Offset)>,
    /// When expired entries were last dropped.
    swept: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Met {
    first: Instant,
    last: Instant,
    /// The first failure: once that can be read, the region starts over.
    unread: Unread,
}

impl UnreadableRegions {
    pub(in crate::store) fn new(patience: Duration, clock: Clock) -> Self {
        Self {
            patience,
            is_empty: AtomicBool::new(true),
            memory: Mutex::default(),
            clock,
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that something up to `end` could not be read; returns whether that has lasted long enough.
    pub(super) fn is(
        &self,
        (place, unread): (Region, Unread),
        end: Offset,
        error: &ReadError,
        now: Instant,
    ) -> bool {
        let mut memory = self.memory();
        self.is_empty.store(false, Ordering::Release);
        let known = memory
            .places
            .get(&place)
            .copied()
            .filter(|met| is_known(met, now));
        if known.is_none() {
            if memory.places.len() >= PLACES_MAX {
                memory.sweep(now, SWEPT_EACH_FULL);
            }
            if memory.places.len() >= PLACES_MAX {
                return false;
            }
            let patience = self.patience;
            tracing::error!(%error, ?patience, "messages that a consumer asked for cannot be read; if that persists, they become a hole; check the disk");
        }
        let met = Met {
            last: now,
            ..known.unwrap_or(Met {
                first: now,
                last: now,
                unread,
            })
        };
        memory.places.insert(place, met);
        let is_lost = now.saturating_duration_since(met.first) >= memory.patience(self.patience, now);
        if is_lost {
            if memory.holes.len() >= UNREAD_MAX {
                memory.sweep(now, SWEPT_EACH_FULL);
            }
            if memory.holes.len() < UNREAD_MAX {
                memory.holes.insert(unread, (now, end));
            }
        }
        is_lost
    }

    /// The offset after the hole here, if it was tried a moment ago.
    pub(super) fn end_of(&self, unread: Unread, now: Instant) -> Option<Offset> {
        if self.is_empty.load(Ordering::Acquire) {
            return None;
        }
        let memory = self.memory();
        let known = memory.holes.get(&unread);
        known.and_then(|(tried, end)| is_fresh(*tried, now).then_some(*end))
    }

    /// Something was read: forgets what that disproves, and expired entries.
    fn were_read(&self, forget: impl FnOnce(&mut Memory)) {
        if self.is_empty.load(Ordering::Acquire) {
            return;
        }
        let now = self.now();
        let mut memory = self.memory();
        memory.sweep(now, SWEPT_EACH);
        forget(&mut memory);
        self.is_empty.store(
            memory.places.is_empty() && memory.holes.is_empty(),
            Ordering::Release,
        );
    }

    /// Notes that the rows of a segment can be read.
    pub(in crate::store) fn rows_were_read(&self, segment: SegmentId) {
        self.were_read(|memory| memory.forget(Region::Rows(segment), Unread::Rows(segment)));
    }

    pub(super) fn batches_were_read(&self, rows: &[PlacedRow]) {
        self.were_read(|memory| {
            let locations = || rows.iter().map(|row| row.location);
            let (Some(first), Some(last)) = (locations().min(), locations().max()) else {
                return;
            };
            // Most reads are of other locations.
            if memory.knows_of(first, last) {
                for location in locations() {
                    memory.forget(Region::of_batch(location), Unread::Batch(location));
                }
            }
        });
    }

    pub(super) fn file_was_read(&self, view: &View, found: &[Found]) {
        let (Some(first), Some(last)) = (found.first(), found.last()) else {
            return;
        };
        let reads = |offset: Offset| {
            let at = found.partition_point(|found| found.end() <= offset);
            matches!(found.get(at), Some(Found::Batch { row, .. }) if row.base_offset <= offset)
        };
        let (key, from) = (view.key(), first.from());
        self.were_read(|memory| {
            let holes = memory
                .holes
                .range(Unread::File(key, from)..Unread::File(key, last.end()));
            let read: Vec<Unread> = holes
                .map(|(unread, _)| *unread)
                .filter(|unread| matches!(unread, Unread::File(_, offset) if reads(*offset)))
                .collect();
            for unread in read {
                memory.holes.remove(&unread);
            }
            let places = memory
                .places
                .range(Region::File(key, 0)..=Region::File(key, u64::MAX));
            let read: Vec<Region> = places
                .filter(|(_, met)| matches!(met.unread, Unread::File(_, offset) if reads(offset)))
                .map(|(place, _)| *place)
                .collect();
            for place in read {
                memory.places.remove(&place);
            }
        });
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }
}

impl Memory {
    fn patience(&self, patience: Duration, now: Instant) -> Duration {
        let mut failing = self.places.iter().filter(|(_, met)| is_fresh(met.last, now));
        let mut files = HashSet::new();
        let is_device = failing.any(|(place, _)| {
            files.insert(place.file());
            files.len() > FILES_MAX
        });
        if is_device {
            patience.saturating_mul(DEVICE_PATIENCE)
        } else {
            patience
        }
    }

    /// Drops expired entries unless that was done less than this long ago.
    fn sweep(&mut self, now: Instant, pause: Duration) {
        let is_due = |swept| now.saturating_duration_since(swept) >= pause;
        if self.swept.is_none_or(is_due) {
            self.swept = Some(now);
            self.places.retain(|_, met| is_known(met, now));
            self.holes.retain(|_, (tried, _)| is_fresh(*tried, now));
        }
    }

    /// Whether anything between these locations of the journal is remembered.
    fn knows_of(&self, first: Location, last: Location) -> bool {
        let mut holes = self.holes.range(Unread::Batch(first)..=Unread::Batch(last));
        let mut places = self
            .places
            .range(Region::of_batch(first)..=Region::of_batch(last));
        holes.next().is_some() || places.next().is_some()
    }

    /// Forgets something that can be read again.
    fn forget(&mut self, place: Region, unread: Unread) {
        self.holes.remove(&unread);
        if self.places.get(&place).is_some_and(|met| met.unread == unread) {
            self.places.remove(&place);
        }
    }
}

impl Region {
    pub(super) const fn of_batch(location: Location) -> Self {
        Self::Journal(location.segment, location.position / STRETCH_BYTES)
    }

    pub(super) fn in_file(view: &View, offset: Offset) -> Self {
        let offsets = view.segment.end.0.saturating_sub(view.first.0);
        let stretches = u64::from(view.segment.bytes / STRETCH_BYTES).max(1);
        let each = (offsets / stretches).max(1);
        Self::File(view.key(), offset.0.saturating_sub(view.first.0) / each)
    }

    const fn file(&self) -> (Option<SegmentId>, Option<FileKey>) {
        match self {
            Self::Journal(segment, _) | Self::Rows(segment) => (Some(*segment), None),
            Self::File(key, _) => (None, Some(*key)),
        }
    }
}

fn is_known(met: &Met, now: Instant) -> bool {
    now.saturating_duration_since(met.last) < FORGOTTEN
}

fn is_fresh(tried: Instant, now: Instant) -> bool {
    now.saturating_duration_since(tried) < AGAIN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(segment: u64) -> (Region, Unread) {
        let segment = SegmentId(segment);
        (Region::Rows(segment), Unread::Rows(segment))
    }

    fn batch(segment: u64, position: u32) -> (Region, Unread) {
        let location = Location {
            segment: SegmentId(segment),
            position,
            bytes: 100,
        };
        (Region::of_batch(location), Unread::Batch(location))
    }

    /// The unreadable regions of a store, and whether something is a hole after this many seconds.
    fn lost() -> impl Fn((Region, Unread), u64) -> bool {
        let (lost, start) = (
            UnreadableRegions::new(Duration::from_secs(30), Clock::default()),
            Instant::now(),
        );
        move |what, seconds| {
            let now = start + Duration::from_secs(seconds);
            lost.is(what, Offset(7), &ReadError::WouldBlock, now)
        }
    }

    #[test]
    fn a_place_is_lost_when_it_could_not_be_read_for_a_while_and_anew_when_it_was_not_met_for_long() {
        let is_lost = lost();
        assert!(!is_lost(rows(1), 0));
        assert!(!is_lost(rows(1), 29));
        assert!(!is_lost(rows(2), 29), "each by itself");
        assert!(is_lost(rows(1), 30));
        assert!(is_lost(rows(1), 500));
        assert!(!is_lost(rows(1), 500 + FORGOTTEN.as_secs()));
    }

    #[test]
    fn what_lies_side_by_side_has_its_patience_together() {
        let is_lost = lost();
        assert!(!is_lost(batch(1, 100), 0));
        assert!(
            is_lost(batch(1, 200), 30),
            "the next message in the same bad place"
        );
        assert!(!is_lost(batch(1, 200 + STRETCH_BYTES), 30));
        assert!(!is_lost(batch(2, 100), 30));
    }

    #[test]
    fn more_places_than_can_be_remembered_are_errors_and_no_holes() {
        let is_lost = lost();
        let max = u64::try_from(PLACES_MAX).unwrap();
        assert!((0..=max).all(|segment| !is_lost(rows(segment), 0)));
        assert!(!is_lost(rows(max), 31), "nobody knows since when");
        assert!(!is_lost(rows(max), FORGOTTEN.as_secs()), "the old ones make room");
        assert!(is_lost(rows(max), FORGOTTEN.as_secs() + 30));
    }

    #[test]
    fn many_files_that_fail_at_once_are_a_device_that_is_away() {
        let is_lost = lost();
        let files = u64::try_from(FILES_MAX).unwrap() + 1;
        assert!((0..files).all(|segment| !is_lost(rows(segment), 0)));
        assert!((0..files).all(|segment| !is_lost(rows(segment), 40)));
        assert!(
            is_lost(rows(0), 40 + AGAIN.as_secs()),
            "the others fail no longer, as far as is known"
        );
        let is_lost = lost();
        for seconds in (0..=300).step_by(20) {
            assert!((0..files).all(|segment| is_lost(rows(segment), seconds) == (seconds == 300)));
        }
    }

    #[test]
    fn a_good_read_between_two_bad_ones_is_remembered() {
        let lost = UnreadableRegions::new(Duration::from_secs(30), Clock::default());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let is_lost = |what, seconds| lost.is(what, Offset(7), &ReadError::WouldBlock, at(seconds));
        assert!(!is_lost(rows(1), 0));
        assert!(!is_lost(rows(2), 0));
        lost.rows_were_read(SegmentId(1));
        assert!(!is_lost(rows(1), 60));
        assert!(is_lost(rows(2), 60));
        assert_eq!(lost.end_of(rows(2).1, at(61)), Some(Offset(7)));
        assert_eq!(lost.end_of(rows(2).1, at(120)), None, "once a minute it is tried");
        for segment in [1, 2] {
            lost.rows_were_read(SegmentId(segment));
        }
        assert!(lost.is_empty.load(Ordering::Acquire));
    }

    #[test]
    fn what_could_not_be_read_is_forgotten_by_time_also_if_nobody_reads_it_again() {
        let lost = UnreadableRegions::new(Duration::ZERO, Clock::default());
        for position in 0..1000 {
            let now = lost.now();
            assert!(lost.is(batch(1, position * 200), Offset(7), &ReadError::WouldBlock, now));
        }
        let (_, unread) = batch(1, 0);
        assert_eq!(lost.end_of(unread, lost.now()), Some(Offset(7)));
        lost.clock.pass(FORGOTTEN);
        lost.rows_were_read(SegmentId(9));
        assert!(lost.is_empty.load(Ordering::Acquire));
    }

    #[test]
    fn a_batch_that_can_be_read_is_forgotten_and_no_other() {
        let lost = UnreadableRegions::new(Duration::ZERO, Clock::default());
        let now = lost.now();
        for position in [0, 200, 400] {
            assert!(lost.is(batch(1, position), Offset(7), &ReadError::WouldBlock, now));
        }
        let row = |segment, position| {
            let (_, unread) = batch(segment, position);
            let Unread::Batch(location) = unread else {
                panic!("{unread:?}")
            };
            PlacedRow {
                queue: crate::ids::QueueKey(1),
                base_offset: Offset(1),
                count: 1,
                location,
                checksum: 0,
                lsn: Default::default(),
                term: Default::default(),
                time: Default::default(),
                flags: 0,
            }
        };
        lost.batches_were_read(&[row(0, 0), row(1, 200), row(2, 400)]);
        let known = [0, 200, 400].map(|position| lost.end_of(batch(1, position).1, now).is_some());
        assert_eq!(known, [true, false, true]);
        lost.batches_were_read(&[row(1, 400), row(1, 0)]);
        assert!(lost.is_empty.load(Ordering::Acquire));
    }
}
