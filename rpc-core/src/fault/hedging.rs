//! Hedging: when an answer is late, another instance is asked too and the first answer wins: Dean and Barroso,
//! *The Tail at Scale*, 2013; gRPC's hedging policy (proposal A6), brpc's and Finagle's backup requests.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::latencies::Latencies;
use super::{Failure, FaultTolerance, FaultTolerancePlugin, Hedge, Verdict};
use crate::plugin::{PluginError, Settings};

/// A method needs this many answers before its usual time is known.
const ANSWERS_MIN: u32 = 100;
/// Methods whose answers are measured; further methods are not hedged. Names come from this program, not from
/// peers.
const METHODS_MAX: usize = 1000;
/// More attempts than this would be flooding, not hedging.
const ATTEMPTS_MAX: usize = 10;

/// Asks another instance if the first has not answered within the method's usual time (the 95th percentile of
/// its answers) or a fixed time; the slower call is cancelled, and does not count as a failure of its
/// instance. An attempt that fails with a temporary error is followed by the next one at once. Each attempt
/// beyond the first is taken from the retry budget, so that a slow system does not get ten times the load.
///
/// Calls of methods that are not idempotent are never hedged; they are tried at another instance only if they
/// definitely were not executed, as by [`super::Failover`].
///
/// Settings: `attempts` (2; the total, 2 to 10), and `percentile` (95; 50 to 99) or `after_ms`.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// use rpc_core::{Invoker, fault::Hedging};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let by_value = Arc::new(Hedging::after(Duration::from_millis(20)));
/// let invoker = Invoker::builder().direct(["127.0.0.1:9090"]).fault_tolerance(by_value).build().await?;
/// let by_name = Invoker::builder().direct(["127.0.0.1:9090"]).fault_tolerance("hedging?percentile=99").build().await?;
/// # drop((invoker, by_name));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Hedging {
    attempts: usize,
    late: Late,
}

#[derive(Debug)]
enum Late {
    Fixed(Duration),
    Percentile(u32, ArcSwap<Vec<Arc<OfMethod>>>),
}

#[derive(Debug)]
struct OfMethod {
    service: String,
    method: String,
    latencies: Latencies,
}

impl Hedging {
    /// An answer is late after this time.
    #[must_use]
    pub const fn after(time: Duration) -> Self {
        Self {
            attempts: 2,
            late: Late::Fixed(time),
        }
    }

    /// An answer is late when it takes longer than this percentile (50 to 99) of the method's answers; a
    /// method is not hedged until it has been answered a hundred times.
    #[must_use]
    pub fn percentile(percent: u32) -> Self {
        Self {
            attempts: 2,
            late: Late::Percentile(percent.clamp(50, 99), ArcSwap::default()),
        }
    }

    /// Sets the total number of attempts, 2 to 10. Default 2.
    #[must_use]
    pub fn attempts(mut self, attempts: usize) -> Self {
        self.attempts = attempts.clamp(2, ATTEMPTS_MAX);
        self
    }

    fn from_settings(settings: &Settings) -> Result<Self, PluginError> {
        settings.only(&["attempts", "percentile", "after_ms"])?;
        let refuse = |key: &str, reason: String| Err(PluginError::setting(key, reason));
        let attempts = settings.parse("attempts", 2)?;
        if !(2..=ATTEMPTS_MAX).contains(&attempts) {
            return refuse("attempts", format!("`{attempts}`: expected 2 to {ATTEMPTS_MAX}"));
        }
        let percent = settings.parse("percentile", 95)?;
        if !(50..=99).contains(&percent) {
            return refuse("percentile", format!("`{percent}`: expected 50 to 99"));
        }
        let hedging = match (settings.text("after_ms"), settings.text("percentile")) {
            (Some(_), Some(_)) => {
                return refuse(
                    "after_ms",
                    "`percentile` is set too; expected one of them".to_owned(),
                );
            }
            (Some(_), None) => Self::after(Duration::from_millis(settings.parse("after_ms", 0)?)),
            (None, _) => Self::percentile(percent),
        };
        Ok(hedging.attempts(attempts))
    }
}

fn find<'a>(methods: &'a [Arc<OfMethod>], service: &str, method: &str) -> Option<&'a Arc<OfMethod>> {
    methods
        .iter()
        .find(|known| known.method == method && known.service == service)
}

impl FaultTolerance for Hedging {
    fn on_failure(&self, failure: &Failure<'_>) -> Verdict {
        let attempts = usize::try_from(failure.attempt).unwrap_or(usize::MAX);
        if !failure.is_passing() || attempts >= self.attempts {
            return Verdict::Return;
        }
        Verdict::Retry {
            after: failure.error.retry_after.unwrap_or_default(),
        }
    }

    fn hedges(&self) -> bool {
        true
    }

    fn hedge(&self, service: &str, method: &str) -> Hedge {
        let after = match &self.late {
            Late::Fixed(time) => Some(*time),
            Late::Percentile(percent, methods) => find(&methods.load(), service, method)
                .filter(|known| known.latencies.answers() >= ANSWERS_MIN)
                .map(|known| known.latencies.percentile(*percent)),
        };
        Hedge {
            after,
            attempts: self.attempts,
        }
    }

    fn answered(&self, service: &str, method: &str, elapsed: Duration) {
        let Late::Percentile(_, methods) = &self.late else {
            return;
        };
        let note = || find(&methods.load(), service, method).map(|known| known.latencies.note(elapsed));
        if note().is_some() {
            return;
        }
        methods.rcu(|known| {
            let mut known = Vec::clone(known);
            if known.len() < METHODS_MAX && find(&known, service, method).is_none() {
                known.push(Arc::new(OfMethod {
                    service: service.to_owned(),
                    method: method.to_owned(),
                    latencies: Latencies::new(),
                }));
            }
            known
        });
        // None: too many methods.
        let _noted = note();
    }
}

crate::plugin!(FaultTolerancePlugin, "hedging", |settings| {
    Ok(Arc::new(Hedging::from_settings(settings)?))
});

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn late_is_what_95_percent_of_a_methods_own_answers_do_not_exceed() {
        let hedging = Hedging::from_settings(&Settings::new()).unwrap();
        let after = |method| hedging.hedge("s", method).after;
        for answer in 0..100 {
            assert_eq!(after("fast"), None, "known after {answer} answers");
            hedging.answered("s", "fast", MS * (answer % 20 + 1));
        }
        assert!(
            after("fast").is_some_and(|after| (19 * MS..23 * MS).contains(&after)),
            "{:?}",
            after("fast")
        );
        assert_eq!(after("other"), None);
        assert_eq!(hedging.hedge("another", "fast").after, None);
    }

    #[test]
    fn settings_are_checked() {
        let with = |key: &str, value: &str| Hedging::from_settings(&Settings::new().with(key, value));
        assert_eq!(
            with("after_ms", "20").unwrap().hedge("s", "m").after,
            Some(20 * MS)
        );
        assert_eq!(with("attempts", "3").unwrap().hedge("s", "m").attempts, 3);
        for (key, value) in [
            ("attempts", "1"),
            ("attempts", "11"),
            ("percentile", "100"),
            ("after", "1"),
        ] {
            assert!(with(key, value).is_err(), "{key}={value}");
        }
        let both = Settings::new().with("after_ms", "1").with("percentile", "99");
        assert!(Hedging::from_settings(&both).is_err());
    }
}
