//! Unreadable regions as readers see them: first an error, because the fault may be transient; and after
//! `fetch.unreadable_ms`, a hole, so that no reader is kept from the rest of a queue for ever. Compaction
//! rounds are stricter: what they cannot read stays where it is.
//!
//! Neighbouring bytes share one time-out, and a hole is not requested from the disk again at each fetch. When
//! many files fail at once, the device is probably away, rather than that many places bad: then the time-out
//! is longer.

use std::collections::{HashMap, HashSet};
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
/// Bytes of a file that share one time-out.
const STRETCH_BYTES: u32 = 1024 * 1024;
/// When more files than this failed within [`AGAIN`], the fault is the device's.
const FILES_MAX: usize = 4;
/// Then the time-out is longer by this factor.
const DEVICE_PATIENCE: u32 = 10;

/// What could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Unread {
    Batch(Location),
    /// The rows of a segment, which could not be rebuilt either.
    Rows(SegmentId),
    /// A queue file from an offset on.
    File(FileKey, Offset),
}

/// What shares one time-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    places: HashMap<Region, Met>,
    /// The current holes: the last attempt at each, and the offset after it.
    holes: HashMap<Unread, (Instant, Offset)>,
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
                memory.places.retain(|_, met| is_known(met, now));
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
                memory.holes.retain(|_, (tried, _)| is_fresh(*tried, now));
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

    /// Notes that something can be read again, if it is among these.
    fn were_read(&self, is_read: impl Fn(&Unread) -> bool) {
        if self.is_empty.load(Ordering::Acquire) {
            return;
        }
        let mut memory = self.memory();
        memory.places.retain(|_, met| !is_read(&met.unread));
        memory.holes.retain(|unread, _| !is_read(unread));
        self.is_empty.store(
            memory.places.is_empty() && memory.holes.is_empty(),
            Ordering::Release,
        );
    }

    /// Notes that the rows of a segment can be read.
    pub(in crate::store) fn rows_were_read(&self, segment: SegmentId) {
        self.were_read(|unread| *unread == Unread::Rows(segment));
    }

    pub(super) fn batches_were_read(&self, rows: &[PlacedRow]) {
        self.were_read(|unread| rows.iter().any(|row| Unread::Batch(row.location) == *unread));
    }

    pub(super) fn file_was_read(&self, view: &View, found: &[Found]) {
        let reads = |offset: Offset| {
            found.iter().any(|found| match found {
                Found::Batch { row, .. } => row.base_offset <= offset && offset < row.end(),
                Found::Hole { .. } => false,
            })
        };
        self.were_read(
            |unread| matches!(unread, Unread::File(key, offset) if *key == view.key() && reads(*offset)),
        );
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }
}

impl Memory {
    fn patience(&self, patience: Duration, now: Instant) -> Duration {
        let failing = self.places.iter().filter(|(_, met)| is_fresh(met.last, now));
        let files: HashSet<_> = failing.map(|(place, _)| place.file()).collect();
        if files.len() > FILES_MAX {
            patience.saturating_mul(DEVICE_PATIENCE)
        } else {
            patience
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
}
