//! So many places under each key: taken one by one and given back. Nothing is kept of a key none of whose places is taken.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module. Locked for the arithmetic of one place.
#[derive(Debug)]
pub(crate) struct KeyedLimit {
    max: usize,
    taken: Mutex<HashMap<Box<str>, usize>>,
}

impl KeyedLimit {
    /// `max` under each key.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            taken: Mutex::default(),
        }
    }

    pub(crate) const fn max(&self) -> usize {
        self.max
    }

    /// Takes a place, unless all under this key are taken. Whoever got one owes a [`KeyedLimit::leave`] with the same key.
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

    /// Gives a place back.
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

    /// Keys with a place taken.
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
