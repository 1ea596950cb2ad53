//! Whether the journal accepts messages: it does not while it is above its limit because moving messages into
//! queue files lags behind. Acks, decisions and everything else are still accepted.

use std::sync::atomic::{AtomicU64, Ordering};

/// The journal has reached its size limit. Nothing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the journal has {bytes} bytes, its limit is {limit}: it accepts no messages until some were moved into queue files; \
     try again later, or raise `journal.bytes_max`{}", of_which_held(*.held)
)]
pub struct JournalFull {
    /// Its size.
    pub bytes: u64,
    /// Its limit.
    pub limit: u64,
    /// Number of its segments that hold messages of undecided transactions: these remain in the journal.
    pub held: u64,
}

fn of_which_held(segments: u64) -> String {
    if segments == 0 {
        return String::new();
    }
    format!(
        "; {segments} of its segments hold messages of undecided transactions, which remain in the journal: `mq txn list` \
         shows them, `mq txn commit` and `mq txn rollback` decide them"
    )
}

/// The known size of the journal and its limit.
#[derive(Debug, Default)]
pub struct JournalLimit {
    bytes: AtomicU64,
    /// 0 = none.
    limit: AtomicU64,
    held: AtomicU64,
}

impl JournalLimit {
    /// Sets its size.
    pub(super) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Sets its limit.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Sets how many of its segments are held by undecided transactions.
    pub fn set_held(&self, segments: u64) {
        self.held.store(segments, Ordering::Relaxed);
    }

    /// Whether the journal accepts messages.
    ///
    /// # Errors
    /// [`JournalFull`].
    pub fn check(&self) -> Result<(), JournalFull> {
        let (bytes, limit) = (
            self.bytes.load(Ordering::Relaxed),
            self.limit.load(Ordering::Relaxed),
        );
        if limit > 0 && bytes >= limit {
            let held = self.held.load(Ordering::Relaxed);
            return Err(JournalFull { bytes, limit, held });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_at_its_limit_takes_nothing_until_it_is_smaller() {
        let limit = JournalLimit::default();
        limit.set_bytes(10);
        assert_eq!(limit.check(), Ok(()), "no limit is known yet");
        limit.set_limit(10);
        let full = limit.check().unwrap_err();
        assert!(full.to_string().contains("10 bytes"), "{full}");
        assert!(!full.to_string().contains("transactions"), "{full}");
        limit.set_held(3);
        let full = limit.check().unwrap_err().to_string();
        assert!(
            full.contains("3 of its segments hold messages of undecided transactions"),
            "{full}"
        );
        limit.set_bytes(9);
        assert_eq!(limit.check(), Ok(()));
    }
}
