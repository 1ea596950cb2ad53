//! The scrub: slowly rereads all stored data, which otherwise might not be read for a long time, so that bit
//! rot is found and reported. What it does to a file is up to the store; here is when, and how fast.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mq_common::ids::{QueueNumber, TopicName};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::core::Core;
use crate::ids::QueueKey;
use crate::store::{Rotten, Scrubbing, Target};
use crate::telemetry::Metrics;

/// Bytes read at once, unless a batch is larger or the search for damage needs more: then up to twice as much
/// is read between two pauses.
const SLICE_BYTES: u32 = 128 * 1024;
/// The first pass begins this long after the start at the latest.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// Producers that write more than this per second need the disk ..
const BUSY_BYTES_PER_S: u64 = 4 * 1024 * 1024;
/// .. and then a slice waits this long, and this many times, at most.
const YIELD: Duration = Duration::from_secs(1);
const YIELDS_MAX: u32 = 30;

/// Schedules the scrub and limits its rate.
#[derive(Debug)]
pub(crate) struct Scrub {
    core: Arc<Core>,
    settings: config::Scrub,
    metrics: Metrics,
    growth: Growth,
    stop: CancellationToken,
}

/// How fast the journal grows.
#[derive(Debug)]
struct Growth {
    /// Start of the measurement, and the bytes written by then.
    since: (Instant, u64),
}

impl Growth {
    const fn new(now: Instant, written: u64) -> Self {
        Self {
            since: (now, written),
        }
    }

    /// Whether producers need the disk now, given the bytes written in all. A slice takes a fraction of a
    /// second, too short for a rate: until a second has passed, only an amount that would be much for the
    /// whole second counts.
    fn is_busy(&mut self, now: Instant, written: u64) -> bool {
        let (then, before) = self.since;
        let elapsed_ms = u64::try_from((now - then).as_millis()).unwrap_or(u64::MAX);
        let grown = written.saturating_sub(before);
        let is_busy = grown.saturating_mul(1000) / elapsed_ms.max(1000) >= BUSY_BYTES_PER_S;
        if is_busy || elapsed_ms >= 1000 {
            self.since = (now, written);
        }
        is_busy
    }
}

impl Scrub {
    pub(crate) fn new(core: Arc<Core>, settings: config::Scrub, metrics: Metrics) -> Self {
        let growth = Growth::new(Instant::now(), core.journal_growth());
        Self {
            core,
            settings,
            metrics,
            growth,
            stop: CancellationToken::new(),
        }
    }

