//! Polls some of one broker's queues: one long poll covers all of them, and while its messages are handled
//! the next one is already in flight. A queue belongs to one poller, so its messages are handled one after
//! another.
//!
//! A queue that was not served is paused, longer each time; the others continue without it. A queue whose
//! last batch arrived damaged is polled alone, from the broker's disk.

use std::collections::{BTreeMap, btree_map};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mq_common::ErrorCode;
use mq_common::api::fetch::{
    FROM_DISK_META, FetchRequest, FetchResponse, Fetched, KNOWS_COMPACTED_META, Want,
};
use mq_common::batch::{StampedBatch, split_stamped};
use mq_common::ids::{Offset, QueueNumber};
use mq_common::limits::LONG_POLL_MS_MAX;
use rpc_core::{Attachment, CallError, CallFuture, Code};
use tokio::sync::watch;
use tokio::time::Instant;

use super::dispatch::Chunk;
use super::engine::Engine;
use super::event::ConsumerEvent;
use super::member::{Member, Queues};
use super::owned::Owned;
use crate::config::OutOfRange;
use crate::error::ConsumeError;

/// The pause after a poll that failed, and of a queue that was not served; it doubles each time, up to the
/// maximum.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(2);

type Answer = CallFuture<(FetchResponse, Attachment), mq_common::Error>;

/// One polling task.
#[derive(Debug)]
pub(crate) struct Poller {
    engine: Arc<Engine>,
    member: Arc<Member>,
    slot: usize,
    queues: watch::Receiver<Queues>,
    positions: BTreeMap<QueueNumber, Position>,
    /// The poll in flight.
    ahead: Option<Poll>,
    again: Duration,
}

#[derive(Debug)]
struct Position {
    owned: Arc<Owned>,
    next: Offset,
    /// The last batch arrived damaged; the damage may be in the broker's memory only.
    damaged: bool,
    rest: Option<Rest>,
}

/// The pause of a queue that was not served.
#[derive(Debug, Clone, Copy)]
struct Rest {
    until: Instant,
    again: Duration,
}

#[derive(Debug)]
struct Poll {
    wants: Vec<Want>,
    answer: Answer,
}

impl Poller {
    pub(crate) fn new(engine: Arc<Engine>, member: Arc<Member>, slot: usize) -> Self {
        Self {
            queues: member.queues(),
            engine,
            member,
            slot,
            positions: BTreeMap::new(),
            ahead: None,
            again: AGAIN_FIRST,
        }
    }

