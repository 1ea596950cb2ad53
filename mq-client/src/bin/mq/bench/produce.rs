//! `mq bench produce`: one writer on the client's fast path, whose messages have the times of their batches
//! (from the start of the batch to its receipt); or awaited sends, each of which has its own time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use mq_client::{Client, Message, Producer, PushError};
use mq_common::batch::{BatchError, Builder, BuilderOptions, Record};
use mq_common::ids::{Durability, Timestamp, TopicName};
use mq_common::limits::BATCH_BYTES_MAX;
use tokio::task::JoinSet;

use super::figures::{Figures, Times};
use super::payload;
use crate::fail::{Failure, Outcome, sending as sending_error};
use crate::output::Progress;

/// The load.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) messages: u64,
    pub(super) size: usize,
    pub(super) durability: Option<Durability>,
    pub(super) single: bool,
    pub(super) batch_bytes: usize,
    pub(super) batch_records: Option<u32>,
    pub(super) keys: Option<u64>,
    pub(super) in_flight: Option<usize>,
}

/// The most that a record takes in addition to its payload: its own fields and its share of the batch's
/// header.
const RECORD_OVERHEAD_BYTES: usize = 256;
/// Records between two updates of the progress bar.
const PROGRESS_EVERY: u64 = 1 << 14;

/// Concurrent single sends by default.
const SINGLE_SENDS: usize = 1024;

/// Runs it.
pub(super) async fn run(topic: &TopicName, load: &Load, client: &Client) -> Outcome<Figures> {
    if load.single {
        let mut builder = client.producer();
        if let Some(durability) = load.durability {
            builder = builder.durability(durability);
        }
        return single(topic, load, &Arc::new(builder.build())).await;
    }
    let in_flight_bytes = match (load.in_flight, load.batch_records) {
        (Some(messages), Some(records)) => {
            let batches = messages.div_ceil(usize::try_from(records).unwrap_or(usize::MAX));
            Some(batches.saturating_mul(batch_bytes_of(load, records)?))
        }
        (Some(messages), None) => Some(messages.saturating_mul(load.size.max(1))),
        (None, _) => None,
    };
    let mut batch_bytes = in_flight_bytes.map_or(load.batch_bytes, |bytes| bytes.min(load.batch_bytes));
    if let Some(records) = load.batch_records {
        // A batch allocates its full capacity.
        let room = usize::try_from(records)
            .unwrap_or(usize::MAX)
            .saturating_mul(load.size + RECORD_OVERHEAD_BYTES);
        batch_bytes = batch_bytes.min(room);
    }
    let mut builder = client.producer().batch_bytes(batch_bytes);
    if let Some(records) = load.batch_records {
        builder = builder.batch_records(records);
    }
    if let Some(durability) = load.durability {
        builder = builder.durability(durability);
    }
    if load.in_flight == Some(1) {
        return one_by_one(topic, load, &builder.build()).await;
    }
    if let Some(bytes) = in_flight_bytes {
        builder = builder.in_flight_bytes(bytes);
    }
    batches(topic, load, &builder.build()).await
}

/// The size of a batch of this many messages, as the producer's budget counts it.
fn batch_bytes_of(load: &Load, records: u32) -> Outcome<usize> {
    let mut builder = Builder::new(BuilderOptions {
        bytes_max: BATCH_BYTES_MAX,
        records_max: records,
        ..BuilderOptions::default()
    });
    let payload = payload(load.size);
    let record = Record {
        key: load.keys.map(|_| &[0; 8][..]),
        ..Record::new(&payload, Timestamp(0))
    };
    for _ in 0..records {
        match builder.push(&record) {
            Ok(()) => {}
            Err(BatchError::Full) => break,
            Err(error) => return Err(Failure::new(error.to_string())),
        }
    }
    Ok(builder.bytes())
}