    /// Runs one pass after another until `stop`; none if the scrub is switched off.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        self.stop = stop.clone();
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
                let mut pacer = self.pacer();
                let slice = tokio::task::spawn_blocking(move || {
                    let mut rotten = Vec::new();
                    let mut pause = |bytes| pacer.pause(bytes);
                    let done = store.scrub(&mut scrubbing, SLICE_BYTES, &mut rotten, &mut pause);
                    (scrubbing, done.map(|read| (read, pacer.waited_bytes)), rotten)
                });
                let (done, rotten) = match slice.await {
                    Ok((at, done, rotten)) => {
                        scrubbing = at;
                        (done, rotten)
                    }
                    Err(error) => {
                        tracing::error!(%error, ?target, "the scrub panicked");
                        break;
                    }
                };
                damaged += rotten.len();
                for rotten in &rotten {
                    self.tell(target, rotten).await;
                }
                let (read, waited_bytes) = match done {
                    Ok(done) => done,
                    Err(_) if self.stop.is_cancelled() => return,
                    Err(error) if error.is_passing() => {
                        tracing::warn!(%error, ?target, "the scrub skips the rest of a file");
                        break;
                    }
                    Err(error) => {
                        damaged += 1;
                        self.metrics.scrub_damaged.inc();
                        tracing::error!(%error, ?target, "the scrub cannot read the rest of a file; check the disk");
                        break;
                    }
                };
                bytes += u64::from(read) + waited_bytes;
                self.metrics.scrub_bytes.inc_by(u64::from(read));
                tokio::time::sleep(time_of(read, self.settings.bytes_per_s)).await;
            }
        }
        self.metrics.scrub_passes.inc();
        tracing::debug!(bytes, damaged, took = ?started.elapsed(), "scrubbed all stored data");
    }

    fn pacer(&self) -> Pacer {
        Pacer {
            bytes_per_s: self.settings.bytes_per_s,
            metrics: self.metrics.clone(),
            stop: self.stop.clone(),
            runtime: tokio::runtime::Handle::current(),
            waited_bytes: 0,
        }
    }

    /// Waits while producers need the disk, but not for ever: a broker that is never idle is scrubbed, too.
    async fn give_way(&mut self) {
        for _ in 0..YIELDS_MAX {
            if !self.growth.is_busy(Instant::now(), self.core.journal_growth()) {
                return;
            }
            tokio::time::sleep(YIELD).await;
        }
    }

    /// Reports damage: counted once it has been logged.
    async fn tell(&self, target: Target, rotten: &Rotten) {
        self.log(target, rotten).await;
        self.metrics.scrub_damaged.inc();
    }

    async fn log(&self, target: Target, rotten: &Rotten) {
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

/// Keeps the rate within a slice, on a thread that may block.
struct Pacer {
    bytes_per_s: u64,
    metrics: Metrics,
    stop: CancellationToken,
    runtime: tokio::runtime::Handle,
    /// Bytes for which it has waited.
    waited_bytes: u64,
}

impl Pacer {
    /// Waits as long as reading this many bytes may take; `false` = stop.
    fn pause(&mut self, bytes: u32) -> bool {
        self.waited_bytes += u64::from(bytes);
        self.metrics.scrub_bytes.inc_by(u64::from(bytes));
        let (rest, stopped) = (time_of(bytes, self.bytes_per_s), self.stop.cancelled());
        let waited = self
            .runtime
            .block_on(async { tokio::time::timeout(rest, stopped).await });
        waited.is_err()
    }
}

/// How long reading this many bytes may take.
fn time_of(bytes: u32, bytes_per_s: u64) -> Duration {
    let nanos = u64::from(bytes).saturating_mul(1_000_000_000) / bytes_per_s.max(1);
    Duration::from_nanos(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_takes_the_time_that_its_rate_gives() {
        assert_eq!(time_of(SLICE_BYTES, 5 << 20), Duration::from_millis(25));
        assert_eq!(time_of(0, 1), Duration::ZERO);
        assert_eq!(time_of(1, u64::MAX), Duration::ZERO);
    }

    #[test]
    fn producers_are_given_way_to_above_the_rate_that_is_said_and_not_below() {
        for (slice_ms, bytes_per_s, expected) in [
            (50, BUSY_BYTES_PER_S * 3 / 2, true),
            (50, BUSY_BYTES_PER_S / 2, false),
            (5_000, BUSY_BYTES_PER_S * 3 / 2, true),
            (5_000, BUSY_BYTES_PER_S / 2, false),
        ] {
            let begin = Instant::now();
            let mut growth = Growth::new(begin, 0);
            let mut was_busy = false;
            for slice in 1..=40 {
                let passed_ms = slice * slice_ms;
                let now = begin + Duration::from_millis(passed_ms);
                was_busy |= growth.is_busy(now, bytes_per_s * passed_ms / 1000);
            }
            assert_eq!(
                was_busy, expected,
                "{bytes_per_s} bytes a second, seen each {slice_ms} ms"
            );
        }
    }

    #[test]
    fn a_burst_is_over_when_a_second_brought_little() {
        let begin = Instant::now();
        let mut growth = Growth::new(begin, 0);
        assert!(growth.is_busy(begin + Duration::from_millis(10), BUSY_BYTES_PER_S));
        assert!(!growth.is_busy(begin + Duration::from_millis(1010), BUSY_BYTES_PER_S + 1000));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_searched_behind_damage_takes_the_time_of_its_rate_and_ends_when_told() {
        let stop = CancellationToken::new();
        let pacer = || Pacer {
            bytes_per_s: 1_000_000,
            metrics: Metrics::new().0,
            stop: stop.clone(),
            runtime: tokio::runtime::Handle::current(),
            waited_bytes: 0,
        };
        let pause = async |mut pacer: Pacer| {
            let begun = tokio::time::Instant::now();
            let (done, waited) = tokio::sync::oneshot::channel();
            let slice = std::thread::spawn(move || {
                let goes_on = (0..4).all(|_| pacer.pause(250_000));
                done.send(goes_on).unwrap();
            });
            let goes_on = waited.await.unwrap();
            slice.join().unwrap();
            (goes_on, begun.elapsed().as_millis() / 100)
        };
        assert_eq!(pause(pacer()).await, (true, 10));
        stop.cancel();
        assert_eq!(pause(pacer()).await, (false, 0));
    }
}
