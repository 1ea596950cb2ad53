//! A bounded pool for disk reads. While producers are active, all readers together are limited to a share of
//! wall time, so a consumer that replays old messages takes neither the threads that serve others nor the
//! disk that syncs need.
//!
//! The one invariant: a slot is held from the start of a read to the end of its pause, even if nobody waits
//! for the result any longer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use crate::store::Access;

/// Producers that have sent nothing for this long do not need the disk.
const QUIET: Duration = Duration::from_millis(100);
/// The longest pause, however slow the read was.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Limits of disk reads.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Reads at once.
    pub threads: usize,
    /// The share of wall time that reads may take while producers are active, percent, 1 to 100.
    pub share_percent: u32,
}

/// The pool.
#[derive(Debug)]
pub struct DiskPool {
    slots: Arc<Semaphore>,
    /// How long a thread rests after a read while producers are active, percent of the read's duration.
    rest_percent: u32,
    tasks: TaskTracker,
    produced: Produced,
}

/// Whether producers are active, judged by the number of batches they have sent.
#[derive(Debug)]
struct Produced {
    batches: Counter,
    /// The number of batches, and since when it has been unchanged.
    seen: Mutex<(u64, Option<Instant>)>,
}

impl Produced {
    fn is_going_on(&self, now: Instant) -> bool {
        let batches = self.batches.get();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 != batches {
            *seen = (batches, Some(now));
        }
        seen.1.is_some_and(|at| now.duration_since(at) < QUIET)
    }
}

impl DiskPool {
    /// Reads on threads of `tasks`; `produced` counts the batches that producers sent.
    #[must_use]
    pub fn new(settings: Settings, tasks: TaskTracker, produced: Counter) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(settings.threads.max(1))),
            rest_percent: rest_percent(settings),
            tasks,
            produced: Produced {
                seen: Mutex::new((produced.get(), None)),
                batches: produced,
            },
        }
    }

    /// The access of reads that must not block on the disk.
    #[must_use]
    pub fn cache_only(&self) -> Access {
        if self.produced.is_going_on(Instant::now()) {
            Access::CacheOnlyNoPrefetch
        } else {
            Access::CacheOnly
        }
    }

    /// Runs `read` when a slot is free; `None` if it panicked.
    ///
    /// # Cancel safety
    /// Dropping the future before the read has started cancels it; a started read finishes, and its result is
    /// dropped.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(Access) -> T + Send + 'static,
    ) -> Option<T> {
        // Never closed. Every waiter is one of the requests that the provider limits.
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        let (answer, answered) = oneshot::channel();
        let reads = Arc::clone(self);
        self.tasks.spawn(async move {
            let access = if reads.produced.is_going_on(Instant::now()) {
                Access::BlockingNoPrefetch
            } else {
                Access::Blocking
            };
            let reading = reads.tasks.spawn_blocking(move || {
                let began = Instant::now();
                (read(access), began.elapsed())
            });
            let Ok((result, took)) = reading.await else { return };
            // The caller may have gone away.
            drop(answer.send(result));
            if reads.produced.is_going_on(Instant::now()) {
                tokio::time::sleep(pause(took, reads.rest_percent)).await;
            }
            drop(slot);
        });
        answered.await.ok()
    }
}

/// A single reader keeps all threads busy in turn, one while the others rest: together they use the share.
fn rest_percent(settings: Settings) -> u32 {
    let threads = u32::try_from(settings.threads.max(1)).unwrap_or(u32::MAX);
    let share = settings.share_percent.clamp(1, 100);
    threads.saturating_mul(100 * 100 / share).saturating_sub(100)
}

/// How long a thread rests after a read of this duration.
fn pause(took: Duration, rest_percent: u32) -> Duration {
    (took / 100).saturating_mul(rest_percent).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use tokio::task::JoinSet;

    use super::*;

    fn reads(threads: usize, share_percent: u32, produced: &Counter) -> Arc<DiskPool> {
        let settings = Settings {
            threads,
            share_percent,
        };
        Arc::new(DiskPool::new(settings, TaskTracker::new(), produced.clone()))
    }

    #[test]
    fn all_threads_together_read_for_the_share() {
        let took = Duration::from_millis(4);
        for (threads, share_percent, rest) in [
            (1, 50, took),
            (1, 25, 3 * took),
            (1, 100, Duration::ZERO),
            (2, 100, took),
            (2, 50, 3 * took),
            (4, 20, 19 * took),
            (64, 1, PAUSE_MAX),
        ] {
            let settings = Settings {
                threads,
                share_percent,
            };
            let paused = pause(took, rest_percent(settings));
            assert_eq!(paused, rest, "{settings:?}");
        }
    }

    #[test]
    fn producers_are_noticed_until_they_are_quiet() {
        let batches = Counter::default();
        batches.inc();
        let produced = Produced {
            batches: batches.clone(),
            seen: Mutex::new((1, None)),
        };
        let now = Instant::now();
        assert!(
            !produced.is_going_on(now),
            "what was sent before the start does not count"
        );
        batches.inc();
        assert!(produced.is_going_on(now));
        assert!(produced.is_going_on(now + QUIET / 2));
        assert!(!produced.is_going_on(now + QUIET));
    }

    #[tokio::test]
    async fn no_more_read_at_once_than_there_are_slots_also_when_nobody_waits_for_the_answer() {
        let reads = reads(1, 100, &Counter::default());
        let (begun, has_begun) = sync_channel(1);
        let (go_on, wait) = sync_channel::<()>(1);
        let mut abandoned = JoinSet::new();
        abandoned.spawn({
            let reads = Arc::clone(&reads);
            async move {
                let read = move |_| {
                    begun.send(()).unwrap();
                    wait.recv().unwrap();
                };
                reads.run(read).await
            }
        });
        tokio::task::spawn_blocking(move || has_begun.recv().unwrap())
            .await
            .unwrap();
        abandoned.shutdown().await;
        assert_eq!(reads.slots.available_permits(), 0, "the read goes on");
        go_on.send(()).unwrap();
        assert_eq!(reads.run(|_| 7).await, Some(7));
    }

    #[tokio::test]
    async fn reads_spare_the_disk_while_producers_send() {
        let batches = Counter::default();
        let reads = reads(2, 50, &batches);
        assert_eq!(reads.cache_only(), Access::CacheOnly);
        assert_eq!(reads.run(|access| access).await, Some(Access::Blocking));
        batches.inc();
        assert_eq!(reads.cache_only(), Access::CacheOnlyNoPrefetch);
        assert_eq!(reads.run(|access| access).await, Some(Access::BlockingNoPrefetch));
    }

    #[tokio::test]
    async fn the_next_read_waits_for_the_pause_of_the_one_before_it_while_producers_send() {
        const TOOK: Duration = Duration::from_millis(200);
        let batches = Counter::default();
        let reads = reads(1, 25, &batches);
        let read = move |_| {
            let begun = Instant::now();
            while begun.elapsed() < TOOK {
                std::hint::spin_loop();
            }
            batches.inc();
        };
        reads.run(read).await.unwrap();
        let answered = Instant::now();
        reads.run(|_| ()).await.unwrap();
        let waited = answered.elapsed();
        // Minus the time that may pass between the answer and reading the clock.
        assert!(waited >= 2 * TOOK, "{waited:?}");
    }

    #[tokio::test]
    async fn read_that_panics_gives_its_slot_back() {
        let reads = reads(1, 50, &Counter::default());
        assert_eq!(reads.run(|_| -> u8 { panic!("as told") }).await, None);
        assert_eq!(reads.run(|_| 7).await, Some(7));
    }
}
