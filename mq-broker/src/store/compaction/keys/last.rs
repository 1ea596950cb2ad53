//! The last offset of each key, for as many keys as fit.
//!
//! A key is identified only by 128 bits of its hash: two values of SipHash, under secrets of this table that
//! are derived from a random one. Without knowing that, nobody can make two keys collide, and by chance none
//! do; so keys are neither kept nor compared. (A hash that is merely fast, like xxh3, promises nothing of the
//! kind, and a collision would lose a message.)

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use mq_common::ids::Offset;

/// Bytes of an entry: the hash, the offset, and the table's own byte.
const ENTRY_BYTES: usize = size_of::<((u64, u64), Offset)>() + 1;

/// The last offsets of keys.
#[derive(Debug)]
pub(super) struct LastOffsets {
    secrets: (RandomState, RandomState),
    last: HashMap<(u64, u64), Offset>,
    keys_max: usize,
}

impl LastOffsets {
    /// Uses at most this many bytes, with room for at least one key.
    pub(super) fn new(bytes_max: usize) -> Self {
        // As the standard table grows: its places are a power of two, of which it fills seven eighths.
        let places = (bytes_max / ENTRY_BYTES)
            .checked_ilog2()
            .map_or(1, |log| 1_usize << log);
        let keys_max = (places / 8 * 7).max(1);
        Self {
            secrets: (RandomState::new(), RandomState::new()),
            last: HashMap::with_capacity(keys_max),
            keys_max,
        }
    }

    /// Forgets everything, for another queue.
    pub(super) fn clear(&mut self) {
        self.last.clear();
    }

    /// Notes a later offset of a key; `false` = there is no room for another key.
    #[must_use]
    pub(super) fn note(&mut self, key: &[u8], offset: Offset) -> bool {
        let hash = self.hash(key);
        if let Some(last) = self.last.get_mut(&hash) {
            *last = offset;
            return true;
        }
        if self.last.len() >= self.keys_max {
            return false;
        }
        self.last.insert(hash, offset);
        true
    }

    /// Whether a later offset than this was noted for the key.
    pub(super) fn is_behind(&self, key: &[u8], offset: Offset) -> bool {
        self.last.get(&self.hash(key)).is_some_and(|last| offset < *last)
    }

    fn hash(&self, key: &[u8]) -> (u64, u64) {
        (self.secrets.0.hash_one(key), self.secrets.1.hash_one(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_key_the_last_offset_is_known_and_no_other_key_enters_a_full_table() {
        let mut last = LastOffsets::new(8 * ENTRY_BYTES);
        let keys: Vec<Vec<u8>> = (0..7_u8).map(|n| vec![n; usize::from(n)]).collect();
        for (key, offset) in keys.iter().zip(0..) {
            assert!(last.note(key, Offset(offset)));
        }
        assert!(!last.note(b"another", Offset(8)));
        assert!(last.note(&keys[3], Offset(9)), "one that is known has its room");
        for (key, offset) in keys.iter().zip(0..) {
            assert_eq!(last.is_behind(key, Offset(offset)), offset == 3, "{offset}");
        }
        assert!(!last.is_behind(b"another", Offset(0)));
        last.clear();
        assert!(last.note(b"another", Offset(8)));
    }

    #[test]
    fn the_table_takes_no_more_than_its_bytes_and_at_least_one_key() {
        for bytes in [0, 1, 25, 1000, 1 << 20, 16 << 20] {
            let last = LastOffsets::new(bytes);
            let places = (last.last.capacity() * 8).div_ceil(7).next_power_of_two();
            assert!(last.keys_max >= 1);
            assert!(
                bytes < 1000 || places * ENTRY_BYTES <= bytes,
                "{bytes}: {places} places"
            );
        }
    }
}
