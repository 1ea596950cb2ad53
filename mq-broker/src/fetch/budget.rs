//! A shared memory budget for responses to fetches. A response reserves its share before its messages are
//! read and releases it when its last byte has been given to the operating system or its connection is gone.
//! So consumers that request much and read nothing cost no more than this budget; and when others wait for
//! memory, they are disconnected.
//!
//! The one invariant: a fetch that waits for a reservation holds none, so that none waits for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mq_common::{Error, ErrorCode};
use rpc_core::{Context, Hold};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Bytes of one permit.
const UNIT_BYTES: usize = 1024;
/// A response up to this size waits for memory instead of being made smaller.
const SMALL_BYTES: usize = 256 * 1024;
/// A fetch without a deadline waits this long for memory.
const PATIENCE: Duration = Duration::from_secs(5);
/// One response takes at most this fraction of the free memory, so that a few large ones leave some for many
/// others.
const PART: usize = 4;

/// The memory budget of all responses.
#[derive(Debug)]
pub struct ResponseBudget {
    units: Arc<Semaphore>,
    units_max: u32,
    waiting: Waiting,
}

/// The number of fetches that wait for memory.
#[derive(Debug, Clone, Default)]
struct Waiting(Arc<AtomicUsize>);

/// One waiting fetch; no longer counted once it has its memory or was given up.
struct Waits<'a>(&'a Waiting);

/// Memory for one response, released when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    permit: OwnedSemaphorePermit,
    bytes: usize,
    waiting: Waiting,
}

impl Waiting {
    fn enter(&self) -> Waits<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waits(self)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hold for Reservation {
    fn is_contended(&self) -> bool {
        self.waiting.0.load(Ordering::Relaxed) > 0
    }
}

impl ResponseBudget {
    /// A budget of `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let units_max = units(bytes).max(1);
        let permits = usize::try_from(units_max).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            units: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            units_max,
            waiting: Waiting::default(),
        }
    }

    /// Reserves `bytes`, or less when others use much of the memory.
    ///
    /// # Errors
    /// `Overloaded` when no memory became free during most of the caller's time, `ShuttingDown` when the
    /// broker stops first.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue of waiters.
    pub(crate) async fn reserve(
        &self,
        bytes: usize,
        stopping: &CancellationToken,
    ) -> Result<Reservation, Error> {
        let part = self.units.available_permits().saturating_mul(UNIT_BYTES) / PART;
        self.reserve_exactly(bytes.min(part.max(SMALL_BYTES)), stopping)
            .await
    }

    /// Reserves exactly `bytes`, after all earlier requests. A request for more than the budget gets the
    /// whole budget.
    ///
    /// # Errors
    /// As [`ResponseBudget::reserve`].
    ///
    /// # Cancel safety
    /// As [`ResponseBudget::reserve`].
    pub(crate) async fn reserve_exactly(
        &self,
        bytes: usize,
        stopping: &CancellationToken,
    ) -> Result<Reservation, Error> {
        let _waits = self.waiting.enter();
        tokio::select! {
            biased;
            permit = Arc::clone(&self.units).acquire_many_owned(self.most(bytes)) => {
                // Never closed.
                let permit = permit.map_err(|_| self.full())?;
                Ok(Reservation { permit, bytes, waiting: self.waiting.clone() })
            }
            error = self.give_up(stopping) => Err(error),
        }
    }

    /// Completes when waiting any longer is of no use.
    async fn give_up(&self, stopping: &CancellationToken) -> Error {
        let context = Context::current();
        // So that the caller still receives the answer.
        let patience = context.time_left().map_or(PATIENCE, |left| left / 4 * 3);
        tokio::select! {
            () = context.cancelled() => self.full(),
            () = tokio::time::sleep(patience) => self.full(),
            () = stopping.cancelled() => {
                let message = "the broker is stopping and has no memory for a response; ask another broker";
                Error::new(ErrorCode::ShuttingDown, message)
            }
        }
    }

    fn full(&self) -> Error {
        let message = format!(
            "responses to other consumers use all {} KiB of memory for responses (part of `memory.budget_bytes`); ask again",
            self.units_max
        );
        Error::new(ErrorCode::Overloaded, message)
    }

    fn most(&self, bytes: usize) -> u32 {
        units(bytes).min(self.units_max)
    }
}

impl Reservation {
    /// The size that the response may have.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Releases what a response of `bytes` does not need.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let needed = usize::try_from(units(bytes)).unwrap_or(usize::MAX);
        let spare = self.permit.num_permits().saturating_sub(needed);
        drop(self.permit.split(spare));
        self.bytes = self.bytes.min(bytes);
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[tokio::test]
    async fn reservations_become_small_and_never_come_to_more_than_there_is() {
        let (answers, stopping) = (ResponseBudget::new(4 * MIB), CancellationToken::new());
        let mut reservations = Vec::new();
        let wait = Duration::ZERO;
        while let Ok(reservation) = tokio::time::timeout(wait, answers.reserve(MIB, &stopping)).await {
            reservations.push(reservation.unwrap());
        }
        assert_eq!(reservations[0].bytes(), MIB);
        assert!(reservations.len() > 6, "{}", reservations.len());
        let taken: usize = reservations.iter().map(Reservation::bytes).sum();
        assert!(taken <= 4 * MIB && taken > 4 * MIB - SMALL_BYTES, "{taken}");
        let mut waiting = Box::pin(answers.reserve(MIB, &stopping));
        assert!(!reservations[0].is_contended());
        assert!(tokio::time::timeout(wait, waiting.as_mut()).await.is_err());
        assert!(
            reservations[0].is_contended(),
            "a response that is not read blocks others"
        );
        reservations[0].shrink(10);
        assert_eq!(waiting.await.unwrap().bytes(), SMALL_BYTES);
        assert!(!reservations[0].is_contended());
    }

    #[tokio::test]
    async fn what_is_larger_than_all_gets_all() {
        let (answers, stopping) = (ResponseBudget::new(MIB), CancellationToken::new());
        let whole = answers.reserve_exactly(10 * MIB, &stopping).await.unwrap();
        assert_eq!((whole.bytes(), answers.units.available_permits()), (10 * MIB, 0));
        drop(whole);
        assert_eq!(answers.units.available_permits(), 1024);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_without_memory_is_refused_in_time_and_sooner_at_a_stop() {
        let (answers, stopping) = (ResponseBudget::new(MIB), CancellationToken::new());
        let all = answers.reserve_exactly(MIB, &stopping).await.unwrap();
        let refused = answers.reserve(1, &stopping).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Overloaded);
        assert!(refused.message.contains("1024 KiB"), "{}", refused.message);
        let mut waiting = Box::pin(answers.reserve(1, &stopping));
        assert!(
            tokio::time::timeout(PATIENCE / 2, waiting.as_mut())
                .await
                .is_err()
        );
        stopping.cancel();
        assert_eq!(waiting.await.unwrap_err().code, ErrorCode::ShuttingDown);
        assert!(!all.is_contended());
    }
}
