//! Limits the calls per second: a token bucket for each method, each peer or all together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Filter, FilterPlugin, Next, Per, Side};
use crate::BoxFuture;
use crate::dispatch::Answer;
use crate::error::{Code, Executed, RpcError};
use crate::message::Request;
use crate::plugin::{PluginError, Settings};

/// Keys with a bucket of their own; any further ones share one bucket.
const KEYS_MAX: usize = 10_000;
/// All buckets are scanned for full ones at most this often, so that a peer that keeps producing new keys
/// costs others little.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Answers calls above a rate with `Overloaded`, not executed, and states after which time one will pass. By
/// name: `rate_limit?per_s=100&burst=20&per=method`, where `burst` (default: one second's worth) and `per`
/// (`all`, `method` or `peer`; default `method`) are optional. At most 10,000 methods or peers that called
/// recently are counted separately; if there are more, the newest share one rate.
///
/// ```
/// use std::sync::Arc;
/// use rpc_core::filter::{Per, RateLimit};
/// use rpc_core::{Invoker, Provider};
///
/// let by_value = Provider::builder().filter(Arc::new(RateLimit::new(100.0, 20).per(Per::Peer)));
/// let by_name = Invoker::builder().filter("rate_limit?per_s=100&burst=20");
/// # drop((by_value, by_name));
/// ```
#[derive(Debug)]
pub struct RateLimit {
    rate: Rate,
    per: Per,
    /// Locked for the arithmetic of one call.
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    table: HashMap<Box<str>, Bucket>,
    /// When full buckets were last searched for.
    swept: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    per_s: f64,
    burst: f64,
}

/// The calls left to one key. Pure: the time is an argument.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    calls: f64,
    filled: Instant,
}

impl RateLimit {
    /// `per_s` calls per second for each method, and up to `burst` (at least 1) at once after a pause. If the
    /// rate is not a number above 0, one burst passes and then nothing.
    #[must_use]
    pub fn new(per_s: f64, burst: u32) -> Self {
        Self {
            rate: Rate {
                per_s: if per_s > 0.0 { per_s } else { 0.0 },
                burst: f64::from(burst.max(1)),
            },
            per: Per::default(),
            buckets: Mutex::default(),
        }
    }

    /// Sets what is counted together. Default: each method.
    #[must_use]
    pub fn per(mut self, per: Per) -> Self {
        self.per = per;
        self
    }

    fn from_settings(settings: &Settings) -> Result<Self, PluginError> {
        settings.only(&["per_s", "burst", "per"])?;
        let refuse = |reason| PluginError::setting("per_s", reason);
        let per_s: f64 = settings.parse("per_s", f64::NAN)?;
        if settings.text("per_s").is_none() {
            return Err(refuse(
                "missing; set the number of calls per second, as in `rate_limit?per_s=100`",
            ));
        }
        if !per_s.is_finite() || per_s <= 0.0 {
            return Err(refuse("expected a number above 0"));
        }
        // One second's worth, at least 1.
        let burst = settings.parse("burst", 0_u32)?;
        let mut limit = Self::new(per_s, burst).per(settings.parse("per", Per::default())?);
        if burst == 0 {
            limit.rate.burst = per_s.max(1.0);
        }
        Ok(limit)
    }

    fn take(&self, request: &Request) -> Result<(), Duration> {
        let (key, now) = (self.per.key(request), request.started);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.table.get_mut(&*key) {
            return bucket.take(self.rate, now);
        }
        let mut key = Box::from(key);
        buckets.sweep(self.rate, now);
        if buckets.table.len() >= KEYS_MAX {
            key = Box::from("");
        }
        let full = Bucket {
            calls: self.rate.burst,
            filled: now,
        };
        buckets.table.entry(key).or_insert(full).take(self.rate, now)
    }
}

impl Buckets {
    /// Makes space if there is none and this was not tried just now.
    fn sweep(&mut self, rate: Rate, now: Instant) {
        let soon = |swept: Instant| now.saturating_duration_since(swept) < SWEEP_EVERY;
        if self.table.len() < KEYS_MAX || self.swept.is_some_and(soon) {
            return;
        }
        self.swept = Some(now);
        // A peer whose bucket has been full for a while loses nothing by getting a new one.
        self.table.retain(|_, bucket| !bucket.is_full(rate, now));
    }
}

impl Bucket {
    fn fill(&mut self, rate: Rate, now: Instant) {
        // Calls arrive here in a different order than they started in; a late one adds nothing.
        let since = now.saturating_duration_since(self.filled);
        self.calls = since
            .as_secs_f64()
            .mul_add(rate.per_s, self.calls)
            .min(rate.burst);
        self.filled = self.filled.max(now);
    }

    fn is_full(mut self, rate: Rate, now: Instant) -> bool {
        self.fill(rate, now);
        self.calls >= rate.burst
    }

    /// Takes one call, or returns the time until there will be one.
    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.fill(rate, now);
        if self.calls >= 1.0 {
            self.calls -= 1.0;
            return Ok(());
        }
        let wait = Duration::try_from_secs_f64((1.0 - self.calls) / rate.per_s);
        Err(wait.unwrap_or(Duration::MAX).min(Duration::from_hours(24)))
    }
}