    /// Polls until the consumer stops. The handler of a message in progress is waited for.
    pub(crate) async fn run(mut self) {
        let stop = self.engine.stop.clone();
        loop {
            self.follow();
            if stop.is_cancelled() {
                return;
            }
            if self.positions.is_empty() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = self.queues.changed() => if changed.is_err() { return },
                }
                continue;
            }
            let rest_ends = self.rest_ends();
            let Some(mut poll) = self.ahead.take().or_else(|| self.poll()) else {
                if self.wants().is_empty() {
                    self.rest(rest_ends).await;
                } else {
                    self.wait(true).await;
                }
                continue;
            };
            let answer = tokio::select! {
                () = stop.cancelled() => return,
                changed = self.queues.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // The queues may still be the same; otherwise `follow` drops it.
                    self.ahead = Some(poll);
                    continue;
                }
                () = at(rest_ends) => {
                    self.ahead = Some(poll);
                    continue;
                }
                answer = &mut poll.answer => answer,
            };
            match answer {
                Ok((response, attachment)) => {
                    self.again = AGAIN_FIRST;
                    self.engine.client.routes.answered(&self.member.shard);
                    self.take(&poll.wants, response, attachment.into_bytes()).await;
                }
                Err(error) => {
                    tracing::debug!(shard = %self.member.shard, %error, "poll failed");
                    let unreached =
                        matches!(&error, CallError::Rpc(error) if error.code == Code::Unavailable);
                    if unreached {
                        self.member.doubt();
                    }
                    self.wait(unreached).await;
                }
            }
        }
    }

    /// Updates the positions to the queues owned now; drops the poll in flight if it does not match them.
    fn follow(&mut self) {
        let queues = Arc::clone(&self.queues.borrow_and_update());
        let threads = self.engine.config.threads.max(1);
        let mine = |queue: &QueueNumber| queue.0 as usize % threads == self.slot;
        self.positions.retain(|queue, position| {
            let owned = queues.get(queue);
            owned.is_some_and(|owned| Arc::ptr_eq(owned, &position.owned) && !owned.ended.is_cancelled())
        });
        for (queue, owned) in queues.iter().filter(|(queue, _)| mine(queue)) {
            if !owned.ended.is_cancelled() {
                self.positions.entry(*queue).or_insert_with(|| Position {
                    owned: Arc::clone(owned),
                    next: owned.cursor,
                    damaged: false,
                    rest: None,
                });
            }
        }
        if self.ahead.as_ref().is_some_and(|poll| poll.wants != self.wants()) {
            self.ahead = None;
        }
    }

    /// The positions to poll for now.
    fn wants(&self) -> Vec<Want> {
        let now = Instant::now();
        let due = |position: &Position| position.rest.is_none_or(|rest| rest.until <= now);
        let is_damaged = |position: &Position| position.damaged && due(position);
        let only_damaged = self.positions.values().any(is_damaged);
        let wanted = |position: &Position| {
            if only_damaged {
                is_damaged(position)
            } else {
                due(position)
            }
        };
        let wanted = self.positions.iter().filter(|(_, position)| wanted(position));
        let wants = wanted.map(|(queue, position)| Want {
            topic: self.engine.topic.clone(),
            queue: *queue,
            offset: position.next,
            epoch: Some(position.owned.epoch),
        });
        wants.collect()
    }

    /// When the first of the paused queues may be polled again.
    fn rest_ends(&self) -> Option<Instant> {
        let now = Instant::now();
        let rests = self.positions.values().filter_map(|position| position.rest);
        rests.map(|rest| rest.until).filter(|until| *until > now).min()
    }

    /// Starts a poll from the positions; `None` if the broker is not registered, or there is nothing to poll.
    fn poll(&self) -> Option<Poll> {
        let wants = self.wants();
        let from_disk = wants.iter().any(|want| {
            self.positions
                .get(&want.queue)
                .is_some_and(|position| position.damaged)
        });
        if wants.is_empty() {
            return None;
        }
        let broker = self.engine.client.routes.broker(&self.member.shard)?;
        let config = &self.engine.config;
        let mut wait = config
            .fetch_wait
            .min(Duration::from_millis(u64::from(LONG_POLL_MS_MAX)));
        if from_disk {
            // The other queues wait for it.
            wait = Duration::ZERO;
        }
        let request = FetchRequest {
            member: Some((self.engine.group.clone(), self.engine.member.clone())),
            wants: wants.clone(),
            bytes_max: config.fetch_bytes,
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(LONG_POLL_MS_MAX),
        };
        let call = self.engine.client.fetch.fetch(request);
        let mut call = call.meta(KNOWS_COMPACTED_META, "1").to(&broker);
        if from_disk {
            call = call.meta(FROM_DISK_META, "1");
        }
        let answer = call.timeout(wait + Duration::from_secs(5)).future();
        Some(Poll { wants, answer })
    }

    /// Processes a response: moves the positions, starts the next poll, and delivers the messages.
    async fn take(&mut self, wants: &[Want], response: FetchResponse, mut batches: Bytes) {
        for want in wants {
            // Set again below if it is damaged again.
            if let Some(position) = self.positions.get_mut(&want.queue) {
                position.damaged = false;
            }
        }
        let mut chunks = Vec::with_capacity(response.answers.len());
        for (index, answer) in response.answers {
            let Some(want) = wants.get(index as usize) else {
                continue;
            };
            let is_served = match answer {
                Ok(fetched) => {
                    let bytes = batches.split_to((fetched.bytes as usize).min(batches.len()));
                    let chunk = self.chunk(want, &fetched, bytes);
                    let is_served = chunk.is_ok();
                    chunks.extend(chunk.unwrap_or_else(|before| before));
                    is_served
                }
                Err(error) => self.refused(want, &error),
            };
            if let Some(position) = self.positions.get_mut(&want.queue) {
                position.rest = (!is_served).then(|| Rest::after(position.rest));
            }
        }
        self.ahead = self.poll();
        for chunk in chunks {
            self.engine.sink.take(&self.engine, chunk).await;
        }
    }

    /// The chunk of one queue, if it still belongs to this poller; `Err` with the part before a damaged
    /// batch.
    fn chunk(
        &mut self,
        want: &Want,
        fetched: &Fetched,
        mut bytes: Bytes,
    ) -> Result<Option<Chunk>, Option<Chunk>> {
        let Some(position) = self.positions.get_mut(&want.queue) else {
            return Ok(None);
        };
        if Some(position.owned.epoch) != want.epoch || position.next != want.offset {
            return Ok(None);
        }
        tell_holes(&self.engine, want.queue, fetched);
        let mut chunk = Chunk {
            owned: Arc::clone(&position.owned),
            topic: self.engine.topic.clone(),
            from: want.offset,
            next: fetched.next_offset.max(want.offset),
            end: fetched.end,
            batches: Vec::new(),
        };
        let mut expected = over_holes(want.offset, &fetched.holes);
        loop {
            match split_stamped(&mut bytes) {
                Ok(Some(batch)) if batch.stamp.queue == want.queue && batch.stamp.base_offset <= expected => {
                    expected = over_holes(batch.end().max(expected), &fetched.holes);
                    chunk.batches.push(batch);
                }
                Ok(None) if expected >= chunk.next => break,
                other => {
                    let reason = reason(other, want.queue, expected);
                    let (queue, offset) = (want.queue, expected);
                    self.engine.event(ConsumerEvent::Corrupt {
                        queue,
                        offset,
                        reason,
                    });
                    chunk.next = expected.max(want.offset);
                    position.next = chunk.next;
                    position.damaged = true;
                    return Err(Some(chunk).filter(|chunk| !chunk.batches.is_empty()));
                }
            }
        }
        position.next = chunk.next;
        Ok(Some(chunk).filter(|chunk| chunk.next > chunk.from))
    }

    /// Handles a queue that the broker did not serve; false if it is to be paused before it is polled again.
    fn refused(&mut self, want: &Want, error: &mq_common::Error) -> bool {
        match (error.code, error.range) {
            (ErrorCode::Fenced | ErrorCode::NotMember, _) => {
                if let Some(epoch) = want.epoch {
                    self.member.lose(&self.engine, want.queue, epoch);
                }
                if let btree_map::Entry::Occupied(position) = self.positions.entry(want.queue)
                    && Some(position.get().owned.epoch) == want.epoch
                {
                    position.remove();
                }
                self.member.acks.changed.notify_one();
                true
            }
            (ErrorCode::OffsetOutOfRange, Some((start, end))) => self.out_of_range(want, start, end),
            (ErrorCode::UnknownQueue | ErrorCode::UnknownTopic | ErrorCode::NotLeader, _) => {
                self.engine.client.routes.refresh_soon();
                false
            }
            _ => {
                tracing::warn!(queue = %want.queue, offset = %want.offset, %error, "the broker does not serve a queue");
                false
            }
        }
    }

    fn out_of_range(&mut self, want: &Want, start: u64, end: u64) -> bool {
        let Some(position) = self
            .positions
            .get_mut(&want.queue)
            .filter(|position| position.next == want.offset)
        else {
            return true;
        };
        if self.engine.config.out_of_range == OutOfRange::Stop {
            self.engine.fail(ConsumeError::OutOfRange {
                queue: want.queue.0,
                cursor: want.offset.0,
                start,
                end,
            });
            return true;
        }
        let to = Offset(want.offset.0.clamp(start, end.max(start)));
        if to == position.next {
            return false;
        }
        self.engine.event(ConsumerEvent::Gap {
            queue: want.queue,
            from: want.offset,
            to,
        });
        position.next = to;
        true
    }

    /// Pauses before the next poll, at most until the queues change or, if the broker was not reached, until
    /// it answers a heartbeat.
    async fn wait(&mut self, unreached: bool) {
        self.ahead = None;
        let stop = self.engine.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            // `follow` sees what changed. The member owns the sender, so it still exists.
            changed = self.queues.changed() => drop(changed),
            () = self.member.heard(), if unreached => {}
            () = tokio::time::sleep(self.again) => {}
        }
        self.again = (self.again * 2).min(AGAIN_MAX);
    }

    /// Waits until a paused queue may be polled again, or until the queues change.
    async fn rest(&mut self, until: Option<Instant>) {
        let stop = self.engine.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            changed = self.queues.changed() => drop(changed),
            () = at(until) => {}
        }
    }
}

