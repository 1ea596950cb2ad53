//! Collects messages into batches: one open batch per queue, preceded by its full ones. All batches of a
//! queue that are in flight are consecutive and in one call, so that its messages keep their order. Pure: the
//! time is an argument.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use mq_common::batch::{Batch, BatchError, Builder, BuilderOptions, Compression, Record};
use mq_common::ids::{QueueNumber, ShardName};
use mq_common::limits::{BATCH_BYTES_MAX, CALL_BATCHES_MAX};

/// Initial capacity of a batch whose queue has not filled one yet.
const SMALL_BATCH_BYTES: usize = 1024;
/// Batches of a queue in flight at once: as many as a broker remembers to recognise repeated ones.
const UNDER_WAY_MAX: usize = 16;
/// Approximate bytes in flight to one broker, shared by those of its queues that have messages to send.
const UNDER_WAY_BYTES: usize = 2 * 1024 * 1024;
/// The least share of each of them, however many they are.
const SHARE_BYTES_MIN: usize = 256 * 1024;

/// Whether a receipt is awaited. Batches hold messages of one class only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A request whose response carries the receipts.
    Confirmed,
    /// Handed to the connection; there is no response.
    Oneway,
}

/// One queue of one topic, in one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LaneKey {
    /// The topic's index in its producer.
    pub(crate) topic: usize,
    pub(crate) queue: QueueNumber,
    pub(crate) class: Class,
}

/// When batches are full and when they are due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) compression: Compression,
    pub(crate) batch_bytes: usize,
    pub(crate) batch_records: u32,
    pub(crate) linger: Duration,
}

impl Options {
    /// A builder for a batch; `full` if it is expected to be filled.
    pub(crate) fn builder(&self, bytes_max: usize, full: bool) -> Builder {
        Builder::new(BuilderOptions {
            compression: self.compression,
            bytes_max,
            records_max: self.batch_records,
            capacity: if full { bytes_max } else { SMALL_BATCH_BYTES },
        })
    }
}

/// A batch that is still being built, or was built for an earlier attempt.
#[derive(Debug)]
pub(crate) enum Content {
    Building(Builder),
    Built(Batch),
}

impl Content {
    /// The batch; compressed and checksummed now if it was not before.
    pub(crate) fn built(&mut self) -> Result<Batch, BatchError> {
        match self {
            Self::Building(builder) => {
                let batch = builder.finish()?;
                *self = Self::Built(batch.clone());
                Ok(batch)
            }
            Self::Built(batch) => Ok(batch.clone()),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Building(builder) => builder.bytes(),
            Self::Built(batch) => batch.len(),
        }
    }

    pub(crate) const fn record_count(&self) -> u32 {
        match self {
            Self::Building(builder) => builder.record_count(),
            Self::Built(batch) => batch.record_count(),
        }
    }
}

/// One batch with its waiters.
#[derive(Debug)]
pub(crate) struct Parcel<W> {
    pub(crate) content: Content,
    /// With the index of their first record in the batch.
    pub(crate) waiters: Vec<(u32, W)>,
    /// Bytes to return to the budget when it is done.
    pub(crate) cost: usize,
    /// When its first message came.
    pub(crate) since: Instant,
    /// It must stay on its queue.
    pub(crate) pinned: bool,
    /// Not to be sent before this time, after a failed attempt.
    pub(crate) not_before: Option<Instant>,
    /// Failed attempts.
    pub(crate) attempts: u32,
}

#[derive(Debug)]
struct Lane<W> {
    shard: ShardName,
    open: Option<Parcel<W>>,
    ready: VecDeque<Parcel<W>>,
    /// Batches in flight, all in one call.
    under_way: usize,
    /// Their bytes.
    bytes: usize,
    /// Batches of that call that were put back; they are the first ones in `ready`.
    put_back: usize,
    fills: bool,
}

impl<W> Lane<W> {
    fn is_empty(&self) -> bool {
        self.open.is_none() && self.ready.is_empty()
    }

    /// Its first parcel, if it is due.
    fn pop(&mut self, linger: Duration, now: Instant) -> Option<Parcel<W>> {
        self.due(linger).filter(|due| *due <= now)?;
        self.ready.pop_front().or_else(|| self.open.take())
    }

    /// When its first parcel is due; `None` if it has none.
    fn due(&self, linger: Duration) -> Option<Instant> {
        match (self.ready.front(), &self.open) {
            (Some(parcel), _) => Some(parcel.not_before.unwrap_or(parcel.since)),
            (None, Some(open)) => Some(open.since + linger),
            (None, None) => None,
        }
    }
}

/// The lanes of one broker.
#[derive(Debug, Default)]
struct Shard {
    /// Those that hold batches and have none in flight.
    pending: BTreeSet<LaneKey>,
    /// How many have batches in flight.
    under_way: usize,
}

