//! The fast path for many small messages: records are pushed synchronously into the writer's own batches,
//! which are sent as a whole. No future, allocation or clock read per record; receipts are counted per batch.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use mq_common::batch::{BatchError, Builder, Record};
use mq_common::ids::{QueueNumber, Timestamp};
use mq_common::limits::BATCH_BYTES_MAX;
use tokio::sync::{Notify, TryAcquireError};
use tokio_util::sync::DropGuard;

use super::batcher::{Options, Parcel};
use super::partitioner::Place;
use super::shared::Shared;
use super::{SendReceipt, Waiter, permits};
use crate::client::wall_clock;
use crate::error::{Outcome, SendError};
use crate::route::{TopicRoute, lock};

/// Why a record was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The producer's byte budget is used up: await [`BatchWriter::ready`] and push the record again.
    #[error("the bytes queued and in flight are at their limit; await `ready` and push again")]
    Full,
    /// The record breaks a limit.
    #[error(transparent)]
    Message(#[from] BatchError),
    /// The previous batch could not be queued for sending.
    #[error(transparent)]
    Send(SendError),
}

/// The outcomes of a writer's records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriterSummary {
    /// Records with a receipt.
    pub confirmed: u64,
    /// Records that were definitely not appended.
    pub failed: u64,
    /// Records that may or may not have been appended.
    pub unknown: u64,
    /// Batches that contained them.
    pub batches: u64,
    /// The first failure.
    pub first_error: Option<SendError>,
    /// The last receipt.
    pub last_receipt: Option<SendReceipt>,
}

/// Where batches in flight report their outcomes.
#[derive(Default)]
pub(crate) struct WriterState {
    progress: Mutex<Progress>,
    concluded: Notify,
    observer: OnceLock<Observer>,
}

impl fmt::Debug for WriterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriterState")
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

/// Called for each batch with the time since its beginning, its records, and whether it got a receipt.
type Observer = Box<dyn Fn(Duration, u32, bool) + Send + Sync>;

#[derive(Debug, Default)]
struct Progress {
    summary: WriterSummary,
    under_way: u64,
}

impl WriterState {
    pub(super) fn concluded(&self, outcome: Result<SendReceipt, SendError>, records: u32, since: Instant) {
        if let Some(observer) = self.observer.get() {
            observer(since.elapsed(), records, outcome.is_ok());
        }
        let records = u64::from(records);
        let mut progress = lock(&self.progress);
        progress.under_way -= 1;
        let summary = &mut progress.summary;
        summary.batches += 1;
        match outcome {
            Ok(receipt) => {
                summary.confirmed += records;
                summary.last_receipt = Some(receipt);
            }
            Err(error) => {
                match error.outcome() {
                    Outcome::Definite => summary.failed += records,
                    Outcome::Unknown => summary.unknown += records,
                }
                summary.first_error.get_or_insert(error);
            }
        }
        drop(progress);
        self.concluded.notify_waiters();
    }
}

/// A batch that is being filled.
#[derive(Debug)]
struct Open {
    builder: Builder,
    since: Instant,
    /// The time of records without one of their own: when the batch was started.
    time: Timestamp,
}

impl Open {
    /// `fills`: allocate the full batch at once.
    fn new(options: &Options, fills: bool) -> Self {
        Self {
            builder: options.builder(options.batch_bytes, fills),
            since: tokio::time::Instant::now().into_std(),
            time: wall_clock(),
        }
    }
}

/// Writes many small messages to one topic; see [`super::Producer::writer`]. Records are sent when a batch is
/// full, or by [`BatchWriter::flush`]; there is no linger. Dropping the writer sends the records it holds if
/// the budget has room and discards them otherwise: flush first.
#[derive(Debug)]
pub struct BatchWriter {
    shared: Arc<Shared>,
    /// Keeps the producer's tasks running.
    _alive: Arc<DropGuard>,
    route: Arc<TopicRoute>,
    options: Options,
    state: Arc<WriterState>,
    /// The batch of records without a key.
    free: Option<Open>,
    /// The batches of records with a key, by queue.
    keyed: BTreeMap<QueueNumber, Open>,
    /// Bytes of the last batch for which the budget had no room.
    wanted: usize,
}

impl BatchWriter {
    pub(super) fn new(shared: Arc<Shared>, alive: Arc<DropGuard>, route: Arc<TopicRoute>) -> Self {
        let options = shared.options();
        Self {
            shared,
            _alive: alive,
            route,
            options,
            state: Arc::default(),
            free: None,
            keyed: BTreeMap::new(),
            wanted: 0,
        }
    }

    /// Calls `observer` for each batch from now on, with the time since its first record was pushed, its
    /// number of records, and whether it got a receipt. It is called from the sending tasks and must not
    /// block. Only the first observer counts.
    pub fn observe(&mut self, observer: impl Fn(Duration, u32, bool) + Send + Sync + 'static) {
        if self.state.observer.set(Box::new(observer)).is_err() {
            tracing::warn!("this writer has an observer already");
        }
    }