/// Sends as many messages at once as the byte budget allows.
async fn batches(topic: &TopicName, load: &Load, producer: &Producer) -> Outcome<Figures> {
    let mut writer = producer
        .writer(topic.clone())
        .await
        .map_err(|error| Failure::new(error.to_string()))?;
    let times = Arc::new(Mutex::new(Times::new()?));
    let seen = Arc::clone(&times);
    writer.observe(move |elapsed, records, _| {
        lock(&seen).record(elapsed, u64::from(records));
    });
    let payload = payload(load.size);
    let progress = Progress::new("produce", Some(load.messages));
    let begun = Instant::now();
    let mut random = fastrand::Rng::with_seed(1);
    for done in 0..load.messages {
        let key = load.keys.map(|keys| random.u64(..keys).to_be_bytes());
        while let Err(error) = writer.push(key.as_ref().map(|key| &key[..]), &payload) {
            match error {
                PushError::Full => writer.ready().await,
                other => return Err(Failure::new(other.to_string())),
            }
        }
        if done % PROGRESS_EVERY == PROGRESS_EVERY - 1 {
            progress.add(PROGRESS_EVERY);
        }
    }
    let summary = writer.flush().await;
    let elapsed = begun.elapsed();
    progress.finish();
    let times = std::mem::replace(&mut *lock(&times), Times::new()?);
    Ok(Figures {
        messages: summary.confirmed,
        size: load.size as f64,
        elapsed,
        times,
        errors: summary.failed + summary.unknown,
        first_error: summary.first_error.as_ref().map(sending_error),
    })
}

/// Many concurrent senders, each of which awaits its sends one after another.
async fn single(topic: &TopicName, load: &Load, producer: &Arc<Producer>) -> Outcome<Figures> {
    let payload = Bytes::from(payload(load.size));
    let progress = Progress::new("produce", Some(load.messages));
    let times = Arc::new(Mutex::new(Times::new()?));
    let left = Arc::new(AtomicU64::new(load.messages));
    let senders = load.in_flight.unwrap_or(SINGLE_SENDS);
    let mut sending = JoinSet::new();
    let begun = Instant::now();
    for sender in 0..senders {
        let (producer, topic, payload) = (Arc::clone(producer), topic.clone(), payload.clone());
        let (times, left, progress) = (Arc::clone(&times), Arc::clone(&left), progress.clone());
        let keys = load.keys;
        sending.spawn(async move {
            let mut random = fastrand::Rng::with_seed(sender as u64);
            let (mut failed, mut first_error) = (0_u64, None);
            let take = |left: u64| left.checked_sub(1);
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
            {
                let message = Message::to(topic.clone(), payload.clone());
                let message = match keys {
                    Some(keys) => message.key(random.u64(..keys).to_be_bytes().to_vec()),
                    None => message,
                };
                let sent = Instant::now();
                match producer.send(message).await {
                    Ok(_) => lock(&times).record(sent.elapsed(), 1),
                    Err(error) => {
                        failed += 1;
                        first_error.get_or_insert_with(|| sending_error(&error));
                    }
                }
                progress.add(1);
            }
            (failed, first_error)
        });
    }
    let (mut errors, mut first_error) = (0, None);
    for (failed, error) in sending.join_all().await {
        errors += failed;
        first_error = first_error.or(error);
    }
    let elapsed = begun.elapsed();
    progress.finish();
    let times = std::mem::replace(&mut *lock(&times), Times::new()?);
    Ok(Figures {
        messages: load.messages - errors,
        size: load.size as f64,
        elapsed,
        times,
        errors,
        first_error,
    })
}

/// One send at a time: the latency of a single send.
async fn one_by_one(topic: &TopicName, load: &Load, producer: &Producer) -> Outcome<Figures> {
    let payload = Bytes::from(payload(load.size));
    let progress = Progress::new("produce", Some(load.messages));
    let mut times = Times::new()?;
    let (mut errors, mut first_error) = (0, None);
    let begun = Instant::now();
    for _ in 0..load.messages {
        let sent = Instant::now();
        match producer.send(Message::to(topic.clone(), payload.clone())).await {
            Ok(_) => times.record(sent.elapsed(), 1),
            Err(error) => {
                errors += 1;
                first_error.get_or_insert_with(|| sending_error(&error));
            }
        }
        progress.add(1);
    }
    let elapsed = begun.elapsed();
    progress.finish();
    Ok(Figures {
        messages: load.messages - errors,
        size: load.size as f64,
        elapsed,
        times,
        errors,
        first_error,
    })
}

fn lock(times: &Mutex<Times>) -> MutexGuard<'_, Times> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}
