//! Layers of tower around calls, and calls behind layers of tower.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rpc_core::filter::{ConcurrencyLimit, Side};
use rpc_core::message::Response;
use rpc_core::tower::{BoxError, Channel, FilterLayer, TowerFilter, TowerRequest};
use rpc_core::{CallError, Code, Executed, Invoker, Provider, RpcError, Stream};
use tower::retry::Policy;
use tower::{ServiceBuilder, ServiceExt};

use crate::net::{self, Handlers, Watch, WireClient, WireServer, value};

fn error<T: std::fmt::Debug, E: std::fmt::Debug>(outcome: Result<T, CallError<E>>) -> (Code, Executed) {
    match outcome {
        Err(CallError::Rpc(error)) => (error.code, error.executed),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn timeout_layer_at_the_provider_ends_the_call_and_the_handler_is_gone() {
    let watch = Watch::default();
    let stack = ServiceBuilder::new().timeout(Duration::from_millis(500));
    let provider = Provider::builder()
        .serve(WireServer::new(Handlers(watch.clone())))
        .filter(Arc::new(TowerFilter::new(stack)));
    let provider = provider.start().await.unwrap();
    let client = WireClient::refer(&net::invoker(provider.local_addr()).await);
    assert_eq!(client.echo("x".into()).await.unwrap(), "x");
    assert_eq!(client.fail("y".into()).await, Err(CallError::App("y".to_owned())));
    assert_eq!(
        error(client.wait().await),
        (Code::DeadlineExceeded, Executed::Maybe)
    );
    assert_eq!((value(&watch.started), provider.running()), (1, 0));
    assert_eq!(error(client.panic().await).0, Code::Internal);
}

#[tokio::test]
async fn state_of_the_layers_is_shared_by_all_calls_and_shed_calls_are_not_executed() {
    let watch = Watch::default();
    let stack = ServiceBuilder::new().load_shed().concurrency_limit(2);
    let provider = Provider::builder()
        .serve(WireServer::new(Handlers(watch.clone())))
        .filter(Arc::new(TowerFilter::new(stack)));
    let provider = provider.start().await.unwrap();
    let client = WireClient::refer(&net::invoker(provider.local_addr()).await);
    let two = [client.wait().future(), client.wait().future()];
    watch.until(|watch| value(&watch.started) == 2).await;
    assert_eq!(error(client.wait().await), (Code::Overloaded, Executed::No));
    // A caller that goes away gives its place back.
    drop(two);
    watch.until(|watch| value(&watch.cancelled) == 2).await;
    while provider.running() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.echo("room".into()).await.unwrap(), "room");
}

/// Repeats a call that failed, three times.
#[derive(Debug, Clone)]
struct Again(usize, Arc<AtomicUsize>);

impl Policy<TowerRequest, Response, BoxError> for Again {
    type Future = std::future::Ready<()>;

    fn retry(
        &mut self,
        _: &mut TowerRequest,
        outcome: &mut Result<Response, BoxError>,
    ) -> Option<Self::Future> {
        if outcome.is_ok() || self.0 == 0 {
            return None;
        }
        self.0 -= 1;
        self.1.fetch_add(1, Ordering::SeqCst);
        Some(std::future::ready(()))
    }

    fn clone_request(&mut self, request: &TowerRequest) -> Option<TowerRequest> {
        Some(request.clone())
    }
}

#[tokio::test]
async fn retry_layer_at_the_invoker_makes_the_call_again() {
    let (provider, _) = net::provider().await;
    let repeated = Arc::new(AtomicUsize::new(0));
    let stack = ServiceBuilder::new().retry(Again(3, Arc::clone(&repeated)));
    let builder = Invoker::builder()
        .direct([provider.local_addr()])
        .timeout(Duration::from_secs(10));
    let invoker = builder
        .filter(Arc::new(TowerFilter::new(stack)))
        .build()
        .await
        .unwrap();
    let client = WireClient::refer(&invoker);
    assert_eq!(error(client.panic().await), (Code::Internal, Executed::Yes));
    assert_eq!(repeated.load(Ordering::SeqCst), 3);
    let services = provider.insight().services();
    let panic = services[0]
        .methods
        .iter()
        .find(|method| method.name == "panic")
        .unwrap();
    assert_eq!((panic.calls, panic.failures), (4, 4));
    assert_eq!(client.echo("x".into()).await.unwrap(), "x");
}

/// What is asked for twice.
#[rpc_core::service(name = "test.Halves")]
trait Halves {
    /// So many numbers and then an error of the framework.
    async fn breaks(&self, after: u64) -> impl Stream<Item = Result<u64, CallError>>;
}

#[derive(Debug, Clone, Default)]
struct Breaking(Arc<AtomicUsize>);

impl Halves for Breaking {
    async fn breaks(&self, after: u64) -> impl Stream<Item = Result<u64, CallError>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let broken = RpcError::new(Code::Internal, Executed::Yes, "broken on purpose");
        tokio_stream::iter((0..after).map(Ok).chain([Err(CallError::Rpc(broken))]))
    }
}