    /// Appends one record to the open batch, with the time when that batch was started.
    ///
    /// # Errors
    /// [`PushError`]; the record was not accepted.
    pub fn push(&mut self, key: Option<&[u8]>, payload: &[u8]) -> Result<(), PushError> {
        let place = self.place(key);
        let time = self.open(place).time;
        let record = Record {
            key,
            ..Record::new(payload, time)
        };
        self.push_to(place, &record)
    }

    /// Appends one record as it is to the open batch.
    ///
    /// # Errors
    /// [`PushError`]; the record was not accepted.
    pub fn push_record(&mut self, record: &Record<'_>) -> Result<(), PushError> {
        self.push_to(self.place(record.key), record)
    }

    /// Waits until a push that failed with [`PushError::Full`] may succeed.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait only.
    pub async fn ready(&mut self) {
        let wanted = self.cost(self.wanted);
        // Released at once: the next push of this writer takes them.
        drop(self.shared.budget.acquire_many(permits(wanted)).await);
    }

    /// Sends the open batches, waits for the outcomes of all batches, and returns the totals since the writer
    /// was created.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait; open batches may then remain unsent in the writer.
    pub async fn flush(&mut self) -> WriterSummary {
        while self.hand_over_all() == Err(PushError::Full) {
            self.ready().await;
        }
        loop {
            let concluded = self.state.concluded.notified();
            {
                let progress = lock(&self.state.progress);
                if progress.under_way == 0 {
                    return progress.summary.clone();
                }
            }
            concluded.await;
        }
    }

    /// The outcomes of its records so far.
    #[must_use]
    pub fn summary(&self) -> WriterSummary {
        lock(&self.state.progress).summary.clone()
    }

    fn place(&self, key: Option<&[u8]>) -> Place {
        let queue = key.and_then(|key| self.route.queue_of_key(key));
        queue.map_or(Place::Free, Place::Pinned)
    }

    fn open(&mut self, place: Place) -> &mut Open {
        let options = &self.options;
        match place {
            Place::Free => self.free.get_or_insert_with(|| Open::new(options, true)),
            Place::Pinned(queue) => self
                .keyed
                .entry(queue)
                .or_insert_with(|| Open::new(options, false)),
        }
    }

    fn push_to(&mut self, place: Place, record: &Record<'_>) -> Result<(), PushError> {
        self.route.check_size(record)?;
        match self.open(place).builder.push(record) {
            Ok(()) => return Ok(()),
            Err(BatchError::Full) => {}
            Err(error) => return Err(error.into()),
        }
        self.hand_over(place)?;
        let pushed = self.open(place).builder.push(record);
        if pushed != Err(BatchError::Full) {
            return Ok(pushed?);
        }
        // Larger than a whole batch: it gets one of its own.
        let mut builder = self.options.builder(BATCH_BYTES_MAX, false);
        builder.push(record)?;
        self.open(place).builder = builder;
        Ok(())
    }

    /// Hands over all batches; records that cannot be queued are counted as failed.
    fn hand_over_all(&mut self) -> Result<(), PushError> {
        let mut outcome = Ok(());
        let keyed: Vec<_> = self.keyed.keys().copied().map(Place::Pinned).collect();
        for place in std::iter::once(Place::Free).chain(keyed) {
            match self.hand_over(place) {
                Err(PushError::Full) => return Err(PushError::Full),
                handed => outcome = outcome.and(handed),
            }
        }
        outcome
    }

    /// Hands the batch, if there is one, to the sender, if the budget has room for it.
    fn hand_over(&mut self, place: Place) -> Result<(), PushError> {
        let open = match place {
            Place::Free => self.free.as_ref(),
            Place::Pinned(queue) => self.keyed.get(&queue),
        };
        let Some(bytes) = open.map(|open| open.builder.bytes()).filter(|&bytes| bytes > 0) else {
            return Ok(());
        };
        let cost = self.cost(bytes);
        let held = match self.shared.budget.try_acquire_many(permits(cost)) {
            Ok(permit) => {
                permit.forget();
                cost
            }
            Err(TryAcquireError::NoPermits) => {
                self.wanted = bytes;
                return Err(PushError::Full);
            }
            // The sender then refuses the batch and counts its records as failed.
            Err(TryAcquireError::Closed) => 0,
        };
        let taken = match place {
            Place::Free => self.free.take(),
            Place::Pinned(queue) => self.keyed.remove(&queue),
        };
        taken.map_or(Ok(()), |open| self.send(place, open, held))
    }

    fn send(&mut self, place: Place, open: Open, cost: usize) -> Result<(), PushError> {
        let (since, builder) = (open.since, open.builder);
        let mut parcel = Parcel::new(builder, since);
        parcel.cost = cost;
        parcel
            .waiters
            .push((0, Waiter::Writer(Arc::clone(&self.state), since)));
        lock(&self.state.progress).under_way += 1;
        if let Some(route) = self.shared.client.routes.cached(&self.route.topic().name) {
            self.route = route;
        }
        self.shared
            .append(&self.route, place, parcel)
            .map_err(PushError::Send)
    }

    fn cost(&self, bytes: usize) -> usize {
        bytes.min(self.shared.config.in_flight_bytes)
    }
}

impl Drop for BatchWriter {
    fn drop(&mut self) {
        if let Err(error) = self.hand_over_all() {
            tracing::warn!(%error, "a writer was dropped with records in it; flush it before");
        }
    }
}