impl Shard {
    /// Bytes that one lane may have in flight, all in one call. A single lane needs large calls, since it has
    /// only one at a time; with many lanes each gets little, so that several calls are in flight and the
    /// broker writes one while it reads the next.
    fn share(&self) -> usize {
        let lanes = self.pending.len() + self.under_way;
        (UNDER_WAY_BYTES / lanes.max(1)).max(SHARE_BYTES_MIN)
    }
}

/// The batches of one producer.
#[derive(Debug)]
pub(crate) struct Batcher<W> {
    options: Options,
    lanes: BTreeMap<LaneKey, Lane<W>>,
    shards: BTreeMap<ShardName, Shard>,
    /// All parcels, including those in flight.
    parcels: usize,
}

/// One message with its waiter.
#[derive(Debug)]
pub(crate) struct Entry<'a, W> {
    pub(crate) record: Record<'a>,
    /// `None` for a oneway message.
    pub(crate) waiter: Option<W>,
    /// Bytes of the budget that it takes.
    pub(crate) cost: usize,
    /// It must stay on this queue.
    pub(crate) pinned: bool,
}

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It joined the open batch.
    Joined,
    /// It started a batch: the next due time may have become earlier.
    Began,
    /// Not pushed: it did not fit into the open batch, which is closed now. An unpinned message may go to
    /// another queue; pushed again, it starts a batch here.
    Full,
}

impl<W> Batcher<W> {
    pub(crate) const fn new(options: Options) -> Self {
        Self {
            options,
            lanes: BTreeMap::new(),
            shards: BTreeMap::new(),
            parcels: 0,
        }
    }

    pub(crate) const fn options(&self) -> &Options {
        &self.options
    }

    /// Appends one message to its queue's open batch, or starts one. If it does not fit, the open batch is
    /// closed; a pinned message then starts the next one, for an unpinned message `Full` is returned.
    ///
    /// # Errors
    /// The record breaks a limit; nothing has changed.
    pub(crate) fn push(
        &mut self,
        key: LaneKey,
        shard: &ShardName,
        entry: &mut Entry<'_, W>,
        now: Instant,
    ) -> Result<Pushed, BatchError> {
        let options = self.options;
        let lane = Self::lane(&mut self.lanes, key, shard);
        if let Some(open) = &mut lane.open {
            match open.add(entry) {
                Ok(()) => return Ok(Pushed::Joined),
                Err(BatchError::Full) => lane.ready.extend(lane.open.take()),
                Err(error) => return Err(error),
            }
            lane.fills = true;
            if !entry.pinned {
                return Ok(Pushed::Full);
            }
        }
        let mut parcel = Parcel::new(options.builder(options.batch_bytes, lane.fills), now);
        let mut added = parcel.add(entry);
        if added == Err(BatchError::Full) {
            // Larger than a whole batch: it gets one of its own.
            parcel = Parcel::new(options.builder(BATCH_BYTES_MAX, false), now);
            added = parcel.add(entry);
        }
        added?;
        lane.open = Some(parcel);
        self.parcels += 1;
        self.mark(key);
        Ok(Pushed::Began)
    }

    /// Appends a batch collected by a writer, after all others of its queue.
    pub(crate) fn append(&mut self, key: LaneKey, shard: &ShardName, parcel: Parcel<W>) {
        let lane = Self::lane(&mut self.lanes, key, shard);
        if let Some(open) = lane.open.take() {
            lane.ready.push_back(open);
        }
        lane.ready.push_back(parcel);
        self.parcels += 1;
        self.mark(key);
    }

    /// Whether the queue has a batch in flight or waiting.
    pub(crate) fn is_busy(&self, key: LaneKey) -> bool {
        self.lanes
            .get(&key)
            .is_some_and(|lane| lane.under_way > 0 || !lane.is_empty())
    }

