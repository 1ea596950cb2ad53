//! The built-in filters on both sides of real calls.

use std::sync::Arc;
use std::time::Duration;

use rpc_core::filter::{AuthToken, ConcurrencyLimit, Filter, Metrics, Per, RateLimit, Side};
use rpc_core::plugin::Source;
use rpc_core::provider::admin::AdminClient;
use rpc_core::tower::TowerFilter;
use rpc_core::{
    CallError, Code, Context, Executed, Invoker, InvokerError, Provider, ProviderError, RpcError, Stream,
};
use tokio_stream::StreamExt as _;

use crate::net::{self, Handlers, Watch, WireClient, WireServer, value};

/// A provider and an invoker with these filters.
async fn pair(
    provider: Vec<Source<dyn Filter>>,
    invoker: Vec<Source<dyn Filter>>,
) -> (Provider, Watch, Invoker) {
    let watch = Watch::default();
    let mut builder = Provider::builder().serve(WireServer::new(Handlers(watch.clone())));
    for filter in provider {
        builder = builder.filter(filter);
    }
    let provider = builder.start().await.unwrap();
    let mut builder = Invoker::builder()
        .direct([provider.local_addr()])
        .timeout(Duration::from_secs(10));
    for filter in invoker {
        builder = builder.filter(filter);
    }
    let invoker = builder.build().await.unwrap();
    (provider, watch, invoker)
}

