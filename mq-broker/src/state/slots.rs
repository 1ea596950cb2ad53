//! A table of values by dense keys that are assigned once and never reused. A stretch of keys whose values
//! are all gone takes one pointer: memory follows the number of values, not the number of keys ever assigned.
//! Pure.

const STRETCH: usize = 256;

type Stretch<T> = Box<[Option<T>; STRETCH]>;

/// Values by key, in stretches that are freed when their last value is taken.
#[derive(Debug)]
pub(super) struct Slots<T> {
    stretches: Vec<Option<Stretch<T>>>,
    next: u32,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self::from(0)
    }
}

impl<T> From<u32> for Slots<T> {
    /// An empty table in which the keys below `next` were already assigned.
    fn from(next: u32) -> Self {
        let mut stretches = Vec::new();
        stretches.resize_with((next as usize).div_ceil(STRETCH), || None);
        Self { stretches, next }
    }
}

impl<T> Slots<T> {
    /// The key that the next value gets.
    pub(super) const fn next(&self) -> u32 {
        self.next
    }

    pub(super) fn get(&self, key: u32) -> Option<&T> {
        let (stretch, at) = place(key);
        self.stretches.get(stretch)?.as_ref()?[at].as_ref()
    }

    pub(super) fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        let (stretch, at) = place(key);
        self.stretches.get_mut(stretch)?.as_mut()?[at].as_mut()
    }

    /// All, in order of their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let stretches = (0_u32..).step_by(STRETCH).zip(&self.stretches);
        let filled = stretches.filter_map(|(first, stretch)| Some((first, stretch.as_ref()?)));
        filled
            .flat_map(|(first, stretch)| (first..).zip(stretch.iter()))
            .filter_map(|(key, slot)| Some((key, slot.as_ref()?)))
    }

    /// Stores a value under the next key. The caller makes sure that there is one.
    pub(super) fn push(&mut self, value: T) -> u32 {
        let key = self.next;
        self.next += 1;
        let taken = self.put(key, value);
        debug_assert!(taken, "a key is assigned once");
        key
    }

    /// Stores a value under a key that was assigned before; `false` if the key is in use or was never
    /// assigned.
    pub(super) fn put(&mut self, key: u32, value: T) -> bool {
        if key >= self.next {
            return false;
        }
        let (stretch, at) = place(key);
        if stretch >= self.stretches.len() {
            self.stretches.resize_with(stretch + 1, || None);
        }
        let slots = self.stretches[stretch].get_or_insert_with(|| Box::new([const { None }; STRETCH]));
        let is_free = slots[at].is_none();
        if is_free {
            slots[at] = Some(value);
        }
        is_free
    }

    pub(super) fn take(&mut self, key: u32) -> Option<T> {
        let (stretch, at) = place(key);
        let slots = self.stretches.get_mut(stretch)?;
        let taken = slots.as_mut()?[at].take();
        if slots
            .as_ref()
            .is_some_and(|slots| slots.iter().all(Option::is_none))
        {
            *slots = None;
        }
        taken
    }
}

const fn place(key: u32) -> (usize, usize) {
    let key = key as usize;
    (key / STRETCH, key % STRETCH)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slots_are_as_a_map_whose_keys_never_come_back(
            next in 0..600_u32,
            steps in prop::collection::vec((0..3_u8, any::<prop::sample::Index>()), 0..1000),
        ) {
            let (mut slots, mut model, mut given) = (Slots::from(next), BTreeMap::new(), next);
            for (step, (what, which)) in steps.into_iter().enumerate() {
                let key = u32::try_from(which.index(given as usize + 2)).unwrap();
                match what {
                    0 => {
                        prop_assert_eq!(slots.push(step), given);
                        model.insert(given, step);
                        given += 1;
                    }
                    1 => {
                        let free = key < given && !model.contains_key(&key);
                        prop_assert_eq!(slots.put(key, step), free);
                        if free {
                            model.insert(key, step);
                        }
                    }
                    _ => prop_assert_eq!(slots.take(key), model.remove(&key)),
                }
                prop_assert_eq!(slots.get(key), model.get(&key));
                prop_assert_eq!(slots.get_mut(key), model.get_mut(&key));
            }
            prop_assert_eq!(slots.next(), given);
            let all: Vec<_> = slots.iter().collect();
            prop_assert_eq!(all, model.iter().map(|(key, value)| (*key, value)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn keys_that_are_gone_take_no_room() {
        let mut slots = Slots::default();
        for _ in 0..10 * STRETCH {
            let key = slots.push([0; 100]);
            slots.take(key);
        }
        assert!(slots.stretches.iter().all(Option::is_none));
    }
}
