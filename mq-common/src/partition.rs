//! The queue of a key. All clients must compute the same queue, otherwise the messages of a key are not in
//! order.

use xxhash_rust::xxh3::xxh3_64;

/// xxh3-64 of the key, seed 0.
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// Index into a topic's declared list of queues (not into those reachable now) for a key; `None` for an empty
/// list.
#[must_use]
pub fn queue_index_of_key(key: &[u8], declared_queues: usize) -> Option<usize> {
    let queues = u64::try_from(declared_queues).ok().filter(|&queues| queues > 0)?;
    usize::try_from(key_hash(key) % queues).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_keep_their_queues() {
        assert_eq!(key_hash(b""), 0x2d06_8005_38d3_94c2);
        let queues: Vec<_> = [&b"a"[..], b"b", b"order-1", b"order-2"]
            .map(|key| queue_index_of_key(key, 8).unwrap())
            .into();
        assert_eq!(queues, [7, 7, 6, 4]);
        assert_eq!(queue_index_of_key(b"a", 0), None);
    }
}
