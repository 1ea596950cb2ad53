//! The search for a time in queue files by their marks: few of these are read instead of many batches. The
//! result relies only on intact batches at the positions of marks.

use mq_common::ids::{Offset, Timestamp};

use super::marks::{INTERVAL_BYTES, Mark, Marks};
use super::walk::Walk;
use super::{Files, View};

impl Files {
    /// Narrows the search for a time in a queue's segments, given in order: an offset before which everything
    /// was appended before the time, and one from which on everything was appended at it or later; as far as
    /// these are known. Reads files.
    pub(in super::super) fn narrow(
        &self,
        segments: &[View],
        time: Timestamp,
    ) -> (Option<Offset>, Option<Offset>) {
        // A segment without any message left says nothing about time.
        let segments: Vec<&View> = segments.iter().filter(|view| view.segment.bytes > 0).collect();
        let (mut from, mut to) = (0, segments.len());
        let mut high = None;
        while from < to {
            let middle = usize::midpoint(from, to);
            let Some(first) = self.first_mark(segments[middle]) else {
                return (None, None);
            };
            if first.time < time {
                from = middle + 1;
            } else {
                high = Some(first.offset);
                to = middle;
            }
        }
        // In the last segment that begins before the time: the last mark before it, and the next one.
        let Some(view) = from.checked_sub(1).and_then(|last| segments.get(last)) else {
            return (None, high);
        };
        let Some(marks) = self.marks_of(view) else {
            return (None, high);
        };
        let behind = marks.all().partition_point(|mark| mark.time < time);
        let at = |index: usize| {
            marks
                .all()
                .get(index)
                .filter(|mark| self.holds(view, &marks, mark))
        };
        let low = behind.checked_sub(1).and_then(at).map(|mark| mark.offset);
        (low, at(behind).map(|mark| mark.offset).or(high))
    }

    fn marks_of(&self, view: &View) -> Option<std::sync::Arc<Marks>> {
        let file = self.file(view).ok()?;
        self.marks(view, &*file).ok()
    }

    fn first_mark(&self, view: &View) -> Option<Mark> {
        let marks = self.marks_of(view)?;
        let first = marks.all().first()?;
        self.holds(view, &marks, first).then_some(*first)
    }

    fn holds(&self, view: &View, marks: &Marks, mark: &Mark) -> bool {
        let Ok(file) = self.file(view) else { return false };
        let mut walk = Walk::new(&*file, view, marks, INTERVAL_BYTES as usize);
        let header = walk.header(mark.position, view.first);
        matches!(header, Ok(Some(header)) if header.stamp.base_offset == mark.offset && header.stamp.append_time == mark.time)
    }
}
