//! Which rows of a queue still exist while a round copies them. Retention does not wait for a round: a queue
//! may be trimmed, and the segments below its start freed, including one that holds only half messages placed
//! by rows of a later segment. Nothing else may be missing: what is left out is below the start, or is named
//! as a hole.

use mq_common::ids::Offset;

use super::{Round, Rounds};
use crate::ids::QueueKey;
use crate::store::found::hole;
use crate::store::{Access, Found, PlacedRow, ReadError};

impl Rounds {
    /// Notes the current starts of the round's queues. Called before anything is freed because of them.
    pub(in crate::store) fn note_starts(&mut self, ends: impl Fn(QueueKey) -> Option<(Offset, Offset)>) {
        if self.is_running() {
            for (queue, start) in &mut self.starts {
                *start = ends(*queue).map(|(start, _)| start);
            }
        }
    }

    /// Whether anything below this offset of the queue is still needed.
    fn needs_below(&self, queue: QueueKey, end: Offset) -> bool {
        // All of an unknown queue is.
        let start = self.starts.get(&queue).copied().unwrap_or(Some(Offset(0)));
        start.is_some_and(|start| start < end)
    }
}

impl Round<'_> {
    /// Reads rows of one queue, without those whose segment was freed meanwhile.
    ///
    /// # Errors
    /// [`ReadError::Freed`]: a segment was freed that holds needed rows.
    pub(super) fn read_present(
        &self,
        queue: QueueKey,
        mut rows: Vec<PlacedRow>,
    ) -> Result<Vec<Found>, ReadError> {
        loop {
            let freed = match self.store.read(Access::BlockingNoPrefetch, &rows) {
                Err(ReadError::Freed { segment }) => segment,
                found => return found,
            };
            let gone = rows.iter().filter(|row| row.location.segment == freed);
            // With no progress at all, the same rows would be read for ever.
            let Some(end) = gone.map(PlacedRow::end).max() else {
                return Err(ReadError::Freed { segment: freed });
            };
            if self.store.rounds().needs_below(queue, end) {
                return Err(ReadError::Freed { segment: freed });
            }
            rows.retain(|row| row.location.segment != freed);
        }
    }

    /// Adds a hole where needed offsets are missing between one row and the next: a file that began after
    /// them would not mention them. `next` is where the queue continues.
    pub(super) fn without_jumps(&self, queue: QueueKey, next: &mut Offset, found: Vec<Found>) -> Vec<Found> {
        let mut all = Vec::with_capacity(found.len());
        for found in found {
            let from = match &found {
                Found::Batch { row, .. } => row.base_offset,
                Found::Hole { from, .. } => *from,
            };
            if *next < from && self.store.rounds().needs_below(queue, from) {
                all.push(hole(*next, from, &"the journal's index passes over them"));
            }
            *next = found.end();
            all.push(found);
        }
        all
    }
}
