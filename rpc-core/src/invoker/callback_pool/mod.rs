//! The `responseCallback` pool: a set of threads on which users' callbacks run, so that a callback may block
//! without holding up a connection. A slot is reserved when the call is made and given back when the callback
//! starts. A filled slot that is dropped without an answer delivers `Cancelled`: every accepted callback is
//! called exactly once.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::dispatch::{Answer, shut_down};
use crate::error::{Code, Executed, RpcError};
use crate::limits::CALLBACK_QUEUE_MAX;

/// How long a shutdown waits for running callbacks; threads that are stuck longer are abandoned.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

type Callback = Box<dyn FnOnce(Answer) + Send>;

/// The pool. Its threads start with the first call that needs them.
pub(crate) struct CallbackPool {
    shared: Arc<Shared>,
    slots: Arc<Semaphore>,
    slots_max: u32,
    threads_max: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

/// Never longer than the number of slots.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

struct Job {
    callback: Callback,
    answer: Answer,
    /// Given back when the callback starts.
    slot: OwnedSemaphorePermit,
}

/// A reserved slot, given back when dropped unfilled.
#[must_use = "dropping a slot gives it back"]
pub(crate) struct Slot {
    shared: Arc<Shared>,
    permit: OwnedSemaphorePermit,
}

/// A callback that is called exactly once: with the delivered answer, or with `Cancelled` when this is
/// dropped.
#[must_use = "dropping it calls the callback with `Cancelled`"]
pub(crate) struct Pending {
    shared: Arc<Shared>,
    filled: Option<(Callback, OwnedSemaphorePermit)>,
}

impl fmt::Debug for CallbackPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallbackPool")
            .field("threads_max", &self.threads_max)
            .field("slots", &self.slots.available_permits())
            .finish_non_exhaustive()
    }
}

impl Default for CallbackPool {
    /// max(2, cores) threads, [`CALLBACK_QUEUE_MAX`] slots.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self::new(cores.max(2), CALLBACK_QUEUE_MAX)
    }
}

impl CallbackPool {
    /// A pool of `threads` threads and `slots` slots for waiting callbacks, each at least one.
    pub(crate) fn new(threads: usize, slots: usize) -> Self {
        let slots_max = u32::try_from(slots.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Self {
            shared: Arc::new(Shared::default()),
            slots: Arc::new(Semaphore::new(slots_max as usize)),
            slots_max,
            threads_max: threads.max(1),
            threads: Mutex::new(Vec::new()),
        }
    }

    /// A slot, if one is free.
    ///
    /// # Errors
    /// `Overloaded` when all are taken, `Cancelled` after the shutdown.
    pub(crate) fn reserve(&self) -> Result<Slot, RpcError> {
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(permit) => self.slot(permit),
            Err(TryAcquireError::Closed) => Err(shut_down(Executed::No)),
            Err(TryAcquireError::NoPermits) => Err(self.full()),
        }
    }

    /// A slot, as soon as one is free.
    ///
    /// # Errors
    /// `Overloaded` if none was free by `deadline`, `Cancelled` after the shutdown.
    pub(crate) async fn reserve_until(&self, deadline: Instant) -> Result<Slot, RpcError> {
        let acquire = Arc::clone(&self.slots).acquire_owned();
        match tokio::time::timeout_at(deadline.into(), acquire).await {
            Ok(Ok(permit)) => self.slot(permit),
            Ok(Err(_)) => Err(shut_down(Executed::No)),
            Err(_) => Err(self.full()),
        }
    }

    fn full(&self) -> RpcError {
        let message = format!(
            "all {} slots of the responseCallback pool are taken; use `callback_wait` or raise `callback_queue`",
            self.slots_max
        );
        RpcError::new(Code::Overloaded, Executed::No, message)
    }

