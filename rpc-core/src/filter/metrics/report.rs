//! Statistics as values.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BUCKETS, FIRST_BUCKET_US, Series};
use crate::error::Code;
use crate::filter::Side;

/// Statistics of one method's calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MethodMetrics {
    /// The side of the calls on which it was counted.
    pub side: Side,
    /// The service's name.
    pub service: String,
    /// The method's name.
    pub method: String,
    /// Calls running now.
    pub in_flight: u64,
    /// Calls that succeeded.
    pub ok: u64,
    /// Calls that ended with an error, by the name of its [`Code`]; `App` is the method's own.
    pub errors: BTreeMap<String, u64>,
    /// Calls that were cancelled or lost before they had an answer.
    pub abandoned: u64,
    /// Duration of calls with an answer.
    pub latency: Latency,
}

/// A histogram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Latency {
    /// Increasing; the last bucket has no upper bound.
    pub buckets: Vec<Bucket>,
    /// The sum of all durations, in µs.
    pub sum_us: u64,
}

/// Calls that took longer than the previous bucket's upper bound, but not longer than this one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its upper bound in µs.
    pub end_us: Option<u64>,
    /// Number of calls.
    pub calls: u64,
}

impl MethodMetrics {
    /// All completed calls.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.ok + self.abandoned + self.errors.values().sum::<u64>()
    }
}

impl Latency {
    /// The upper bound of the bucket below which this share (0 to 1) of the calls lies; `None` without calls,
    /// or if it lies above the last bound.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let calls: u64 = self.buckets.iter().map(|bucket| bucket.calls).sum();
        if calls == 0 {
            return None;
        }
        let mut below = 0;
        let bucket = self.buckets.iter().find(|bucket| {
            below += bucket.calls;
            #[expect(clippy::cast_precision_loss, reason = "a share of very many calls")]
            let reached = below as f64 >= share * calls as f64;
            reached
        })?;
        bucket.end_us.map(Duration::from_micros)
    }
}

impl Series {
    pub(super) fn report(&self, side: Side, service: &str, method: &str) -> MethodMetrics {
        let errors = (1_u8..).zip(&self.errors[1..]);
        let errors = errors.map(|(number, count)| {
            let code = format!("{:?}", Code::from_number(number));
            (code, count.load(Ordering::Relaxed))
        });
        let ends = (0..BUCKETS)
            .map(|index| Some(FIRST_BUCKET_US << index))
            .chain([None]);
        let buckets = ends.zip(&self.buckets).map(|(end_us, calls)| Bucket {
            end_us,
            calls: calls.load(Ordering::Relaxed),
        });
        MethodMetrics {
            side,
            service: service.to_owned(),
            method: method.to_owned(),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            ok: self.ok.load(Ordering::Relaxed),
            errors: errors.filter(|(_, count)| *count > 0).collect(),
            abandoned: self.abandoned.load(Ordering::Relaxed),
            latency: Latency {
                buckets: buckets.collect(),
                sum_us: self.sum_us.load(Ordering::Relaxed),
            },
        }
    }
}
