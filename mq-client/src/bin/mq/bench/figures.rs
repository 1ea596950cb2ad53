//! The figures of a bench, with stable names.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::fail::{Failure, Outcome};
use crate::output::Record;

/// Longest time that can be recorded, microseconds.
const LONGEST_US: u64 = 600_000_000;

/// Times, in microseconds, to three digits.
#[derive(Debug)]
pub(super) struct Times(Histogram<u64>);

impl Times {
    /// No times recorded yet.
    pub(super) fn new() -> Outcome<Self> {
        let histogram = Histogram::new_with_bounds(1, LONGEST_US, 3);
        histogram
            .map(Self)
            .map_err(|error| Failure::new(format!("no histogram: {error}")))
    }

    /// `count` events took this long.
    pub(super) fn record(&mut self, elapsed: Duration, count: u64) {
        let us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record_n(us.clamp(1, LONGEST_US), count);
    }

    fn us(&self, quantile: f64) -> u64 {
        if self.0.is_empty() {
            0
        } else {
            self.0.value_at_quantile(quantile)
        }
    }
}

/// The figures of one run.
#[derive(Debug)]
pub(super) struct Figures {
    /// Messages that succeeded.
    pub(super) messages: u64,
    /// Payload bytes of each message.
    pub(super) size: f64,
    /// The time it took in total.
    pub(super) elapsed: Duration,
    /// The times of messages or batches.
    pub(super) times: Times,
    /// Failed messages or calls.
    pub(super) errors: u64,
    /// The reason of the first failure.
    pub(super) first_error: Option<String>,
}

impl Figures {
    /// The figures as a line of output.
    pub(super) fn record(&self) -> Record {
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        let rate = self.messages as f64 / seconds;
        Record::new()
            .with("messages", self.messages)
            .with("seconds", (seconds * 1e3).round() / 1e3)
            .with("msgs_per_s", rate.round())
            .with("mb_per_s", (rate * self.size / 1e4).round() / 1e2)
            .with("p50_us", self.times.us(0.5))
            .with("p99_us", self.times.us(0.99))
            .with("p999_us", self.times.us(0.999))
            .with("errors", self.errors)
    }

    /// Fails if there were errors.
    pub(super) fn verdict(&self) -> Outcome {
        match (self.errors, &self.first_error) {
            (0, _) => Ok(()),
            (errors, Some(first)) => Err(Failure::new(format!("{errors} error(s), the first: {first}"))),
            (errors, None) => Err(Failure::new(format!("{errors} error(s)"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_promised_names() {
        let mut times = Times::new().unwrap();
        times.record(Duration::from_micros(100), 99);
        times.record(Duration::from_millis(5), 1);
        let figures = Figures {
            messages: 1000,
            size: 1000.0,
            elapsed: Duration::from_secs(2),
            times,
            errors: 0,
            first_error: None,
        };
        let line = serde_json::to_value(figures.record()).unwrap();
        assert_eq!(line["msgs_per_s"], 500.0);
        assert_eq!(line["mb_per_s"], 0.5);
        assert_eq!(line["p50_us"], 100);
        assert!(line["p999_us"].as_u64() >= Some(4990));
        assert_eq!(line["errors"], 0);
    }
}
