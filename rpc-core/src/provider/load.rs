//! The load of all requests in a provider: their number and the bytes of their bodies, in one word, so that
//! counting both costs no more than counting one.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bits for the bytes; the remaining bits count the requests.
const BYTES_BITS: u32 = 40;
const BYTES_MASK: u64 = (1 << BYTES_BITS) - 1;
/// Higher limits are lowered to this: half of what the word can hold, so that requests that are about to be
/// refused never make one count overflow into the other.
const REQUESTS_LIMIT: u64 = 1 << (64 - BYTES_BITS - 1);
const BYTES_LIMIT: u64 = 1 << (BYTES_BITS - 1);

/// Requests that run now, and the bytes of their bodies.
#[derive(Debug)]
pub(super) struct Load {
    word: AtomicU64,
    requests_max: u64,
    bytes_max: u64,
}

/// The provider admits no more now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// This many requests run.
    Requests(u64),
    /// Requests with this many bytes run.
    Bytes(u64),
}

impl Load {
    pub(super) fn new(requests_max: usize, bytes_max: usize) -> Self {
        Self {
            word: AtomicU64::new(0),
            requests_max: (requests_max as u64).min(REQUESTS_LIMIT),
            bytes_max: (bytes_max as u64).min(BYTES_LIMIT),
        }
    }

    /// Counts a request in, unless there are too many. An idle provider admits a request that alone exceeds
    /// the limit.
    pub(super) fn enter(&self, bytes: u32) -> Result<(), Full> {
        let one = one(bytes);
        let (requests, others) = split(self.word.fetch_add(one, Ordering::AcqRel));
        let full = if requests >= self.requests_max {
            Full::Requests(requests)
        } else if others > 0 && others + u64::from(bytes) > self.bytes_max {
            Full::Bytes(others)
        } else {
            return Ok(());
        };
        self.word.fetch_sub(one, Ordering::AcqRel);
        Err(full)
    }

    /// Counts out a request that was counted in with the same number of bytes.
    pub(super) fn leave(&self, bytes: u32) {
        self.word.fetch_sub(one(bytes), Ordering::AcqRel);
    }

    pub(super) fn requests(&self) -> u64 {
        split(self.word.load(Ordering::Acquire)).0
    }

    pub(super) fn bytes(&self) -> u64 {
        split(self.word.load(Ordering::Acquire)).1
    }
}

const fn one(bytes: u32) -> u64 {
    (1 << BYTES_BITS) | bytes as u64
}

const fn split(word: u64) -> (u64, u64) {
    (word >> BYTES_BITS, word & BYTES_MASK)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_are_exact_and_what_is_refused_is_not_counted() {
        let load = Load::new(2, 100);
        assert_eq!(load.enter(60), Ok(()));
        assert_eq!(load.enter(41), Err(Full::Bytes(60)));
        assert_eq!(load.enter(40), Ok(()));
        assert_eq!(load.enter(0), Err(Full::Requests(2)));
        assert_eq!((load.requests(), load.bytes()), (2, 100));
        load.leave(60);
        assert_eq!((load.requests(), load.bytes()), (1, 40));
        load.leave(40);
        assert_eq!((load.requests(), load.bytes()), (0, 0));
    }

    #[test]
    fn request_above_the_limit_is_taken_alone() {
        let load = Load::new(10, 100);
        assert_eq!(load.enter(u32::MAX), Ok(()));
        assert_eq!(load.enter(1), Err(Full::Bytes(u64::from(u32::MAX))));
        load.leave(u32::MAX);
        assert_eq!(load.enter(1), Ok(()));
    }

    #[test]
    fn limits_without_end_do_not_run_over() {
        let load = Load::new(usize::MAX, usize::MAX);
        for _ in 0..100 {
            assert_eq!(load.enter(u32::MAX), Ok(()));
        }
        assert_eq!((load.requests(), load.bytes()), (100, 100 * u64::from(u32::MAX)));
    }

    proptest! {
        #[test]
        fn what_entered_and_has_not_left_is_what_it_says(sizes in prop::collection::vec(any::<u32>(), 0..50)) {
            let load = Load::new(20, 1 << 34);
            let entered: Vec<u32> = sizes.into_iter().filter(|bytes| load.enter(*bytes).is_ok()).collect();
            prop_assert_eq!(load.requests(), entered.len() as u64);
            prop_assert_eq!(load.bytes(), entered.iter().map(|bytes| u64::from(*bytes)).sum::<u64>());
            entered.into_iter().for_each(|bytes| load.leave(bytes));
            prop_assert_eq!((load.requests(), load.bytes()), (0, 0));
        }
    }
}
