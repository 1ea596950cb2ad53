//! Calls that handlers make: what they inherit from the call being served, and that they end with it.

use std::sync::Arc;
use std::time::Duration;

use rpc_core::{Code, Context, Executed, Invoker, Provider, Stream, TraceContext};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;

use crate::net::{self, WireClient, value};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The metadata that a handler sees, and its trace.
type Seen = (Vec<(String, String)>, Option<String>);

#[rpc_core::service(name = "test.Front")]
trait Front {
    /// What is seen here, and what is seen by a handler that this one calls with these pairs.
    async fn seen(&self, own: Vec<(String, String)>) -> Result<(Seen, Seen), String>;
    /// Waits for a handler that waits for its gate.
    async fn wait(&self) -> Result<u32, String>;
    /// The same in a stream, between its first and its second item.
    async fn waits(&self) -> impl Stream<Item = Result<u32, String>>;
    /// The time left here and at a handler that this one gives a minute.
    async fn left(&self) -> (u64, u64);
    /// Notified when its own caller has gone, or its time is over.
    async fn told(&self) -> bool;
}

#[rpc_core::service(name = "test.Back")]
trait Back {
    async fn seen(&self) -> Seen;
}

fn seen() -> Seen {
    let context = Context::current();
    let trace = context.trace().map(|trace| trace.to_string());
    (context.meta().0.clone(), trace)
}

struct Behind;

impl Back for Behind {
    async fn seen(&self) -> Seen {
        seen()
    }
}

struct Before {
    back: BackClient,
    wire: WireClient,
    told: Arc<tokio::sync::Notify>,
}

impl Front for Before {
    async fn seen(&self, own: Vec<(String, String)>) -> Result<(Seen, Seen), String> {
        let call = self.back.seen();
        let call = own
            .into_iter()
            .fold(call, |call, (key, value)| call.meta(key, value));
        let there = call.await.map_err(|error| error.to_string())?;
        Ok((seen(), there))
    }

    async fn wait(&self) -> Result<u32, String> {
        let call = self.wire.wait().timeout(Duration::from_secs(600));
        let outcome = call.await;
        if outcome
            .as_ref()
            .is_err_and(|error| error.rpc().is_some_and(|error| error.code == Code::Cancelled))
        {
            self.told.notify_one();
        }
        outcome.map_err(|error| error.to_string())
    }

    async fn waits(&self) -> impl Stream<Item = Result<u32, String>> {
        tokio_stream::iter([false, true]).then(async |waits| match waits {
            false => Ok(0),
            true => self.wire.wait().await.map_err(|error| error.to_string()),
        })
    }

    async fn left(&self) -> (u64, u64) {
        let here = Context::current().time_left().unwrap();
        let there = self.wire.left().timeout(Duration::from_secs(60)).await.unwrap();
        (u64::try_from(here.as_millis()).unwrap(), there)
    }

    async fn told(&self) -> bool {
        let context = Context::current();
        context.cancelled().await;
        self.told.notify_one();
        context.is_cancelled()
    }
}

struct Chain {
    front: FrontClient,
    outer: Invoker,
    inner: Invoker,
    providers: [Provider; 2],
    watch: net::Watch,
    told: Arc<tokio::sync::Notify>,
}

/// Caller -> front -> back.
async fn chain(propagate: &[&str]) -> Chain {
    let watch = net::Watch::default();
    let behind = Provider::builder()
        .serve(net::WireServer::new(net::Handlers(watch.clone())))
        .serve(BackServer::new(Behind))
        .start()
        .await
        .unwrap();
    let inner = Invoker::builder()
        .direct([behind.local_addr()])
        .timeout(Duration::from_secs(600))
        .propagate(propagate.iter().copied());
    let inner = inner.build().await.unwrap();
    let told = Arc::new(tokio::sync::Notify::new());
    let before = Before {
        back: BackClient::refer(&inner),
        wire: WireClient::refer(&inner),
        told: Arc::clone(&told),
    };
    let before = Provider::builder()
        .serve(FrontServer::new(before))
        .start()
        .await
        .unwrap();
    let outer = net::invoker(before.local_addr()).await;
    Chain {
        front: FrontClient::refer(&outer),
        outer,
        inner,
        providers: [before, behind],
        watch,
        told,
    }
}