    /// The due parcels of the shard's queues, those of one queue consecutively, about `bytes_max` in total
    /// but at least one, and no more than a call may carry. Each of these queues is then in flight until all
    /// of its parcels are [`Batcher::done`] or put back.
    pub(crate) fn take(
        &mut self,
        shard: &ShardName,
        class: Class,
        bytes_max: usize,
        now: Instant,
    ) -> Vec<(LaneKey, Parcel<W>)> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        let Some(shard) = self.shards.get_mut(shard) else {
            return taken;
        };
        let share = shard.share();
        let of_class = shard.pending.iter().copied().filter(|key| key.class == class);
        let mut keys: Vec<LaneKey> = of_class.collect();
        // One of each queue in turn, so that no queue waits for all parcels of another.
        'full: for _ in 0..UNDER_WAY_MAX {
            let mut left = Vec::with_capacity(keys.len());
            for key in keys {
                let Some(lane) = self.lanes.get_mut(&key) else {
                    continue;
                };
                let Some(parcel) = lane.pop(self.options.linger, now) else {
                    continue;
                };
                let parcel_bytes = parcel.content.bytes();
                if lane.bytes > 0 && lane.bytes + parcel_bytes > share {
                    lane.ready.push_front(parcel);
                    continue;
                }
                let is_full = taken.len() >= CALL_BATCHES_MAX || bytes + parcel_bytes > bytes_max;
                if bytes > 0 && is_full {
                    lane.ready.push_front(parcel);
                    break 'full;
                }
                bytes += parcel_bytes;
                lane.under_way += 1;
                lane.bytes += parcel_bytes;
                shard.under_way += usize::from(shard.pending.remove(&key));
                taken.push((key, parcel));
                left.push(key);
            }
            keys = left;
        }
        taken.sort_by_key(|(key, _)| *key);
        taken
    }

    /// A parcel of the queue is no longer in flight, and done.
    pub(crate) fn done(&mut self, key: LaneKey) {
        self.parcels -= 1;
        self.came_back(key, None);
    }

    /// A parcel of the queue is no longer in flight: it was definitely not appended and comes first again,
    /// after those of its call that were put back before it.
    pub(crate) fn put_back(&mut self, key: LaneKey, parcel: Parcel<W>) {
        self.came_back(key, Some(parcel));
    }

    fn came_back(&mut self, key: LaneKey, again: Option<Parcel<W>>) {
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.under_way -= 1;
            if let Some(parcel) = again {
                lane.ready.insert(lane.put_back, parcel);
                lane.put_back += 1;
            }
            if lane.under_way == 0 {
                lane.bytes = 0;
                lane.put_back = 0;
                if let Some(shard) = self.shards.get_mut(&lane.shard) {
                    shard.under_way -= 1;
                }
            }
        }
        self.mark(key);
    }

    /// Makes every waiting batch due, regardless of the linger.
    pub(crate) fn flush(&mut self) {
        for lane in self.lanes.values_mut() {
            if let Some(open) = lane.open.take() {
                lane.ready.push_back(open);
            }
        }
    }

    /// Shards that have batches due at `now`, and the next time at which others will.
    pub(crate) fn due(&self, now: Instant) -> (Vec<ShardName>, Option<Instant>) {
        let mut shards = Vec::new();
        let mut next: Option<Instant> = None;
        for (name, shard) in &self.shards {
            let dues = shard
                .pending
                .iter()
                .filter_map(|key| self.lanes.get(key)?.due(self.options.linger));
            let mut due_now = false;
            for due in dues {
                if due <= now {
                    due_now = true;
                } else {
                    next = Some(next.map_or(due, |next| next.min(due)));
                }
            }
            if due_now {
                shards.push(name.clone());
            }
        }
        (shards, next)
    }

    /// Whether nothing is waiting or in flight.
    pub(crate) const fn is_idle(&self) -> bool {
        self.parcels == 0
    }

    /// All parcels that are not in flight, for a shutdown.
    pub(crate) fn drain(&mut self) -> Vec<(LaneKey, Parcel<W>)> {
        for shard in self.shards.values_mut() {
            shard.pending.clear();
        }
        let mut all = Vec::new();
        for (key, lane) in &mut self.lanes {
            let parcels = lane.ready.drain(..).chain(lane.open.take());
            all.extend(parcels.map(|parcel| (*key, parcel)));
        }
        self.parcels -= all.len();
        all
    }

    fn lane<'a>(
        lanes: &'a mut BTreeMap<LaneKey, Lane<W>>,
        key: LaneKey,
        shard: &ShardName,
    ) -> &'a mut Lane<W> {
        lanes.entry(key).or_insert_with(|| Lane {
            shard: shard.clone(),
            open: None,
            ready: VecDeque::new(),
            under_way: 0,
            bytes: 0,
            put_back: 0,
            fills: false,
        })
    }

    /// Puts the lane among the pending ones if it belongs there.
    fn mark(&mut self, key: LaneKey) {
        let Some(lane) = self.lanes.get(&key) else {
            return;
        };
        if lane.under_way > 0 || lane.is_empty() {
            return;
        }
        if !self.shards.contains_key(&lane.shard) {
            self.shards.insert(lane.shard.clone(), Shard::default());
        }
        if let Some(shard) = self.shards.get_mut(&lane.shard) {
            shard.pending.insert(key);
        }
    }
}

impl<W> Parcel<W> {
    pub(crate) const fn new(builder: Builder, now: Instant) -> Self {
        Self {
            content: Content::Building(builder),
            waiters: Vec::new(),
            cost: 0,
            since: now,
            pinned: false,
            not_before: None,
            attempts: 0,
        }
    }

    fn add(&mut self, entry: &mut Entry<'_, W>) -> Result<(), BatchError> {
        let Content::Building(builder) = &mut self.content else {
            return Err(BatchError::Full);
        };
        let index = builder.record_count();
        builder.push(&entry.record)?;
        self.waiters
            .extend(entry.waiter.take().map(|waiter| (index, waiter)));
        self.cost += entry.cost;
        self.pinned |= entry.pinned;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
