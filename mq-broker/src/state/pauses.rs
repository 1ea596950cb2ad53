//! Long times without an entry. Nobody can tell whether the broker was away so long or its clock was set forward, so for
//! the age of a message such a time counts as one day at most: a clock that jumps by years deletes nothing. Pure.

use mq_common::ids::Timestamp;

/// A time without an entry counts as so much at most, milliseconds. A broker that runs writes entries more often.
const COUNTED_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// So many are remembered, the latest ones; one that is forgotten counts in full.
const PAUSES_MAX: usize = 32;

/// A long time without an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// Time of the last entry before it.
    pub from: Timestamp,
    /// Time of the first entry behind it.
    pub to: Timestamp,
}

/// The pauses of a log, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pauses(Vec<Pause>);

impl Pauses {
    /// As they were kept; `None` if no log can have had them.
    pub(super) fn load(pauses: Vec<Pause>) -> Option<Self> {
        let possible = pauses.len() <= PAUSES_MAX
            && pauses.iter().all(|pause| is_long(pause.from, pause.to))
            && pauses.is_sorted_by(|one, next| one.to <= next.from);
        possible.then_some(Self(pauses))
    }

    /// An entry follows on another one.
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
                // All before it are older, and the first one behind it is not.
                return Some(Timestamp(pause.from.0 + 1));
            }
            left -= COUNTED_MS_MAX;
            at = pause.from.0;
        }
        at.checked_sub(left).map(Timestamp)
    }

    /// From when on a message from `sent` is older than `age_ms`. It is not earlier, but later if pauses come meanwhile.
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
        // Right behind the jump a message from right before it is a day old.
        assert_eq!(pauses.cutoff(after, 7 * DAY), Some(Timestamp(before.0 - 6 * DAY)));
        // Six days later it is seven days old, and goes at the next moment.
        let later = |days, ms| Timestamp(after.0 + days * DAY + ms);
        assert_eq!(pauses.cutoff(later(6, 0), 7 * DAY), Some(before));
        assert_eq!(pauses.cutoff(later(6, 1), 7 * DAY), Some(Timestamp(before.0 + 1)));
        // Much later only messages from behind the jump are left.
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