#[track_caller]
fn rpc<T: std::fmt::Debug, E: std::fmt::Debug>(outcome: Result<T, CallError<E>>) -> RpcError {
    match outcome {
        Err(CallError::Rpc(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn auth_token_is_added_and_checked_and_a_call_may_bring_its_own() {
    let guard = || vec![Source::from("auth_token?token=secret")];
    let (provider, watch, invoker) = pair(guard(), guard()).await;
    let client = WireClient::refer(&invoker);
    assert_eq!(client.echo("x".into()).await.unwrap(), "x");
    let error = rpc(client.echo("x".into()).meta("auth_token", "guess").await);
    assert_eq!(
        (error.code, error.executed),
        (Code::Unauthenticated, Executed::No)
    );
    let stranger = WireClient::refer(&net::invoker(provider.local_addr()).await);
    let error = rpc(stranger.wait().await);
    assert_eq!(
        (error.code, error.executed),
        (Code::Unauthenticated, Executed::No)
    );
    assert_eq!(
        stranger
            .echo("x".into())
            .meta("auth_token", "secret")
            .await
            .unwrap(),
        "x"
    );
    assert_eq!(value(&watch.started), 0);
}

/// Returns the metadata that it sees.
#[rpc_core::service(name = "test.Seen")]
pub(crate) trait Seen {
    async fn meta(&self) -> Vec<(String, String)>;
}

struct Seeing;

impl Seen for Seeing {
    async fn meta(&self) -> Vec<(String, String)> {
        Context::current().meta().0.clone()
    }
}

#[tokio::test]
async fn handler_does_not_see_the_token() {
    let guard = Arc::new(AuthToken::new("secret"));
    let provider = Provider::builder()
        .serve(SeenServer::new(Seeing))
        .filter(Arc::clone(&guard));
    let provider = provider.start().await.unwrap();
    let builder = Invoker::builder().direct([provider.local_addr()]);
    let invoker = builder.filter(guard).build().await.unwrap();
    let seen = SeenClient::refer(&invoker)
        .meta()
        .meta("tenant", "a")
        .await
        .unwrap();
    assert_eq!(seen, [("tenant".to_owned(), "a".to_owned())]);
}

#[tokio::test]
async fn rate_limit_refuses_at_the_provider_and_says_when_to_come_back() {
    // One call an hour: the test is over before the next one is due.
    let limit = Arc::new(RateLimit::new(1.0 / 3600.0, 3).per(Per::Peer));
    let (provider, watch, invoker) = pair(vec![limit.into()], vec![]).await;
    let client = WireClient::refer(&invoker);
    for _ in 0..3 {
        client.echo("x".into()).await.unwrap();
    }
    let other_connection = WireClient::refer(&net::invoker(provider.local_addr()).await);
    for client in [client, other_connection] {
        let error = rpc(client.wait().await);
        assert_eq!((error.code, error.executed), (Code::Overloaded, Executed::No));
        let wait = error.retry_after.unwrap();
        assert!((3500..=3600).contains(&wait.as_secs()), "{wait:?}");
    }
    assert_eq!(value(&watch.started), 0);
}

#[tokio::test]
async fn rate_limit_by_method_at_the_invoker_sends_nothing_above_the_rate() {
    let (provider, _, invoker) = pair(vec![], vec!["rate_limit?per_s=0.001&burst=1".into()]).await;
    let client = WireClient::refer(&invoker);
    client.echo("x".into()).await.unwrap();
    let error = rpc(client.echo("x".into()).await);
    assert_eq!((error.code, error.executed), (Code::Overloaded, Executed::No));
    assert!(error.attempts.is_empty() && error.retry_after.is_some());
    assert_eq!(
        rpc(client.panic().await).code,
        Code::Internal,
        "another method has its own rate"
    );
    let echo = provider.insight().services()[0].methods[0].clone();
    assert_eq!((echo.name.as_str(), echo.calls), ("echo", 1));
}

#[tokio::test]
async fn concurrency_limit_gives_places_back_also_of_abandoned_calls() {
    for at_the_provider in [true, false] {
        let limit = || vec![Source::from(Arc::new(ConcurrencyLimit::new(1)))];
        let (one, two) = if at_the_provider {
            (limit(), vec![])
        } else {
            (vec![], limit())
        };
        let (provider, watch, invoker) = pair(one, two).await;
        let client = WireClient::refer(&invoker);
        let waiting = client.wait().future();
        watch.until(|watch| value(&watch.started) == 1).await;
        let error = rpc(client.wait().await);
        assert_eq!((error.code, error.executed), (Code::Overloaded, Executed::No));
        assert_eq!(client.echo("x".into()).await.unwrap(), "x");
        drop(waiting);
        watch.until(|watch| value(&watch.cancelled) == 1).await;
        while provider.running() > 0 {
            tokio::task::yield_now().await;
        }
        watch.gate.add_permits(1);
        assert_eq!(client.wait().await.unwrap(), 1);
    }
}

#[tokio::test]
async fn metrics_by_name_are_read_from_both_sides_and_from_admin() {
    let (provider, watch, invoker) = pair(vec!["metrics".into()], vec!["metrics".into()]).await;
    let client = WireClient::refer(&invoker);
    client.echo("x".into()).await.unwrap();
    assert!(client.fail("x".into()).await.is_err());
    assert!(client.panic().await.is_err());
    let abandoned = client.wait().future();
    watch.until(|watch| value(&watch.started) == 1).await;
    drop(abandoned);
    watch.until(|watch| value(&watch.cancelled) == 1).await;
    for (side, all) in [
        (Side::Invoker, invoker.metrics()),
        (Side::Provider, provider.metrics()),
    ] {
        let of = |method: &str| all.iter().find(|figures| figures.method == method).unwrap();
        assert!(
            all.iter()
                .all(|figures| figures.side == side && figures.service == "test.Wire")
        );
        assert_eq!((of("echo").ok, of("echo").calls()), (1, 1));
        assert_eq!(of("fail").errors.get("App"), Some(&1));
        assert_eq!(of("panic").errors.get("Internal"), Some(&1));
        assert_eq!(of("wait").calls() + of("wait").in_flight, 1);
        assert!(of("echo").latency.quantile(1.0).is_some());
    }
    let wait = invoker
        .metrics()
        .into_iter()
        .find(|figures| figures.method == "wait")
        .unwrap();
    assert_eq!((wait.abandoned, wait.in_flight), (1, 0));
    let asked = AdminClient::refer(&invoker).metrics().await.unwrap();
    assert!(
        asked
            .iter()
            .any(|figures| figures.method == "echo" && figures.ok == 1)
    );
}

#[tokio::test]
async fn first_filter_is_the_outermost_on_both_sides() {
    // Counted before it is refused, or not at all.
    for outermost in [true, false] {
        let metrics = Arc::new(Metrics::default());
        let mut filters: Vec<Source<dyn Filter>> =
            vec![Arc::clone(&metrics).into(), "concurrency_limit?max=1".into()];
        if !outermost {
            filters.reverse();
        }
        let (_provider, watch, invoker) = pair(filters, vec![]).await;
        let client = WireClient::refer(&invoker);
        let waiting = client.wait().future();
        watch.until(|watch| value(&watch.started) == 1).await;
        assert_eq!(rpc(client.wait().await).code, Code::Overloaded);
        let counted = metrics.snapshot()[0].errors.get("Overloaded").copied();
        assert_eq!(counted, outermost.then_some(1));
        watch.gate.add_permits(1);
        waiting.await.unwrap();
    }
}

#[tokio::test]
async fn wrong_settings_refuse_to_start_and_say_why() {
    let provider = Provider::builder().filter("rate_limit?per_s=many").start().await;
    let Err(ProviderError::Plugin(error)) = provider else {
        panic!("{provider:?}")
    };
    assert_eq!(
        error.to_string(),
        "filter `rate_limit`: setting `per_s`: `many`: invalid float literal"
    );
    let invoker = Invoker::builder()
        .direct(["127.0.0.1:1"])
        .filter("auth_token")
        .build()
        .await;
    let Err(InvokerError::Plugin(error)) = invoker else {
        panic!("{invoker:?}")
    };
    assert!(
        error
            .to_string()
            .starts_with("filter `auth_token`: setting `env`"),
        "{error}"
    );
}

#[rpc_core::service(name = "test.Drip")]
pub(crate) trait Drip {
    async fn drip(&self, items: u64) -> impl Stream<Item = u64>;
}

struct Tap;

impl Drip for Tap {
    async fn drip(&self, items: u64) -> impl Stream<Item = u64> {
        tokio_stream::iter(0..items)
    }
}

#[tokio::test]
async fn filters_last_as_long_as_the_stream() {
    let metrics = Arc::new(Metrics::default());
    let layers = tower::ServiceBuilder::new().load_shed();
    let provider = Provider::builder()
        .serve(DripServer::new(Tap))
        .filter(Arc::clone(&metrics))
        .filter("auth_token?token=secret")
        .filter("concurrency_limit?max=1")
        .filter(Arc::new(TowerFilter::new(layers)));
    let provider = provider.start().await.unwrap();
    let builder = Invoker::builder().direct([provider.local_addr()]);
    let builder = builder.filter("auth_token?token=secret").filter("metrics");
    let invoker = builder.build().await.unwrap();
    let tap = DripClient::refer(&invoker);
    // More than the window takes: it stays open.
    let mut open = tap.drip(1_000_000).stream();
    assert_eq!(open.next().await, Some(Ok(0)));
    let refused = tap.drip(1).stream().next().await.unwrap();
    assert_eq!(rpc(refused).code, Code::Overloaded);
    assert_eq!(metrics.snapshot()[0].in_flight, 1);
    drop(open);
    while provider.running() > 0 {
        tokio::task::yield_now().await;
    }
    let whole: Vec<_> = tap.drip(3).stream().collect().await;
    assert_eq!(whole, [Ok(0), Ok(1), Ok(2)]);
    while provider.running() > 0 {
        tokio::task::yield_now().await;
    }
    let drip = &metrics.snapshot()[0];
    assert_eq!(
        (drip.in_flight, drip.errors.get("Overloaded"), drip.calls()),
        (0, Some(&1), 3)
    );
    assert!(drip.ok >= 1, "{drip:?}");
    let drip = &invoker.metrics()[0];
    assert_eq!((drip.in_flight, drip.calls()), (0, 3));
}