impl Rest {
    /// The next pause: longer than the previous one, if the queue was not served in between.
    fn after(before: Option<Self>) -> Self {
        let again = before.map_or(AGAIN_FIRST, |rest| (rest.again * 2).min(AGAIN_MAX));
        Self {
            until: Instant::now() + again,
            again,
        }
    }
}

/// Waits until `time`; for ever if it is `None`.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Reports the holes: damaged messages one by one, offsets removed by key compaction as a count.
fn tell_holes(engine: &Engine, queue: QueueNumber, fetched: &Fetched) {
    let mut offsets = 0;
    for ((from, to), compacted) in fetched.holes() {
        match compacted {
            true => offsets += to.0.saturating_sub(from.0),
            false => engine.event(ConsumerEvent::Hole { queue, from, to }),
        }
    }
    if offsets > 0 {
        engine.event(ConsumerEvent::Compacted { queue, offsets });
    }
}

/// The first offset at or after `offset` that is not in a hole. The holes are sorted.
fn over_holes(offset: Offset, holes: &[(Offset, Offset)]) -> Offset {
    let mut next = offset;
    for &(from, to) in holes {
        if from <= next {
            next = next.max(to);
        }
    }
    next
}

fn reason(
    split: Result<Option<StampedBatch>, mq_common::batch::BatchError>,
    queue: QueueNumber,
    expected: Offset,
) -> String {
    match split {
        Err(error) => error.to_string(),
        Ok(Some(batch)) if batch.stamp.queue != queue => {
            format!(
                "a batch of queue {} was served for queue {queue}",
                batch.stamp.queue
            )
        }
        Ok(Some(batch)) => format!(
            "the answer goes on at offset {} without those from {expected} on",
            batch.stamp.base_offset
        ),
        Ok(None) => format!("the answer ends without the offsets from {expected} on"),
    }
}
