//! How a round of passes gives way to one that the journal needs.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::background::disk_share::Pacer;
use crate::core::Core;
use crate::store::Pace;

/// After giving way, the next round takes half as much, but no less than this.
const PASSES_BYTES_MIN: u64 = 16 << 20;
/// A round compacts up to this many bytes of queues by their keys, or one queue that has more.
pub(super) const PASSES_BYTES_MAX: u64 = 1 << 30;

/// Signals a round that the journal needs one.
#[derive(Debug, Clone)]
pub(super) struct Preemption {
    /// Ends it after its current queue.
    pub(super) soon: CancellationToken,
    /// Ends it at once.
    pub(super) now: CancellationToken,
}

impl Preemption {
    pub(super) fn of(stop: &CancellationToken) -> Self {
        Self {
            soon: CancellationToken::new(),
            now: stop.child_token(),
        }
    }

    /// How much the next round of passes takes, after one that took `bytes`.
    pub(super) fn bytes_next(&self, bytes: u64) -> u64 {
        let next = if self.soon.is_cancelled() {
            bytes / 2
        } else {
            bytes * 2
        };
        next.clamp(PASSES_BYTES_MIN, PASSES_BYTES_MAX)
    }
}

/// Keeps a round to its share of the disk's time, and lets it give way.
#[derive(Debug)]
pub(super) struct PreemptiblePace {
    pacer: Pacer,
    soon: CancellationToken,
}

impl PreemptiblePace {
    pub(super) fn new(core: &Arc<Core>, preemption: Preemption, percent: u64) -> Self {
        Self {
            pacer: Pacer::new(core, &preemption.now, percent),
            soon: preemption.soon,
        }
    }
}

impl Pace for PreemptiblePace {
    fn pause(&mut self, took: Duration) -> bool {
        self.pacer.pause(took)
    }

    fn gives_way(&self) -> bool {
        self.soon.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_had_to_give_way_is_followed_by_smaller_ones_until_one_need_not() {
        let stop = CancellationToken::new();
        let mut bytes = PASSES_BYTES_MAX;
        for expected in [PASSES_BYTES_MAX / 2, PASSES_BYTES_MAX / 4] {
            let preemption = Preemption::of(&stop);
            preemption.soon.cancel();
            bytes = preemption.bytes_next(bytes);
            assert_eq!(bytes, expected);
        }
        let preemption = Preemption::of(&stop);
        assert_eq!(preemption.bytes_next(bytes), PASSES_BYTES_MAX / 2);
        assert_eq!(preemption.bytes_next(PASSES_BYTES_MAX), PASSES_BYTES_MAX);
        preemption.soon.cancel();
        assert_eq!(preemption.bytes_next(PASSES_BYTES_MIN), PASSES_BYTES_MIN);
        stop.cancel();
        assert!(preemption.now.is_cancelled(), "the end of the broker ends all");
    }
}
