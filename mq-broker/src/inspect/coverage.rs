//! Whether some file holds every offset that the queues have according to the checkpoint, from each queue's
//! start to its end. The content of a file is not checked here; its damage is reported with the file.

use std::collections::{BTreeMap, BTreeSet};

use mq_common::ids::Offset;

use super::Error;
use crate::checkpoint::Saved;
use crate::ids::QueueKey;
use crate::log::SegmentId;
use crate::store::PlacedRow;
use crate::store::segment_index::footer::FooterRows;

/// The part of a queue that a sealed segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) queue: QueueKey,
    pub(super) segment: SegmentId,
    pub(super) first: Offset,
    /// The offset after the last, if nothing is missing in between.
    pub(super) end: Offset,
}

/// Offsets of a queue that nothing holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) topic: String,
    pub(super) queue: u32,
    pub(super) first: Offset,
    pub(super) end: Offset,
    /// The segment that held them according to the checkpoint.
    pub(super) segment: Option<SegmentId>,
}

/// The sealed segments' parts according to the checkpoint, in order: a queue's part in a segment ends where
/// its part in the next one begins.
pub(super) fn parts(saved: &Saved) -> Vec<Part> {
    let mut firsts: BTreeMap<QueueKey, Vec<(SegmentId, Offset)>> = BTreeMap::new();
    for row in &saved.store.segments {
        let of_queue = firsts.entry(row.queue).or_default();
        of_queue.push((row.segment, row.first_offset));
    }
    let mut parts = Vec::new();
    for queue in &saved.rows.queues {
        let mut segments = firsts.remove(&queue.key).unwrap_or_default();
        segments.sort_unstable();
        let nexts = segments.iter().skip(1).map(|(_, first)| *first);
        let ends = nexts.chain([queue.end]);
        parts.extend(segments.iter().zip(ends).map(|((segment, first), end)| Part {
            queue: queue.key,
            segment: *segment,
            first: *first,
            end,
        }));
    }
    parts
}

/// Finds offsets that no file holds. `is_there` tells whether a segment has a file; `rows` reads the rows of
/// its footer, and `None` from it means that they are unknown and the checkpoint's rows of the segment are
/// taken as true.
///
/// # Errors
/// Those of `rows`.
pub(super) fn missing(
    saved: &Saved,
    is_there: impl Fn(SegmentId) -> bool,
    mut rows: impl FnMut(SegmentId) -> Result<Option<FooterRows>, Error>,
) -> Result<Vec<Missing>, Error> {
    let mut held = Held::default();
    for row in saved.store.files.iter().filter(|row| !row.is_gone) {
        held.add(row.queue, row.first, row.segment.end);
    }
    let is_whole = |row: &PlacedRow| is_there(row.location.segment);
    for (_, row) in saved.store.placed.iter().filter(|(_, row)| is_whole(row)) {
        held.add(row.queue, row.base_offset, row.end());
    }
    let parts = parts(saved);
    let mut by_segment: BTreeMap<SegmentId, Vec<Part>> = BTreeMap::new();
    for part in parts.iter().filter(|part| is_there(part.segment)) {
        by_segment.entry(part.segment).or_default().push(*part);
    }
    for (segment, parts) in by_segment {
        let Some(rows) = rows(segment)? else {
            for part in parts {
                held.add(part.queue, part.first, part.end);
            }
            continue;
        };
        let queues: BTreeSet<QueueKey> = parts.iter().map(|part| part.queue).collect();
        let rows = (0..rows.len()).filter_map(|index| rows.get(index));
        for row in rows.filter(|row| queues.contains(&row.queue) && is_whole(row)) {
            held.add(row.queue, row.base_offset, row.end());
        }
    }
    let mut missing = Vec::new();
    for queue in &saved.rows.queues {
        for (first, end) in held.gaps(queue.key, queue.start, queue.end) {
            let had = |part: &&Part| part.queue == queue.key && part.first < end && first < part.end;
            let segment = parts.iter().filter(|part| !is_there(part.segment)).find(had);
            missing.push(Missing {
                topic: queue.topic.to_string(),
                queue: queue.number.0,
                first,
                end,
                segment: segment.map(|part| part.segment),
            });
        }
    }
    Ok(missing)
}

/// Ranges of offsets of each queue.
#[derive(Debug, Default)]
struct Held(BTreeMap<QueueKey, Vec<(Offset, Offset)>>);

impl Held {
    fn add(&mut self, queue: QueueKey, first: Offset, end: Offset) {
        let ranges = self.0.entry(queue).or_default();
        match ranges.last_mut() {
            // Rows come in order.
            Some(last) if last.1 == first => last.1 = end,
            _ => ranges.push((first, end)),
        }
    }

    /// The offsets between `start` and `end` that are in no range.
    fn gaps(&mut self, queue: QueueKey, start: Offset, end: Offset) -> Vec<(Offset, Offset)> {
        let mut ranges = self.0.remove(&queue).unwrap_or_default();
        ranges.sort_unstable();
        let (mut next, mut gaps) = (start, Vec::new());
        for (first, after) in ranges {
            if next < first.min(end) {
                gaps.push((next, first.min(end)));
            }
            next = next.max(after);
        }
        if next < end {
            gaps.push((next, end));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_no_range_holds() {
        let gaps = |ranges: &[(u64, u64)]| {
            let mut held = Held::default();
            for (first, end) in ranges {
                held.add(QueueKey(1), Offset(*first), Offset(*end));
            }
            let gaps = held.gaps(QueueKey(1), Offset(10), Offset(20));
            gaps.iter()
                .map(|(first, end)| (first.0, end.0))
                .collect::<Vec<_>>()
        };
        assert_eq!(gaps(&[]), [(10, 20)]);
        assert_eq!(gaps(&[(0, 5), (5, 30)]), []);
        assert_eq!(gaps(&[(15, 20), (10, 15)]), [], "in any order");
        assert_eq!(gaps(&[(12, 14), (16, 18)]), [(10, 12), (14, 16), (18, 20)]);
        assert_eq!(
            gaps(&[(10, 17), (11, 12), (16, 19)]),
            [(19, 20)],
            "they may overlap"
        );
        assert_eq!(gaps(&[(0, 10), (20, 30)]), [(10, 20)]);
        assert_eq!(gaps(&[(25, 30)]), [(10, 20)]);
    }
}