    fn slot(&self, permit: OwnedSemaphorePermit) -> Result<Slot, RpcError> {
        self.start_threads().map_err(|error| {
            let message = format!("no thread for the responseCallback pool: {error}");
            RpcError::new(Code::Overloaded, Executed::No, message)
        })?;
        Ok(Slot {
            shared: Arc::clone(&self.shared),
            permit,
        })
    }

    fn start_threads(&self) -> std::io::Result<()> {
        let mut threads = lock(&self.threads);
        while threads.len() < self.threads_max {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name(format!("callback-{}", threads.len()))
                .spawn(move || shared.work());
            match thread {
                Ok(thread) => threads.push(thread),
                // Fewer threads than configured suffice; none do not.
                Err(error) if threads.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Accepts no more callbacks, waits until every accepted one was called, and ends the threads. The calls
    /// themselves must have been stopped before.
    pub(crate) async fn shutdown(&self) {
        let all_started = self.slots.acquire_many(self.slots_max);
        if tokio::time::timeout(SHUTDOWN_WAIT, all_started).await.is_err() {
            tracing::warn!("callbacks still wait at shutdown; they are called when the running ones end");
        }
        self.close();
        let threads = std::mem::take(&mut *lock(&self.threads));
        let joining = tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| {
                if thread.join().is_err() {
                    tracing::error!("a thread of the responseCallback pool panicked");
                }
            });
        });
        if tokio::time::timeout(SHUTDOWN_WAIT, joining).await.is_err() {
            tracing::warn!("callbacks still run at shutdown");
        }
    }

    fn close(&self) {
        self.slots.close();
        lock(&self.shared.queue).closed = true;
        self.shared.filled.notify_all();
    }
}

impl Drop for CallbackPool {
    /// The threads call the callbacks that still wait, then end.
    fn drop(&mut self) {
        self.close();
    }
}

impl Slot {
    /// Fills the slot with a callback.
    pub(crate) fn fill(self, callback: impl FnOnce(Answer) + Send + 'static) -> Pending {
        Pending {
            shared: self.shared,
            filled: Some((Box::new(callback), self.permit)),
        }
    }
}

/// A reserved slot of the `responseCallback` pool, for layers above the calls that deliver outcomes of their
/// own: see [`crate::Invoker::reserve_callback`]. Dropping it gives the slot back.
#[must_use = "dropping a slot gives it back"]
pub struct CallbackSlot(pub(super) Slot);

impl fmt::Debug for CallbackSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallbackSlot").finish_non_exhaustive()
    }
}

impl CallbackSlot {
    /// Runs `callback` on the pool, exactly once. It may block; a panic in it is caught.
    pub fn run(self, callback: impl FnOnce() + Send + 'static) {
        let pending = self.0.fill(move |_| callback());
        // The answer is ignored: the closure carries its own outcome.
        pending.deliver(Err(shut_down(Executed::No)));
    }
}

impl Pending {
    /// Delivers `answer` to the callback.
    pub(crate) fn deliver(mut self, answer: Answer) {
        self.put(answer);
    }

    fn put(&mut self, answer: Answer) {
        if let Some((callback, slot)) = self.filled.take() {
            self.shared.put(Job {
                callback,
                answer,
                slot,
            });
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.put(Err(shut_down(Executed::Maybe)));
    }
}

impl Shared {
    fn put(&self, job: Job) {
        let mut queue = lock(&self.queue);
        if queue.closed {
            // The threads are ending: late is better than never.
            drop(queue);
            job.run();
        } else {
            queue.jobs.push_back(job);
            drop(queue);
            self.filled.notify_one();
        }
    }

    /// One thread's loop: until the pool is closed and the queue is empty.
    fn work(&self) {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job.run();
                queue = lock(&self.queue);
            } else if queue.closed {
                return;
            } else {
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Job {
    fn run(self) {
        drop(self.slot);
        if catch_unwind(AssertUnwindSafe(|| (self.callback)(self.answer))).is_err() {
            tracing::error!("a callback panicked");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
