//! Distribution of one method's answer times: counts in buckets whose width grows with the time, an eighth of
//! an octave each (as in Gil Tene's HdrHistogram); old counts decay.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Buckets per octave.
const STEPS: u64 = 8;
/// Enough for answers of up to an hour; longer ones are counted in the last bucket.
const BUCKETS: usize = 256;
/// After this many answers all counts are halved, so that old answers do not dominate.
const FADE_AFTER: u32 = 2000;

/// Two threads may lose one of their counts: an estimate tolerates it.
#[derive(Debug)]
pub(super) struct Latencies {
    counts: Vec<AtomicU32>,
    answers: AtomicU32,
}

impl Latencies {
    pub(super) fn new() -> Self {
        Self {
            counts: (0..BUCKETS).map(|_| AtomicU32::new(0)).collect(),
            answers: AtomicU32::new(0),
        }
    }

    pub(super) fn note(&self, elapsed: Duration) {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get(bucket(micros)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if self.answers.fetch_add(1, Ordering::Relaxed) >= FADE_AFTER {
            let mut left = 0;
            for count in &self.counts {
                let half = count.load(Ordering::Relaxed) / 2;
                count.store(half, Ordering::Relaxed);
                left += half;
            }
            self.answers.store(left, Ordering::Relaxed);
        }
    }

    /// Known answers, with older ones weighing less.
    pub(super) fn answers(&self) -> u32 {
        self.answers.load(Ordering::Relaxed)
    }

    /// The `percent`th percentile of the answers, at most an eighth too high.
    pub(super) fn percentile(&self, percent: u32) -> Duration {
        let counts = || {
            self.counts
                .iter()
                .map(|count| u64::from(count.load(Ordering::Relaxed)))
        };
        let mut above = counts().sum::<u64>() * u64::from(100_u32.saturating_sub(percent)) / 100;
        let mut highest = 0;
        for (index, count) in counts().enumerate().rev() {
            if count > above {
                highest = index;
                break;
            }
            above -= count;
        }
        Duration::from_micros(end(highest))
    }
}

/// Up to 8 each number has its own bucket; above that, the highest bit and the three bits after it determine
/// the bucket.
fn bucket(micros: u64) -> usize {
    let octave = u64::from(micros.max(1).ilog2()).saturating_sub(3);
    let index = octave * STEPS + (micros >> octave);
    usize::try_from(index).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

/// The first number that belongs to a later bucket.
fn end(bucket: usize) -> u64 {
    let bucket = u64::try_from(bucket).unwrap_or(u64::MAX);
    let octave = (bucket / STEPS).saturating_sub(1);
    (bucket - octave * STEPS + 1) << octave
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_lies_in_a_bucket_no_wider_than_an_eighth_of_it() {
        for micros in (0..10_000).chain([65_535, 65_536, 1_000_000, 3_600_000_000]) {
            let end = end(bucket(micros));
            assert!(end > micros && end <= micros + micros / 8 + 1, "{micros}: {end}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!(end(BUCKETS - 1) > 3_600_000_000);
    }

    #[test]
    fn percentile_is_what_so_many_answers_did_not_exceed() {
        let latencies = Latencies::new();
        for ms in 1..=1000 {
            latencies.note(Duration::from_millis(ms));
        }
        for (percent, ms) in [(50, 500.0), (95, 950.0), (99, 990.0)] {
            let found = latencies.percentile(percent).as_secs_f64() * 1000.0;
            assert!((ms..=ms * 1.13).contains(&found), "p{percent}: {found} ms");
        }
    }

    #[test]
    fn old_answers_fade() {
        let latencies = Latencies::new();
        (0..2000).for_each(|_| latencies.note(Duration::from_millis(500)));
        (0..10_000).for_each(|_| latencies.note(Duration::from_millis(5)));
        assert!(latencies.percentile(95) < Duration::from_millis(6));
        assert!(latencies.answers() <= FADE_AFTER + 1);
    }
}
