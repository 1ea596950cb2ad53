//! A cache of bounded size in bytes, evicted by second chance (Corbató 1968): the oldest entry is evicted
//! unless it was used since, in which case it counts as new.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// A cache of bounded size.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    bytes_max: usize,
    bytes: usize,
    kept: HashMap<K, Kept<V>>,
    order: VecDeque<K>,
}

#[derive(Debug)]
struct Kept<V> {
    value: V,
    bytes: usize,
    is_used: bool,
}

impl<K: Copy + Eq + Hash, V: Clone> Cache<K, V> {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            kept: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    pub(super) fn get(&mut self, key: K) -> Option<V> {
        let kept = self.kept.get_mut(&key)?;
        kept.is_used = true;
        Some(kept.value.clone())
    }

    /// Adds an entry, however large it is, and evicts others to make room for it.
    pub(super) fn put(&mut self, key: K, value: V, bytes: usize) {
        let kept = Kept {
            value,
            bytes,
            is_used: false,
        };
        self.bytes += bytes;
        match self.kept.insert(key, kept) {
            Some(before) => self.bytes -= before.bytes,
            None => self.order.push_back(key),
        }
        while self.bytes > self.bytes_max && self.order.len() > 1 {
            let Some(first) = self.order.pop_front() else {
                return;
            };
            match self.kept.get_mut(&first) {
                Some(kept) if kept.is_used || first == key => {
                    kept.is_used = false;
                    self.order.push_back(first);
                }
                _ => self.drop_kept(first),
            }
        }
    }

    /// Keeps only these.
    pub(super) fn retain(&mut self, is_wanted: impl Fn(&K) -> bool) {
        let (wanted, gone) = self.order.drain(..).partition(is_wanted);
        self.order = wanted;
        for key in gone {
            self.drop_kept(key);
        }
    }

    fn drop_kept(&mut self, key: K) {
        if let Some(kept) = self.kept.remove(&key) {
            self.bytes -= kept.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_asked_for_stays_longer_and_what_is_too_large_is_alone() {
        let mut cache = Cache::new(30);
        for key in 0..3 {
            cache.put(key, key, 10);
        }
        assert_eq!(cache.get(0), Some(0));
        cache.put(3, 3, 10);
        assert_eq!(
            [0, 1, 2, 3].map(|key| cache.get(key)),
            [Some(0), None, Some(2), Some(3)]
        );
        cache.put(4, 4, 100);
        assert_eq!(
            [0, 2, 3, 4].map(|key| cache.get(key)),
            [None, None, None, Some(4)]
        );
    }

    proptest! {
        #[test]
        fn it_never_holds_more_than_it_may_and_answers_what_was_put_in_last(
            acts in proptest::collection::vec((0..3_u8, 0..8_u32, 0..40_usize), 1..200),
        ) {
            let mut cache = Cache::new(100);
            let mut last = HashMap::new();
            for (at, (act, key, bytes)) in acts.into_iter().enumerate() {
                match act {
                    0 => {
                        cache.put(key, at, bytes);
                        last.insert(key, at);
                        prop_assert_eq!(cache.get(key), Some(at));
                    }
                    1 => {
                        if let Some(found) = cache.get(key) {
                            prop_assert_eq!(Some(&found), last.get(&key));
                        }
                    }
                    _ => {
                        cache.retain(|kept| *kept != key);
                        prop_assert_eq!(cache.get(key), None);
                    }
                }
                let bytes: usize = cache.kept.values().map(|kept| kept.bytes).sum();
                prop_assert_eq!(bytes, cache.bytes);
                prop_assert!(bytes <= 100);
                prop_assert_eq!(cache.kept.len(), cache.order.len());
            }
        }
    }
}
