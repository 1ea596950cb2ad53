//! Leaves the disk to producers while there are any: after each piece of work, a background task rests long
//! enough to keep to its share of wall time. For threads that may block.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::store::Pace;

/// The longest piece of work that counts: a longer one does not make the rest longer.
const PIECE_MAX: Duration = Duration::from_secs(1);
/// Shorter rests are accumulated, because no timer can wait for so short a time.
const REST_MIN: Duration = Duration::from_millis(20);

/// Keeps a background task to its share of the time.
pub(crate) struct Pacer {
    /// Bytes written to the journal so far.
    written: Box<dyn Fn() -> u64 + Send>,
    stop: CancellationToken,
    runtime: Handle,
    percent: u64,
    written_before: u64,
    /// Rest that is still owed.
    owed: Duration,
}

impl Pacer {
    /// For work alongside this core, to which producers leave this share of the time. Call it within the
    /// runtime. Rests end early when `stop` is cancelled.
    pub(crate) fn new(core: &Arc<Core>, stop: &CancellationToken, percent: u64) -> Self {
        let core = Arc::clone(core);
        Self::alongside(move || core.journal_growth(), stop, percent)
    }

    fn alongside(written: impl Fn() -> u64 + Send + 'static, stop: &CancellationToken, percent: u64) -> Self {
        Self {
            written_before: written(),
            written: Box::new(written),
            stop: stop.clone(),
            runtime: Handle::current(),
            percent,
            owed: Duration::ZERO,
        }
    }
}

impl fmt::Debug for Pacer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pacer")
            .field("percent", &self.percent)
            .field("owed", &self.owed)
            .finish_non_exhaustive()
    }
}

impl Pace for Pacer {
    fn pause(&mut self, took: Duration) -> bool {
        self.owed += rest(took, self.percent);
        if self.owed < REST_MIN {
            return !self.stop.is_cancelled();
        }
        let rest = std::mem::take(&mut self.owed);
        let written = (self.written)();
        let is_producing = written != self.written_before;
        self.written_before = written;
        if is_producing {
            let stopped = self.stop.cancelled();
            let waited = self
                .runtime
                .block_on(async { tokio::time::timeout(rest, stopped).await });
            return waited.is_err();
        }
        !self.stop.is_cancelled()
    }
}

/// The same rule for a task that checks now and then whether it may work, and must not block.
#[derive(Debug)]
pub(crate) struct Turns {
    percent: u64,
    rests_until: Instant,
    written: u64,
}

impl Turns {
    /// For work that takes this percentage of the time while there are producers.
    pub(crate) fn new(percent: u64) -> Self {
        Self {
            percent,
            rests_until: Instant::now(),
            written: 0,
        }
    }

    /// Whether it may work now: its rest is over, or nothing else has been written to the journal since it worked.
    pub(crate) fn may_work(&self, now: Instant, written: u64) -> bool {
        self.rests_until <= now || written == self.written
    }

    /// It has worked from `begun` until `now`; `written` bytes have been written to the journal, including its own.
    pub(crate) fn worked(&mut self, begun: Instant, now: Instant, written: u64) {
        self.rests_until = now + rest(now.saturating_duration_since(begun), self.percent);
        self.written = written;
    }
}

/// How long to rest after work that took `took` in order to use this share of the time.
fn rest(took: Duration, percent: u64) -> Duration {
    let percent = u32::try_from(percent.clamp(1, 100)).unwrap_or(100);
    took.min(PIECE_MAX) * (100 - percent) / percent
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_quarter_of_the_time_means_three_quarters_of_rest() {
        let took = Duration::from_millis(10);
        assert_eq!(rest(took, 25), Duration::from_millis(30));
        assert_eq!(rest(took, 100), Duration::ZERO);
        assert_eq!(rest(Duration::from_secs(60), 50), PIECE_MAX);
    }

    #[test]
    fn who_takes_turns_rests_as_long_while_others_write() {
        let mut turns = Turns::new(25);
        let begun = Instant::now();
        assert!(turns.may_work(begun, 7), "it did nothing yet");
        let now = begun + Duration::from_millis(100);
        turns.worked(begun, now, 7);
        assert!(turns.may_work(now, 7), "nobody else writes");
        assert!(!turns.may_work(now, 8));
        assert!(!turns.may_work(now + Duration::from_millis(299), 8));
        assert!(turns.may_work(now + Duration::from_millis(300), 8));
    }

    /// Ten pieces of work on a thread of its own, with a clock that advances only in rests; returns the
    /// rests.
    async fn rests(mut pacer: Pacer, piece: Duration) -> (Duration, bool) {
        let begun = tokio::time::Instant::now();
        let (done, waited) = tokio::sync::oneshot::channel();
        let work = std::thread::spawn(move || {
            let goes_on = (0..10).all(|_| pacer.pause(piece));
            done.send(goes_on).unwrap();
        });
        let goes_on = waited.await.unwrap();
        work.join().unwrap();
        (begun.elapsed(), goes_on)
    }

    #[tokio::test(start_paused = true)]
    async fn work_rests_for_producers_and_for_nobody_else() {
        let stop = CancellationToken::new();
        let written = Arc::new(AtomicU64::new(0));
        let producing = {
            let written = Arc::clone(&written);
            move || written.fetch_add(1, Ordering::Relaxed)
        };
        let near = |found: Duration, ms: u64| {
            let found = u64::try_from(found.as_millis()).unwrap();
            // Timers have a resolution of a millisecond.
            (ms..=ms + 20).contains(&found)
        };
        let alongside = || Pacer::alongside(producing.clone(), &stop, 25);
        let (rested, goes_on) = rests(alongside(), Duration::from_millis(10)).await;
        assert!(goes_on && near(rested, 300), "{rested:?}");
        let (rested, _) = rests(alongside(), Duration::from_millis(2)).await;
        assert!(
            near(rested, 48),
            "accumulated, and a rest that is too short is owed: {rested:?}"
        );
        let quiet = Pacer::alongside(|| 7, &stop, 25);
        assert_eq!(
            rests(quiet, Duration::from_millis(10)).await,
            (Duration::ZERO, true)
        );
        let pacer = alongside();
        stop.cancel();
        assert_eq!(
            rests(pacer, Duration::from_secs(1)).await,
            (Duration::ZERO, false)
        );
    }
}
