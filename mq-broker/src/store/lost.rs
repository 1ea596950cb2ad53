//! What the disk cannot read, as a reader meets it: first an error, for a disk, a cable or a person may get over it; and
//! when it could not be read for long enough, a hole. Nobody is kept from the rest of a queue for ever. Rounds of
//! compaction are stricter: what they cannot read stays where it is.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mq_common::ids::Offset;

use super::found::hole;
use super::queue_files::View;
use super::{Access, FileKey, Found, Location, PlacedRow, ReadError, SegmentId, Store};

/// Places that are remembered. When there are more, new ones count as lost at once.
const PLACES_MAX: usize = 4096;
/// Not met for so long, a place is met anew.
const FORGOTTEN: Duration = Duration::from_secs(10 * 60);

/// What could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Batch(Location),
    /// The rows of a segment, and they could not be made again.
    Rows(SegmentId),
    /// From an offset on in a queue file.
    File(FileKey, Offset),
}

/// Since when which places could not be read.
#[derive(Debug)]
pub(super) struct Lost {
    patience: Duration,
    places: Mutex<HashMap<Place, Met>>,
}

#[derive(Debug, Clone, Copy)]
struct Met {
    first: Instant,
    last: Instant,
}

impl Lost {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            patience,
            places: Mutex::default(),
        }
    }

    /// Notes that a place could not be read; whether that has been so for long enough.
    fn is(&self, place: Place, error: &ReadError, now: Instant) -> bool {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |met: &Met| now.saturating_duration_since(met.last) < FORGOTTEN;
        if places.len() >= PLACES_MAX {
            places.retain(|_, met| is_known(met));
        }
        let known = places.get(&place).copied().filter(is_known);
        if known.is_none() && places.len() >= PLACES_MAX {
            return true;
        }
        if known.is_none() {
            let patience = self.patience;
            tracing::error!(%error, ?patience, "what a consumer asked for cannot be read; if that stays so, it is a hole; check the disk");
        }
        let first = known.map_or(now, |met| met.first);
        places.insert(place, Met { first, last: now });
        now.saturating_duration_since(first) >= self.patience
    }
}

impl Store {
    /// Reads the regions of rows for a reader. What comes before a place that cannot be read is answered without it.
    ///
    /// # Errors
    /// [`ReadError`]: nothing in front of it could be read.
    pub(super) fn read_around(&self, access: Access, rows: &[PlacedRow]) -> Result<Vec<Found>, ReadError> {
        match self.read(access, rows) {
            Err(error) if error.is_loss() => {}
            done => return done,
        }
        if !access.may_wait() {
            return Err(ReadError::Waits);
        }
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            match self.read(Access::WaitsSparing, std::slice::from_ref(row)) {
                Ok(one) => found.extend(one),
                Err(error)
                    if error.is_loss()
                        && self.lost.is(Place::Batch(row.location), &error, Instant::now()) =>
                {
                    found.push(hole(row.base_offset, row.end(), &error));
                }
                Err(_) if !found.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Whether an error means that the bytes of a queue file are gone: it was not rewritten or removed meanwhile.
    pub(super) fn is_lost(&self, view: &View, error: &ReadError) -> bool {
        let now = self.lock().index.files.get(view.queue, view.first);
        error.is_loss() && now.is_some_and(|now| now.key() == view.key())
    }

    /// Without the rows of a segment nobody knows where its batches lie: a hole of all that it had of a queue.
    ///
    /// # Errors
    /// The given one, if it may yet pass.
    pub(super) fn without_rows(
        &self,
        segment: SegmentId,
        (from, end): (Offset, Offset),
        error: ReadError,
    ) -> Result<Vec<Found>, ReadError> {
        let is_lost = match &error {
            ReadError::Footer { .. } => true,
            error => error.is_loss() && self.lost.is(Place::Rows(segment), error, Instant::now()),
        };
        if is_lost {
            Ok(vec![hole(from, end, &error)])
        } else {
            Err(error)
        }
    }

    /// Batches of a queue file for a reader, from `from` on, which lies in it.
    ///
    /// # Errors
    /// [`ReadError`]: nothing in front of what cannot be read was there, or the file is no longer the one to read.
    pub(super) fn read_file_around(
        &self,
        access: Access,
        view: &View,
        (from, end): (Offset, Offset),
        bytes_max: usize,
    ) -> Result<Vec<Found>, ReadError> {
        let error = match self.files.read_by(access, view, from, end, bytes_max) {
            Err(error) if error.is_loss() => error,
            done => return done,
        };
        if !access.may_wait() {
            return Err(ReadError::Waits);
        }
        if !self.is_lost(view, &error) {
            return Err(error);
        }
        let around = self.files.read_around(view, from, end, bytes_max);
        let mut found = match around {
            Ok(found) => found,
            Err(error) if error.is_loss() => vec![hole(from, end.min(view.segment.end), &error)],
            Err(error) => return Err(error),
        };
        let unread = found.iter().position(Found::is_damage);
        let Some(at) = unread else { return Ok(found) };
        let first = found.get(at).map_or(from, |found| match found {
            Found::Batch { row, .. } => row.base_offset,
            Found::Hole { from, .. } => *from,
        });
        if self
            .lost
            .is(Place::File(view.key(), first), &error, Instant::now())
        {
            return Ok(found);
        }
        found.truncate(at);
        if found.is_empty() { Err(error) } else { Ok(found) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(segment: u64) -> Place {
        Place::Rows(SegmentId(segment))
    }

    fn error() -> ReadError {
        ReadError::Waits
    }

    #[test]
    fn a_place_is_lost_when_it_could_not_be_read_for_a_while_and_anew_when_it_was_not_met_for_long() {
        let lost = Lost::new(Duration::from_secs(30));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!lost.is(place(1), &error(), at(0)));
        assert!(!lost.is(place(1), &error(), at(29)));
        assert!(!lost.is(place(2), &error(), at(29)), "each by itself");
        assert!(lost.is(place(1), &error(), at(30)));
        assert!(lost.is(place(1), &error(), at(500)));
        assert!(!lost.is(place(1), &error(), at(500) + FORGOTTEN));
    }

    #[test]
    fn more_places_than_can_be_remembered_keep_nobody_waiting() {
        let lost = Lost::new(Duration::from_secs(30));
        let now = Instant::now();
        let max = u64::try_from(PLACES_MAX).unwrap();
        assert!((0..max).all(|segment| !lost.is(place(segment), &error(), now)));
        assert!((max..max + 10).all(|segment| lost.is(place(segment), &error(), now)));
        assert_eq!(lost.places.lock().unwrap().len(), PLACES_MAX);
        assert!(
            !lost.is(place(max), &error(), now + FORGOTTEN),
            "the old ones make room"
        );
    }
}