impl Chain {
    /// Whether nothing is left of any call, anywhere, as soon as that is so.
    async fn drained(&self) {
        let left = || {
            let running = self.providers.iter().map(Provider::running).sum::<usize>();
            running + self.outer.statistics().in_flight + self.inner.statistics().in_flight
        };
        let wait = async {
            while left() > 0 {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(waited.is_ok(), "{} are left", left());
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[tokio::test]
async fn trace_and_chosen_metadata_go_on_unless_the_call_has_its_own() {
    let chain = chain(&["tenant", "shard"]).await;
    let call = || {
        let call = chain
            .front
            .seen(Vec::new())
            .meta("tenant", "a")
            .meta("secret", "s");
        call.meta("traceparent", PARENT).meta("tracestate", "x=1")
    };
    let (here, there) = call().await.unwrap();
    assert_eq!(here.0.len(), 4);
    let wanted = [("tenant", "a"), ("traceparent", PARENT), ("tracestate", "x=1")];
    assert_eq!(there, (pairs(&wanted), Some(PARENT.to_owned())));
    let other = PARENT.replace("00f067aa0ba902b7", "00000000000000ab");
    let own = pairs(&[("tenant", "b"), ("traceparent", &other)]);
    let (_, there) = chain
        .front
        .seen(own.clone())
        .meta("tenant", "a")
        .meta("traceparent", PARENT)
        .await
        .unwrap();
    assert_eq!(there, (own, Some(other)));
    // Nothing is made up if nothing was sent.
    assert_eq!(chain.front.seen(Vec::new()).await.unwrap().1, (Vec::new(), None));
}

#[tokio::test]
async fn malformed_trace_becomes_a_new_one_and_fails_no_call() {
    let chain = chain(&[]).await;
    for bad in [
        "",
        "nonsense",
        &PARENT.to_uppercase(),
        &format!("{PARENT}-x"),
        &"x".repeat(10_000),
    ] {
        let call = chain
            .front
            .seen(Vec::new())
            .meta("traceparent", bad)
            .meta("tracestate", "x=1");
        let (here, there) = call.await.unwrap();
        let trace = TraceContext::parse(&here.1.unwrap()).unwrap();
        assert_eq!(
            there,
            (
                pairs(&[("traceparent", &trace.to_string())]),
                Some(trace.to_string())
            )
        );
    }
    let call = chain
        .front
        .seen(Vec::new())
        .meta("traceparent", PARENT)
        .meta("tracestate", "\u{7f}");
    assert_eq!(
        call.await.unwrap().1,
        (pairs(&[("traceparent", PARENT)]), Some(PARENT.to_owned()))
    );
}

#[tokio::test]
async fn what_goes_on_never_makes_a_call_impossible() {
    let chain = chain(&["tenant"]).await;
    let own: Vec<_> = (0..64)
        .map(|number| (format!("k{number}"), String::new()))
        .collect();
    let (_, there) = chain.front.seen(own.clone()).meta("tenant", "a").await.unwrap();
    assert_eq!(there.0, own);
}

#[tokio::test]
async fn nested_call_has_no_more_time_than_the_one_being_served() {
    let chain = chain(&[]).await;
    let (here, there) = chain.front.left().timeout(Duration::from_secs(5)).await.unwrap();
    assert!(here <= 5000 && there <= here, "{here} ms here, {there} ms there");
    let call = chain.front.wait().timeout(Duration::from_millis(500));
    let error = call.await.unwrap_err();
    assert_eq!(error.rpc().unwrap().code, Code::DeadlineExceeded);
    chain
        .watch
        .until(|watch| value(&watch.cancelled) == value(&watch.started))
        .await;
    chain.drained().await;
}

#[tokio::test]
async fn caller_who_goes_away_ends_the_calls_made_for_him() {
    let chain = chain(&[]).await;
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        calls.spawn(chain.front.wait().into_future());
        let mut waits = chain.front.waits().stream();
        calls.spawn(async move {
            assert_eq!(waits.next().await, Some(Ok(0)));
            waits.next().await.unwrap()
        });
    }
    chain.watch.until(|watch| value(&watch.started) == 40).await;
    calls.shutdown().await;
    chain.watch.until(|watch| value(&watch.cancelled) == 40).await;
    chain.told.notified().await;
    chain.drained().await;
}

#[tokio::test]
async fn handler_is_told_when_its_time_is_over_and_not_only_when_its_caller_goes_away() {
    let chain = chain(&[]).await;
    // Nobody cancels a oneway call.
    chain
        .front
        .told()
        .timeout(Duration::from_secs(1))
        .oneway()
        .await
        .unwrap();
    chain.told.notified().await;
    chain.drained().await;
}

#[tokio::test]
async fn hundred_thousand_given_up_calls_leave_nothing() {
    const ROUND: usize = 500;
    let (provider, watch, invoker, client) = net::pair().await;
    for round in 0..200 {
        let mut calls: Vec<_> = (0..ROUND)
            .map(|_| Box::pin(client.wait().into_future()))
            .collect();
        std::future::poll_fn(|cx| {
            for call in &mut calls {
                assert!(call.as_mut().poll(cx).is_pending());
            }
            std::task::Poll::Ready(())
        })
        .await;
        if round % 2 == 0 {
            // Some while their handlers run, some before they begin.
            tokio::task::yield_now().await;
        }
        drop(calls);
        assert_eq!(invoker.statistics().in_flight, 0);
        if round % 4 == 3 {
            assert_eq!(client.echo("between".into()).await.unwrap(), "between");
        }
    }
    let wait = async {
        while provider.running() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
    assert!(waited.is_ok(), "{} run", provider.running());
    assert_eq!(value(&watch.cancelled), value(&watch.started));
    // Every slot is free again: as many calls as may run at once do.
    let started = value(&watch.started);
    let mut calls = JoinSet::new();
    for _ in 0..rpc_core::limits::CONNECTION_IN_FLIGHT_MAX {
        calls.spawn(client.wait().into_future());
    }
    let all = started + rpc_core::limits::CONNECTION_IN_FLIGHT_MAX;
    watch.until(|watch| value(&watch.started) == all).await;
    watch.gate.add_permits(rpc_core::limits::CONNECTION_IN_FLIGHT_MAX);
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.unwrap(), Ok(1));
    }
}

#[tokio::test]
async fn call_made_for_nobody_is_not_sent() {
    let chain = chain(&[]).await;
    let context = Context::default();
    // Outside a handler nothing is inherited.
    let (_, there) = context
        .scope(chain.front.seen(Vec::new()).into_future())
        .await
        .unwrap();
    assert_eq!(there, (Vec::new(), None));
    let error = chain.front.wait().timeout(Duration::ZERO).await.unwrap_err();
    assert_eq!(error.executed(), Executed::No);
}
