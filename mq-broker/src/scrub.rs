//! The scrub: all that is stored and that nobody may read for long is read again, slowly, so that rot is found and told.
//! What it does to a file is the store's matter; here is when and how fast.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mq_common::ids::{QueueNumber, TopicName};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::core::Core;
use crate::ids::QueueKey;
use crate::store::{Rotten, Scrubbing, Target};
use crate::telemetry::Metrics;

/// Read between two pauses; a larger batch is read whole.
const SLICE_BYTES: u32 = 256 * 1024;
/// The first pass begins this long after the start, if not earlier.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// Producers that write more in a second need the disk ..
const BUSY_BYTES_PER_S: u64 = 4 * 1024 * 1024;
/// .. and then a slice waits so long, and so often, at most.
const YIELD: Duration = Duration::from_secs(1);
const YIELDS_MAX: u32 = 30;

/// See the module.
#[derive(Debug)]
pub(crate) struct Scrub {
    core: Arc<Core>,
    settings: config::Scrub,
    metrics: Metrics,
    /// When the journal's growth was looked at last, and what it was.
    grown: (Instant, u64),
}

impl Scrub {
    pub(crate) fn new(core: Arc<Core>, settings: config::Scrub, metrics: Metrics) -> Self {
        let grown = (Instant::now(), core.journal_growth());
        Self {
            core,
            settings,
            metrics,
            grown,
        }
    }

    /// One pass after the other until `stop`; none if it is switched off.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        if self.settings.every_ms == 0 || self.settings.bytes_per_s == 0 {
            return;
        }
        let every = Duration::from_millis(self.settings.every_ms);
        let mut wait = every.min(FIRST_AFTER);
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            if stop.run_until_cancelled(self.pass()).await.is_none() {
                return;
            }
            wait = every;
        }
    }

    async fn pass(&mut self) {
        let started = Instant::now();
        let (mut bytes, mut damaged) = (0, 0);
        for target in self
            .core
            .published()
            .store
            .scrub_targets(&self.core.recycler().sealed())
        {
            let mut scrubbing = Scrubbing::begin(target);
            while !scrubbing.is_done() {
                self.give_way().await;
                let store = Arc::clone(&self.core.published().store);
                let slice = tokio::task::spawn_blocking(move || {
                    let done = store.scrub(&mut scrubbing, SLICE_BYTES);
                    (scrubbing, done)
                });
                let done = match slice.await {
                    Ok((at, done)) => {
                        scrubbing = at;
                        done
                    }
                    Err(error) => {
                        tracing::error!(%error, ?target, "the scrub broke");
                        break;
                    }
                };
                let (read, rotten) = match done {
                    Ok(done) => done,
                    Err(error) => {
                        tracing::error!(%error, ?target, "the scrub cannot read a file; check the disk");
                        break;
                    }
                };
                bytes += u64::from(read);
                damaged += rotten.len();
                self.metrics.scrub_bytes.inc_by(u64::from(read));
                for rotten in &rotten {
                    self.tell(target, rotten).await;
                }
                tokio::time::sleep(time_of(read, self.settings.bytes_per_s)).await;
            }
        }
        self.metrics.scrub_passes.inc();
        tracing::debug!(bytes, damaged, took = ?started.elapsed(), "scrubbed all that is stored");
    }

    /// Waits while producers need the disk, but not for ever: a broker that is never idle is scrubbed too.
    async fn give_way(&mut self) {
        for _ in 0..YIELDS_MAX {
            let (now, growth) = (Instant::now(), self.core.journal_growth());
            let (then, before) = std::mem::replace(&mut self.grown, (now, growth));
            let elapsed_ms = u64::try_from((now - then).as_millis()).unwrap_or(u64::MAX).max(1);
            let grown = growth.saturating_sub(before);
            // What a moment brought is no measure.
            if grown < BUSY_BYTES_PER_S || grown.saturating_mul(1000) / elapsed_ms < BUSY_BYTES_PER_S {
                return;
            }
            tokio::time::sleep(YIELD).await;
        }
    }

    async fn tell(&self, target: Target, rotten: &Rotten) {
        self.metrics.scrub_damaged.inc();
        let Rotten {
            position,
            end,
            messages,
            what,
        } = rotten;
        let Some((key, first, behind)) = *messages else {
            tracing::error!(?target, position, end, "rot on the disk: {what}");
            return;
        };
        let name = self.name(key).await;
        let (topic, queue) = match &name {
            Some((topic, queue)) => (topic.as_str(), queue.0),
            None => ("deleted", key.0),
        };
        tracing::error!(
            ?target, position, end, topic, queue, first_offset = %first, end_offset = %behind,
            "rot on the disk: {what}"
        );
    }

    async fn name(&self, key: QueueKey) -> Option<(TopicName, QueueNumber)> {
        let found = self.core.visit(move |holder, _| {
            let queue = holder.state().queue(key)?;
            Some((queue.topic.as_ref().clone(), queue.number))
        });
        found.await.ok().flatten()
    }
}

/// How long reading so many bytes may take.
fn time_of(bytes: u32, bytes_per_s: u64) -> Duration {
    let nanos = u64::from(bytes).saturating_mul(1_000_000_000) / bytes_per_s.max(1);
    Duration::from_nanos(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_takes_the_time_that_its_rate_gives() {
        assert_eq!(time_of(SLICE_BYTES, 5 << 20), Duration::from_millis(50));
        assert_eq!(time_of(0, 1), Duration::ZERO);
        assert_eq!(time_of(1, u64::MAX), Duration::ZERO);
    }
}
