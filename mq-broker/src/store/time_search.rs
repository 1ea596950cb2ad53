//! Binary search for a time in a queue, in which append times never decrease.
//!
//! The one invariant: nothing is skipped that may have been appended at or after the time. Damaged or
//! compacted offsets have no time of their own; what comes after them decides, and if that is late enough,
//! the hole belongs to the result.

use mq_common::ids::{Offset, Timestamp};

/// What is at an offset, as far as a search needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Its first offset.
    pub from: Offset,
    /// The offset after its last one.
    pub end: Offset,
    /// When it was appended; none if it is a hole.
    pub time: Option<Timestamp>,
}

/// The end of the last batch in `start..end` that was appended before `time`; `start` if there is none.
///
/// # Errors
/// The error of `look`, which returns the stretch that contains an offset of the range.
pub(crate) fn first_at<E>(
    start: Offset,
    end: Offset,
    time: Timestamp,
    mut look: impl FnMut(Offset) -> Result<Option<Stretch>, E>,
) -> Result<Offset, E> {
    let (mut low, mut high) = (start, end);
    while low < high {
        let middle = Offset(low.0 + (high.0 - low.0) / 2);
        let Some(first) = look(middle)? else { break };
        let mut last = first;
        while last.time.is_none() && last.end < high {
            match look(last.end)? {
                Some(behind) => last = behind,
                None => break,
            }
        }
        match last.time {
            Some(found) if found < time => low = last.end,
            // Late enough, or damage up to where it is known to be late enough.
            _ => high = first.from.max(low),
        }
    }
    Ok(low.min(end))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// A queue of stretches, each given by its length, the time since the previous one, and whether it is
    /// damaged.
    fn queue(parts: &[(u64, u64, bool)]) -> Vec<Stretch> {
        let (mut from, mut time) = (Offset(7), Timestamp(100));
        let stretches = parts.iter().map(|(length, later, damaged)| {
            let end = Offset(from.0 + length);
            time.0 += later;
            let stretch = Stretch {
                from,
                end,
                time: (!damaged).then_some(time),
            };
            from = end;
            stretch
        });
        stretches.collect()
    }

    fn search(queue: &[Stretch], time: u64) -> Offset {
        let start = queue.first().map_or(Offset(7), |first| first.from);
        let end = queue.last().map_or(start, |last| last.end);
        let look = |offset| {
            let found = queue
                .iter()
                .find(|stretch| stretch.from <= offset && offset < stretch.end);
            Ok::<_, Infallible>(found.copied())
        };
        first_at(start, end, Timestamp(time), look).unwrap()
    }

    #[test]
    fn damage_in_the_middle_hides_no_earlier_match() {
        let queue = queue(&[(1, 0, false), (1, 10, false), (1, 0, true), (2, 10, false)]);
        assert_eq!(search(&queue, 105), Offset(8));
        assert_eq!(search(&queue, 100), Offset(7));
        assert_eq!(search(&queue, 115), Offset(9), "the damage may be as late");
        assert_eq!(search(&queue, 121), Offset(12));
    }

    proptest! {
        #[test]
        fn search_ends_behind_the_last_batch_before_the_time(
            parts in prop::collection::vec((1..5_u64, 0..4_u64, prop::bool::weighted(0.3)), 0..40),
            time in 95..200_u64,
        ) {
            let queue = queue(&parts);
            let before = queue.iter().rfind(|stretch| stretch.time.is_some_and(|found| found.0 < time));
            let wanted = before.map_or(Offset(7), |stretch| stretch.end);
            prop_assert_eq!(search(&queue, time), wanted);
        }
    }
}
