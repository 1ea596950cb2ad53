//! `mq bench produce`: the client's fast path, one writer, batches of one size.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use mq_client::{Client, PushError};
use mq_common::ids::{Durability, TopicName};

use super::figures::{Figures, Times};
use super::payload;
use crate::fail::{Failure, Outcome, sending};
use crate::output::Progress;

/// What is sent, and how.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) messages: u64,
    pub(super) size: usize,
    pub(super) durability: Option<Durability>,
    pub(super) batch_bytes: usize,
    pub(super) in_flight: Option<usize>,
}

/// Records pushed between two looks at the progress bar.
const PROGRESS_EVERY: u64 = 1 << 14;

/// Runs it.
pub(super) async fn run(topic: &TopicName, load: &Load, client: &Client) -> Outcome<Figures> {
    let mut builder = client.producer().batch_bytes(load.batch_bytes);
    if let Some(durability) = load.durability {
        builder = builder.durability(durability);
    }
    if let Some(messages) = load.in_flight {
        builder = builder.in_flight_bytes(
            messages
                .max(1)
                .saturating_mul(load.size.max(1))
                .max(load.batch_bytes),
        );
    }
    let producer = builder.build();
    let mut writer = producer
        .writer(topic.clone())
        .await
        .map_err(|error| Failure::new(error.to_string()))?;
    let times = Arc::new(Mutex::new(Times::new()?));
    let seen = Arc::clone(&times);
    /*OBSERVE*/
    drop(seen);

    let payload = payload(load.size);
    let progress = Progress::new("produce", Some(load.messages));
    let begun = Instant::now();
    for done in 0..load.messages {
        while let Err(error) = writer.push(None, &payload) {
            match error {
                PushError::Full => writer.ready().await,
                other => return Err(Failure::new(other.to_string())),
            }
        }
        if done % PROGRESS_EVERY == 0 {
            progress.add(if done == 0 { 0 } else { PROGRESS_EVERY });
            // Lets the sender's tasks run where there is one core only.
            tokio::task::yield_now().await;
        }
    }
    let summary = writer.flush().await;
    let elapsed = begun.elapsed();
    progress.finish();
    let times = std::mem::replace(
        &mut *times.lock().unwrap_or_else(PoisonError::into_inner),
        Times::new()?,
    );
    Ok(Figures {
        messages: summary.acked,
        size: load.size as f64,
        elapsed,
        times,
        errors: summary.failed + summary.unknown,
        first_error: summary.first_error.as_ref().map(sending),
    })
}
