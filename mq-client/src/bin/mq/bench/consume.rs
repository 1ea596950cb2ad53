//! `mq bench consume`: a new group reads a backlog; the times are those between two chunks.

use std::time::{Duration, Instant};

use mq_client::Client;
use mq_common::ids::TopicName;

use super::figures::{Figures, Times};
use super::own_group;
use crate::fail::{Failure, Outcome};
use crate::output::Progress;

/// If no message comes for this long, there are no more.
const IDLE: Duration = Duration::from_secs(10);

/// Runs it.
pub(super) async fn run(topic: &TopicName, messages: u64, client: &Client) -> Outcome<Figures> {
    let mut subscription = client.consumer(topic.clone(), own_group())?.subscribe().await?;
    let progress = Progress::new("consume", Some(messages));
    let (mut count, mut bytes, mut errors) = (0_u64, 0_u64, 0_u64);
    let mut times = Times::new()?;
    // The clock starts with the first message: joining the group is not measured.
    let mut begun = None;
    let mut last = Instant::now();
    while count < messages {
        let Ok(chunk) = tokio::time::timeout(IDLE, subscription.poll()).await else {
            break;
        };
        let Some(chunk) = chunk else { break };
        let now = Instant::now();
        match begun {
            None => begun = Some(now),
            Some(_) => times.record(now - last, 1),
        }
        last = now;
        let before = count;
        let read = chunk.for_each(|_, record| {
            count += 1;
            bytes += record.payload.len() as u64;
        });
        errors += u64::from(read.is_err());
        progress.add(count - before);
        if subscription.ack_chunk(&chunk).is_err() {
            errors += 1;
        }
    }
    let elapsed = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
    progress.finish();
    subscription.close().await?;
    if count < messages {
        return Err(Failure::new(format!(
            "{count} of {messages} messages came; `{topic}` contains no more"
        )));
    }
    Ok(Figures {
        messages: count,
        size: bytes as f64 / count.max(1) as f64,
        elapsed,
        times,
        errors,
        first_error: None,
    })
}
