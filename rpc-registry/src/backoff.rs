//! The wait before the next attempt: doubling up to a limit, with jitter, so that a thousand clients of a
//! registry that comes back do not all reconnect at once. Attempts are not counted: a registration is never
//! given up.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(longest: Duration) -> Self {
        Self {
            next: FIRST.min(longest),
            longest,
        }
    }

    /// The wait before the next attempt: a random time between half of the current step and all of it.
    pub(crate) fn delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.longest);
        step.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Starts again with the shortest wait, after a success.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.longest);
    }
}

/// `base`, randomly longer or shorter by up to a fifth: for things that many processes do periodically.
pub(crate) fn jittered(base: Duration) -> Duration {
    base.mul_f64(0.8 + fastrand::f64() * 0.4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        for step_ms in [100, 200, 400, 800, 1000, 1000] {
            let step = Duration::from_millis(step_ms);
            let delay = backoff.delay();
            assert!(delay >= step / 2 && delay <= step, "{delay:?} for {step:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= FIRST);
    }
}
