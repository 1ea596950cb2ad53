//! A limit per key: slots are taken and given back one by one. Nothing is stored for a key without a taken
//! slot.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// At most `max` slots per key. The lock is held for the arithmetic of one slot.
#[derive(Debug)]
pub(crate) struct KeyedLimit {
    max: usize,
    taken: Mutex<HashMap<Box<str>, usize>>,
}

impl KeyedLimit {
    /// `max` slots for each key.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            taken: Mutex::default(),
        }
    }

    pub(crate) const fn max(&self) -> usize {
        self.max
    }

    /// Takes a slot, unless all of this key are taken. Each success must be followed by one
    /// [`KeyedLimit::leave`] with the same key.
    pub(crate) fn enter(&self, key: &str) -> bool {
        let mut taken = self.taken();
        if let Some(count) = taken.get_mut(key) {
            let free = *count < self.max;
            *count += usize::from(free);
            return free;
        }
        let free = self.max > 0;
        if free {
            taken.insert(Box::from(key), 1);
        }
        free
    }

    /// Gives a slot back.
    pub(crate) fn leave(&self, key: &str) {
        let mut taken = self.taken();
        if let Some(count) = taken.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(key);
            }
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Box<str>, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keys with a slot taken.
    #[cfg(test)]
    pub(crate) fn keys(&self) -> usize {
        self.taken().len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_are_counted_by_key_and_nothing_is_left_behind() {
        let places = KeyedLimit::new(2);
        assert!(places.enter("a") && places.enter("a") && !places.enter("a"));
        assert!(places.enter("b"), "another key has places of its own");
        places.leave("a");
        assert!(places.enter("a"));
        for key in ["a", "a", "b"] {
            places.leave(key);
        }
        assert_eq!(places.keys(), 0);
        assert!(!KeyedLimit::new(0).enter("a"));
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_and_never_less(steps in prop::collection::vec((0_usize..3, any::<bool>()), 0..200)) {
            let (places, keys) = (KeyedLimit::new(3), ["a", "b", "c"]);
            let mut taken = [0_usize; 3];
            for (key, enter) in steps {
                if enter {
                    prop_assert_eq!(places.enter(keys[key]), taken[key] < 3);
                    taken[key] = (taken[key] + 1).min(3);
                } else if taken[key] > 0 {
                    places.leave(keys[key]);
                    taken[key] -= 1;
                }
            }
            prop_assert_eq!(places.keys(), taken.iter().filter(|count| **count > 0).count());
        }
    }
}
