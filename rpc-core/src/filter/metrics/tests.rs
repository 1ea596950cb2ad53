//! Tests of the statistics: what is counted where, what is limited, and the text.

use std::time::Duration;

use super::*;
use crate::error::{Executed, RpcError};
use crate::message::Response;
use crate::testing::request;

#[test]
fn latencies_fall_into_the_bucket_that_ends_at_or_above_them() {
    for (us, expected) in [(0, 0), (50, 0), (51, 1), (100, 1), (101, 2), (u64::MAX, BUCKETS)] {
        assert_eq!(bucket(us), expected, "{us}");
    }
    assert_eq!(bucket(FIRST_BUCKET_US << (BUCKETS - 1)), BUCKETS - 1);
}

/// Returns a given answer.
struct Says(fn() -> Answer);

impl Next for Says {
    fn run<'a>(&'a self, _: Request) -> BoxFuture<'a, Answer> {
        let answer = self.0;
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(3)).await;
            answer()
        })
    }
}

#[tokio::test(start_paused = true)]
async fn outcomes_latencies_and_abandoned_calls_are_counted_apart() {
    let metrics = Metrics::default();
    let fresh = || {
        let mut request = request();
        request.started = now();
        request
    };
    let ok = Says(|| Ok(Response::empty()));
    let full = Says(|| Err(RpcError::new(Code::Overloaded, Executed::No, "full")));
    for _ in 0..3 {
        assert!(metrics.call(Side::Provider, fresh(), &ok).await.is_ok());
    }
    assert!(metrics.call(Side::Provider, fresh(), &full).await.is_err());
    let abandoned = metrics.call(Side::Invoker, fresh(), &ok);
    assert_eq!(metrics.snapshot()[0].in_flight, 1);
    drop(abandoned);
    let snapshot = metrics.snapshot();
    let [invoker, provider] = &snapshot[..] else {
        panic!("{snapshot:?}")
    };
    assert_eq!(
        (invoker.side, invoker.abandoned, invoker.in_flight),
        (Side::Invoker, 1, 0)
    );
    assert_eq!((provider.ok, provider.abandoned, provider.calls()), (3, 0, 4));
    assert_eq!(
        provider.errors.iter().collect::<Vec<_>>(),
        [(&"Overloaded".to_owned(), &1)]
    );
    assert_eq!(provider.latency.sum_us, 12_000);
    assert_eq!(provider.latency.quantile(0.99), Some(Duration::from_micros(3200)));
    assert_eq!(invoker.latency.quantile(0.5), None);
}

#[test]
fn methods_named_by_strangers_do_not_grow_without_bound() {
    let table = Table::default();
    let known = table.series("hc.Greeter", "greet");
    for number in 0..METHODS_MAX + 50 {
        table.series("hc.Greeter", &format!("m{number}"));
    }
    let methods = table.methods.load();
    assert!(methods.values().map(HashMap::len).sum::<usize>() <= METHODS_MAX + 1);
    drop(methods);
    assert!(Arc::ptr_eq(&known, &table.series("hc.Greeter", "greet")));
}

#[test]
fn text_is_what_prometheus_reads() {
    let metrics = Metrics::default();
    let series = metrics.provider.series("hc.\"odd\"\\", "greet");
    series.ok.fetch_add(2, Ordering::Relaxed);
    series.buckets[1].fetch_add(2, Ordering::Relaxed);
    series.sum_us.fetch_add(1_500_000, Ordering::Relaxed);
    let text = prometheus(&metrics.snapshot());
    let labels = r#"side="provider",service="hc.\"odd\"\\",method="greet""#;
    for line in [
        "# TYPE rpc_calls_total counter".to_owned(),
        format!("rpc_calls_total{{{labels},outcome=\"ok\"}} 2"),
        format!("rpc_calls_in_flight{{{labels}}} 0"),
        format!("rpc_call_duration_seconds_bucket{{{labels},le=\"0.00005\"}} 0"),
        format!("rpc_call_duration_seconds_bucket{{{labels},le=\"0.0001\"}} 2"),
        format!("rpc_call_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
        format!("rpc_call_duration_seconds_sum{{{labels}}} 1.5"),
        format!("rpc_call_duration_seconds_count{{{labels}}} 2"),
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "`{line}` is not in\n{text}"
        );
    }
}
