//! What a round could not do is left alone for a while: the disk may read it later, or have more time for it,
//! and until then it must not keep the rest from being moved.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// It is tried again after this time; after each further failure the wait doubles, ..
const WAIT: Duration = Duration::from_secs(10 * 60);
/// .. up to this time.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Things that could not be read, with the time of the next attempt.
#[derive(Debug)]
pub(super) struct Stuck<K>(BTreeMap<K, (Instant, Duration)>);

impl<K> Default for Stuck<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Stuck<K> {
    /// It could not be done.
    pub(super) fn insert(&mut self, key: K) {
        self.insert_at(key, Instant::now());
    }

    /// Whether it is left alone now.
    pub(super) fn contains(&self, key: &K) -> bool {
        !self.0.is_empty() && self.contains_at(key, Instant::now())
    }

    /// It is all right by now: should it fail again, the first wait is a short one.
    pub(super) fn remove(&mut self, key: &K) {
        self.0.remove(key);
    }

    fn insert_at(&mut self, key: K, now: Instant) {
        let wait = self
            .0
            .get(&key)
            .map_or(WAIT, |(_, wait)| (*wait * 2).min(WAIT_MAX));
        self.0.insert(key, (now, wait));
    }

    fn contains_at(&self, key: &K, now: Instant) -> bool {
        let since = self.0.get(key);
        since.is_some_and(|(since, wait)| now.saturating_duration_since(*since) < *wait)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As if everything had waited long enough.
    #[cfg(test)]
    pub(super) fn wait_is_over(&mut self) {
        for (_, wait) in self.0.values_mut() {
            *wait = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_tried_again_later_and_ever_later_but_at_least_once_a_day() {
        let (mut stuck, mut now) = (Stuck::default(), Instant::now());
        assert!(!stuck.contains_at(&1, now));
        let mut waits = Vec::new();
        for _ in 0..12 {
            stuck.insert_at(1, now);
            let wait = stuck.0[&1].1;
            assert!(stuck.contains_at(&1, now + wait - Duration::from_secs(1)));
            now += wait;
            assert!(!stuck.contains_at(&1, now));
            assert!(!stuck.contains_at(&2, now), "others are not concerned");
            waits.push(wait);
        }
        assert_eq!(waits[..2], [WAIT, WAIT * 2]);
        assert_eq!(waits[11], WAIT_MAX);
    }
}