impl Filter for RateLimit {
    fn call<'a>(&'a self, _: Side, request: Request, next: &'a dyn Next) -> BoxFuture<'a, Answer> {
        match self.take(&request) {
            Ok(()) => next.run(request),
            Err(wait) => {
                let message = format!(
                    "more than {} calls per second to `{}`; retry in {wait:?}",
                    self.rate.per_s, request.method.name
                );
                let mut error = RpcError::new(Code::Overloaded, Executed::No, message);
                error.retry_after = Some(wait);
                Box::pin(std::future::ready(Err(error)))
            }
        }
    }
}

crate::plugin!(FilterPlugin, "rate_limit", |settings| {
    Ok(Arc::new(RateLimit::from_settings(settings)?))
});

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{request, settings_are_checked_by};

    #[test]
    fn burst_passes_then_the_rate_and_the_wait_is_exact() {
        let rate = Rate {
            per_s: 10.0,
            burst: 3.0,
        };
        let start = Instant::now();
        let mut bucket = Bucket {
            calls: 3.0,
            filled: start,
        };
        for _ in 0..3 {
            assert_eq!(bucket.take(rate, start), Ok(()));
        }
        let wait = bucket.take(rate, start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(100));
        assert!(bucket.take(rate, start + wait / 2).is_err());
        assert_eq!(bucket.take(rate, start + wait + Duration::from_micros(1)), Ok(()));
        assert!(bucket.take(rate, start).is_err(), "time does not go back");
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_allow(gaps in prop::collection::vec(0_u64..300, 1..200), burst in 1_u32..10) {
            let rate = Rate { per_s: 20.0, burst: f64::from(burst) };
            let start = Instant::now();
            let mut bucket = Bucket { calls: rate.burst, filled: start };
            let (mut passed, mut ms) = (0_u32, 0);
            for gap in gaps {
                ms += gap;
                let now = start + Duration::from_millis(ms);
                if bucket.take(rate, now).is_ok() {
                    passed += 1;
                }
                let allowed = rate.burst + Duration::from_millis(ms).as_secs_f64() * rate.per_s;
                prop_assert!(f64::from(passed) <= allowed + 1e-6);
            }
        }
    }

    #[test]
    fn peers_have_buckets_of_their_own_and_their_number_is_bounded() {
        let limit = RateLimit::new(1.0 / 3600.0, 1).per(Per::Peer);
        let from = |peer: String| {
            let mut request = request();
            request.peer = Some(Arc::from(peer));
            request
        };
        assert_eq!(limit.take(&from("10.0.0.1:5000".to_owned())), Ok(()));
        assert!(
            limit.take(&from("10.0.0.1:6000".to_owned())).is_err(),
            "another port is the same peer"
        );
        assert_eq!(limit.take(&from("[::1]:6000".to_owned())), Ok(()));
        for number in 0..KEYS_MAX + 100 {
            assert_eq!(
                limit.take(&from(format!("host{number}:1"))).is_ok(),
                number < KEYS_MAX - 1,
                "{number}"
            );
        }
        assert!(limit.buckets.lock().unwrap().table.len() <= KEYS_MAX + 1);
    }

    #[test]
    fn ever_new_peers_make_all_buckets_be_walked_once_a_second_only() {
        let limit = RateLimit::new(10.0, 1).per(Per::Peer);
        let start = Instant::now();
        let take = |peer: String, after: Duration| {
            let mut request = request();
            (request.peer, request.started) = (Some(Arc::from(peer)), start + after);
            let taken = limit.take(&request);
            (taken.is_ok(), limit.buckets.lock().unwrap().table.len())
        };
        for number in 0..KEYS_MAX {
            assert_eq!(
                take(format!("host{number}:1"), Duration::ZERO),
                (true, number + 1)
            );
        }
        let shared = KEYS_MAX + 1;
        assert_eq!(take("new:1".to_owned(), Duration::ZERO), (true, shared));
        // By now all are full again, but none has been searched for.
        let half = Duration::from_millis(500);
        assert_eq!(take("newer:1".to_owned(), half), (true, shared));
        assert_eq!(take("newest:1".to_owned(), half), (false, shared));
        assert_eq!(take("newest:1".to_owned(), Duration::from_secs(1)), (true, 1));
    }

    #[test]
    fn settings_are_checked() {
        settings_are_checked_by(
            FilterPlugin::from_text,
            "rate_limit?per_s=0.5",
            &[
                ("rate_limit", "filter `rate_limit`: setting `per_s`: missing"),
                (
                    "rate_limit?per_s=fast",
                    "setting `per_s`: `fast`: invalid float literal",
                ),
                ("rate_limit?per_s=-1", "expected a number above 0"),
                ("rate_limit?per_s=nan", "expected a number above 0"),
                ("rate_limit?per_s=1&burst=x", "setting `burst`: `x`"),
                (
                    "rate_limit?per_s=1&per=host",
                    "setting `per`: `host`: expected `all`, `method` or `peer`",
                ),
                (
                    "rate_limit?per_s=1&brust=2",
                    "setting `brust`: unknown; known settings: per_s, burst, per",
                ),
            ],
        );
    }
}
