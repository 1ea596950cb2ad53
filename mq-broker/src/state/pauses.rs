//! Long periods without an entry. Whether the broker was down that long or its clock was set forward cannot
//! be known, so towards the age of a message such a period counts as one day at most: a clock that jumps by
//! years deletes nothing. Pure.

use mq_common::ids::Timestamp;

/// A period without an entry counts as at most this, milliseconds. A running broker writes entries more
/// often.
const COUNTED_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// Pauses remembered, the latest ones; one that is forgotten counts in full.
const PAUSES_MAX: usize = 32;

/// A long period without an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// Time of the last entry before it.
    pub from: Timestamp,
    /// Time of the first entry after it.
    pub to: Timestamp,
}

/// The pauses of a log, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pauses(Vec<Pause>);

impl Pauses {
    /// Takes saved pauses; `None` if no log can have had them.
    pub(super) fn load(pauses: Vec<Pause>) -> Option<Self> {
        let possible = pauses.len() <= PAUSES_MAX
            && pauses.iter().all(|pause| is_long(pause.from, pause.to))
            && pauses.is_sorted_by(|one, next| one.to <= next.from);
        possible.then_some(Self(pauses))
    }

    /// Notes that an entry with time `to` follows one with time `from`.
    pub(super) fn note(&mut self, from: Timestamp, to: Timestamp) {
        if !is_long(from, to) {
            return;
        }
        if self.0.len() == PAUSES_MAX {
            self.0.remove(0);
        }
        self.0.push(Pause { from, to });
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Pause] {
        &self.0
    }

    /// Messages from before this time are older than `age_ms` at `now`; `None` = none can be.
    #[must_use]
    pub fn cutoff(&self, now: Timestamp, age_ms: u64) -> Option<Timestamp> {
        let (mut left, mut at) = (age_ms, now.0);
        for pause in self.0.iter().rev() {
            let since = at.saturating_sub(pause.to.0);
            if left <= since {
                break;
            }
            left -= since;
            if left < COUNTED_MS_MAX {
                // All messages before the pause are older, and the first one after it is not.
                return Some(Timestamp(pause.from.0 + 1));
            }
            left -= COUNTED_MS_MAX;
            at = pause.from.0;
        }
        at.checked_sub(left).map(Timestamp)
    }

    /// When a message from `sent` becomes older than `age_ms`: never earlier, but later if further pauses
    /// come.
    #[must_use]
    pub fn due(&self, sent: Timestamp, age_ms: u64) -> Timestamp {
        let within = self.0.iter().rev().take_while(|pause| sent <= pause.from);
        let uncounted = within.map(|pause| pause.to.0 - pause.from.0 - COUNTED_MS_MAX);
        let lasts = uncounted.fold(age_ms, u64::saturating_add);
        Timestamp(sent.0.saturating_add(lasts).saturating_add(1))
    }
}

fn is_long(from: Timestamp, to: Timestamp) -> bool {
    // Before the first entry there was none.
    from.0 > 0 && to.0.saturating_sub(from.0) > COUNTED_MS_MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = COUNTED_MS_MAX;
    const YEAR: u64 = 365 * DAY;

    #[test]
    fn s16_clock_that_jumps_forward_makes_nothing_old() {
        let mut pauses = Pauses::default();
        let (before, after) = (Timestamp(100 * DAY), Timestamp(100 * DAY + 10 * YEAR));
        pauses.note(before, after);
        // Right after the jump, a message from right before it is a day old.
        assert_eq!(pauses.cutoff(after, 7 * DAY), Some(Timestamp(before.0 - 6 * DAY)));
        // Six days later it is seven days old, and too old a moment later.
        let later = |days, ms| Timestamp(after.0 + days * DAY + ms);
        assert_eq!(pauses.cutoff(later(6, 0), 7 * DAY), Some(before));
        assert_eq!(pauses.cutoff(later(6, 1), 7 * DAY), Some(Timestamp(before.0 + 1)));
        // Much later only messages from after the jump are young enough.
        assert_eq!(pauses.cutoff(later(20, 0), 7 * DAY), Some(later(13, 0)));
    }

    #[test]
    fn short_times_without_an_entry_count_in_full() {
        let mut pauses = Pauses::default();
        pauses.note(Timestamp(1), Timestamp(1 + DAY));
        pauses.note(Timestamp(0), Timestamp(YEAR));
        assert_eq!(pauses.all(), []);
        assert_eq!(
            pauses.cutoff(Timestamp(10 * DAY), 3 * DAY),
            Some(Timestamp(7 * DAY))
        );
        assert_eq!(pauses.cutoff(Timestamp(DAY), 3 * DAY), None);
    }

    /// The age of a message of time `sent`, as a person would add it up.
    fn age(pauses: &Pauses, sent: u64, now: u64) -> u64 {
        let within = pauses.all().iter().filter(|pause| sent <= pause.from.0);
        let uncounted: u64 = within.map(|pause| pause.to.0 - pause.from.0 - DAY).sum();
        now - sent - uncounted
    }

    proptest! {
        #[test]
        fn what_lies_before_the_cutoff_is_what_is_older(
            steps in prop::collection::vec(1..4 * DAY, 1..40),
            age_ms in 0..20 * DAY,
        ) {
            let mut times = vec![5 * DAY];
            let mut pauses = Pauses::default();
            for step in steps {
                let last = *times.last().unwrap();
                pauses.note(Timestamp(last), Timestamp(last + step));
                times.push(last + step);
            }
            prop_assert!(Pauses::load(pauses.all().to_vec()).is_some());
            let now = *times.last().unwrap();
            let cutoff = pauses.cutoff(Timestamp(now), age_ms).map_or(0, |cutoff| cutoff.0);
            for sent in times {
                let is_older = age(&pauses, sent, now) > age_ms;
                prop_assert_eq!(sent < cutoff, is_older, "sent {}", sent);
                prop_assert_eq!(pauses.due(Timestamp(sent), age_ms).0 <= now, is_older, "sent {}", sent);
            }
        }
    }
}