/// The numbers that came and how it ended, with a layer that makes every failed call three times more; and how
/// often the handler ran.
async fn repeated(side: Side, after: u64) -> (Vec<u64>, RpcError, usize) {
    let (handler, repeated) = (Breaking::default(), Arc::<AtomicUsize>::default());
    let filter = Arc::new(TowerFilter::new(
        ServiceBuilder::new().retry(Again(3, Arc::clone(&repeated))),
    ));
    let mut provider = Provider::builder().serve(HalvesServer::new(handler.clone()));
    if side == Side::Provider {
        provider = provider.filter(Arc::<TowerFilter<_>>::clone(&filter));
    }
    let provider = provider.start().await.unwrap();
    let mut invoker = Invoker::builder().direct([provider.local_addr()]);
    if side == Side::Invoker {
        invoker = invoker.filter(filter);
    }
    let client = HalvesClient::refer(&invoker.build().await.unwrap());
    let mut stream = client.breaks(after).stream();
    let mut numbers = Vec::new();
    loop {
        match stream.next().await {
            Some(Ok(number)) => numbers.push(number),
            Some(Err(CallError::Rpc(error))) => {
                assert_eq!(repeated.load(Ordering::SeqCst), 3, "the layer has tried");
                return (numbers, error, handler.0.load(Ordering::SeqCst));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn layer_that_repeats_a_stream_repeats_no_item() {
    for side in [Side::Invoker, Side::Provider] {
        let (numbers, error, handled) = repeated(side, 5).await;
        assert_eq!(numbers, [0, 1, 2, 3, 4], "{side:?}");
        assert_eq!((error.code, handled), (Code::Internal, 1), "{side:?}: {error}");
        let (numbers, error, handled) = repeated(side, 0).await;
        assert!(numbers.is_empty(), "{side:?}");
        assert_eq!((error.code, handled), (Code::Internal, 4), "{side:?}: {error}");
    }
}

#[tokio::test]
async fn invoker_is_a_service_and_a_filter_is_a_layer() {
    let (_provider, watch, invoker, _client) = net::pair().await;
    let channel = Channel::new(&invoker);
    let layer = FilterLayer::new(Arc::new(ConcurrencyLimit::new(1)), Side::Invoker);
    let service = ServiceBuilder::new().layer(layer).service(channel.clone());
    let method = |name: &str| {
        WireClient::METHODS
            .iter()
            .find(|method| method.name == name)
            .unwrap()
    };
    let request = |name: &str| channel.request(WireClient::NAME, method(name), &[(); 0]).unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn(service.clone().oneshot(request("wait")));
    watch.until(|watch| value(&watch.started) == 1).await;
    let refused = service.clone().oneshot(request("wait")).await.unwrap_err();
    assert_eq!((refused.code, refused.executed), (Code::Overloaded, Executed::No));
    watch.gate.add_permits(1);
    let response = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(channel.value::<u32>(&response).unwrap(), 1);
    assert_eq!(
        channel.value::<String>(&response).unwrap_err().code,
        Code::BadReply
    );
    let echo = channel
        .request(WireClient::NAME, method("fail"), &("words",))
        .unwrap();
    let response = service.oneshot(echo).await.unwrap();
    let error = channel.value::<u32>(&response).unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (Code::App, "words"));
}
