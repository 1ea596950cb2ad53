//! Counts and latencies of calls, for each service and method. Available as values ([`Metrics::snapshot`]) or
//! as text in the format of Prometheus ([`prometheus`]), which takes a page of code where the crate for it
//! would add five others to every program; a program with its own metrics registry exports the values.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::{Filter, FilterPlugin, Next, Side};
use crate::BoxFuture;
use crate::call::now;
use crate::dispatch::Answer;
use crate::error::Code;
use crate::message::{Outcome, Request};

mod report;
mod text;

pub use report::{Bucket, Latency, MethodMetrics};
pub use text::prometheus;

/// Methods counted separately; calls of further ones, which only a caller without stubs can name, share one
/// entry.
const METHODS_MAX: usize = 4096;
/// Buckets of the histogram, except the last one, which has no upper bound: from 50 µs on, each bound twice
/// the previous.
const BUCKETS: usize = 18;
/// Upper bound of the first bucket.
const FIRST_BUCKET_US: u64 = 50;
/// One more than the highest number of a code.
const CODES: usize = 15;

/// Counts calls as a filter on either side. By name `metrics`; its statistics are returned by
/// [`Provider::metrics`](crate::Provider::metrics), [`Invoker::metrics`](crate::Invoker::metrics) and the
/// `_admin` service. A value may also be shared by several of them.
///
/// A call that its caller cancelled (invoker) or whose connection ended (provider) before it had an answer is
/// *abandoned*. A call that returns a stream lasts until the stream ends.
///
/// ```
/// use std::sync::Arc;
/// use rpc_core::filter::metrics::{self, Metrics};
/// use rpc_core::{Invoker, Provider};
///
/// # #[rpc_core::service(name = "doc.Greeter")] pub trait Greeter { async fn greet(&self, name: String) -> String; }
/// # struct Polite;
/// # impl Greeter for Polite { async fn greet(&self, name: String) -> String { name } }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let provider = Provider::builder().serve(GreeterServer::new(Polite)).filter("metrics").start().await?;
/// let ours = Arc::new(Metrics::default());
/// let direct = [provider.local_addr()];
/// let invoker = Invoker::builder().direct(direct).filter(Arc::clone(&ours)).build().await?;
/// GreeterClient::refer(&invoker).greet("ada".to_owned()).await?;
/// let greet = &ours.snapshot()[0];
/// assert_eq!((greet.service.as_str(), greet.method.as_str(), greet.ok), ("doc.Greeter", "greet", 1));
/// let text = metrics::prometheus(&provider.metrics());
/// assert!(text.contains(
///     "rpc_calls_total{side=\"provider\",service=\"doc.Greeter\",method=\"greet\",outcome=\"ok\"} 1"
/// ));
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct Metrics {
    invoker: Table,
    provider: Table,
}

/// The methods of one side.
#[derive(Debug, Default)]
struct Table {
    /// Read by every call without a lock, copied when a method is called for the first time.
    methods: ArcSwap<ByService>,
    /// Held while a method is added.
    adding: Mutex<()>,
}

/// By service, then by method.
type ByService = HashMap<Arc<str>, HashMap<Arc<str>, Arc<Series>>>;

/// The counts of one method.
#[derive(Debug, Default)]
struct Series {
    in_flight: AtomicU64,
    ok: AtomicU64,
    /// By the number of the code.
    errors: [AtomicU64; CODES],
    abandoned: AtomicU64,
    buckets: [AtomicU64; BUCKETS + 1],
    sum_us: AtomicU64,
}

impl Metrics {
    /// The counts so far, sorted by side, service and method.
    #[must_use]
    pub fn snapshot(&self) -> Vec<MethodMetrics> {
        let mut all = Vec::new();
        for side in [Side::Invoker, Side::Provider] {
            let methods = self.table(side).methods.load();
            for (service, methods) in methods.iter() {
                all.extend(
                    methods
                        .iter()
                        .map(|(method, series)| series.report(side, service, method)),
                );
            }
        }
        all.sort_by(|a, b| (a.side, &a.service, &a.method).cmp(&(b.side, &b.service, &b.method)));
        all
    }

    const fn table(&self, side: Side) -> &Table {
        match side {
            Side::Invoker => &self.invoker,
            Side::Provider => &self.provider,
        }
    }
}

impl Table {
    fn series(&self, service: &str, method: &str) -> Arc<Series> {
        let find = |methods: &ByService, service: &str, method: &str| {
            let methods = methods.get(service)?;
            methods.get(method).cloned()
        };
        if let Some(series) = find(&self.methods.load(), service, method) {
            return series;
        }
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let methods = self.methods.load_full();
        let many = methods.values().map(HashMap::len).sum::<usize>() >= METHODS_MAX;
        let (service, method) = if many {
            ("(other)", "(other)")
        } else {
            (service, method)
        };
        if let Some(series) = find(&methods, service, method) {
            return series;
        }
        let (mut methods, series) = (ByService::clone(&methods), Arc::new(Series::default()));
        let of_service = methods.entry(Arc::from(service)).or_default();
        of_service.insert(Arc::from(method), Arc::clone(&series));
        self.methods.store(Arc::new(methods));
        series
    }
}

/// A running call. If it is dropped without an answer, it was abandoned.
struct Counting {
    series: Arc<Series>,
    started: Instant,
    answered: bool,
}

impl Counting {
    fn new(series: Arc<Series>, started: Instant) -> Self {
        series.in_flight.fetch_add(1, Ordering::Relaxed);
        Self {
            series,
            started,
            answered: false,
        }
    }

    fn answered(mut self, answer: &Answer) {
        self.answered = true;
        let counter = match answer {
            Ok(response) if matches!(response.outcome, Outcome::Ok(_)) => &self.series.ok,
            Ok(_) => self.series.error(Code::App),
            Err(error) => self.series.error(error.code),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let us = now().saturating_duration_since(self.started).as_micros();
        let us = u64::try_from(us).unwrap_or(u64::MAX);
        self.series.buckets[bucket(us)].fetch_add(1, Ordering::Relaxed);
        self.series.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.series.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.answered {
            self.series.abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Series {
    fn error(&self, code: Code) -> &AtomicU64 {
        &self.errors[usize::from(code.number()).min(CODES - 1)]
    }
}

/// The bucket of a latency: the first whose upper bound is not below it.
fn bucket(us: u64) -> usize {
    let ends = (0..BUCKETS).map(|index| FIRST_BUCKET_US << index);
    ends.take_while(|end| us > *end).count()
}

impl Filter for Metrics {
    fn call<'a>(&'a self, side: Side, request: Request, next: &'a dyn Next) -> BoxFuture<'a, Answer> {
        let series = self
            .table(side)
            .series(&request.route.service, &request.method.name);
        let counting = Counting::new(series, request.started);
        Box::pin(async move {
            let answer = next.run(request).await;
            counting.answered(&answer);
            answer
        })
    }

    fn metrics(&self) -> Option<&Metrics> {
        Some(self)
    }
}

/// The statistics of the filters that keep some.
pub(crate) fn of(filters: &[Arc<dyn Filter>]) -> Vec<MethodMetrics> {
    let metrics = filters.iter().filter_map(|filter| filter.metrics());
    metrics.flat_map(Metrics::snapshot).collect()
}

crate::plugin!(FilterPlugin, "metrics", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(Metrics::default()))
});

#[cfg(test)]
mod tests;
