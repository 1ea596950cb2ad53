//! Retries, hedges and fallbacks over connections: what the caller sees when instances fail, hang or answer late.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rpc_core::fault::{Failover, Hedging};
use rpc_core::frame::{Kind, Status};
use rpc_core::transport::Memory;
use rpc_core::{CallError, Code, Context, Executed, Invoker, InvokerBuilder, Provider, RpcError};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::net::{self, WireClient};
use crate::raw::{self, Raw};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum ShopError {
    SoldOut { item: String },
}

#[rpc_core::service(name = "test.Shop")]
trait Shop {
    /// Fails as the test has configured the instance, with the framework's error.
    async fn buy(&self) -> Result<u32, CallError<ShopError>>;
    async fn find(&self, item: String) -> Result<u32, ShopError>;
    #[rpc(idempotent)]
    async fn price(&self) -> u32;
}

/// One instance.
#[derive(Debug, Default)]
struct Till {
    number: u32,
    /// How long it takes.
    takes: Duration,
    busy: bool,
    called: AtomicUsize,
    given_up: Notify,
}

impl Shop for Arc<Till> {
    async fn buy(&self) -> Result<u32, CallError<ShopError>> {
        self.called.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.takes).await;
        match self.busy {
            true => Err(CallError::Rpc(RpcError::new(
                Code::Overloaded,
                Executed::No,
                "busy",
            ))),
            false => Ok(self.number),
        }
    }

    async fn find(&self, item: String) -> Result<u32, ShopError> {
        self.called.fetch_add(1, Ordering::SeqCst);
        Err(ShopError::SoldOut { item })
    }

    async fn price(&self) -> u32 {
        self.called.fetch_add(1, Ordering::SeqCst);
        let context = Context::current();
        tokio::select! {
            () = tokio::time::sleep(self.takes) => self.number,
            () = context.cancelled() => {
                self.given_up.notify_one();
                0
            }
        }
    }
}

/// Instances in a network of this process, whose time the test controls.
struct Mall {
    network: Memory,
    providers: Vec<Provider>,
    tills: Vec<Arc<Till>>,
    addresses: Vec<String>,
}

impl Mall {
    async fn open(tills: impl IntoIterator<Item = Till>) -> Self {
        let mut mall = Self {
            network: Memory::default(),
            providers: Vec::new(),
            tills: tills.into_iter().map(Arc::new).collect(),
            addresses: Vec::new(),
        };
        for (index, till) in mall.tills.iter().enumerate() {
            let address = format!("till-{index}:1");
            let provider = Provider::builder()
                .transport(Arc::new(mall.network.clone()))
                .listen(&address)
                .serve(ShopServer::new(Arc::clone(till)))
                .start()
                .await
                .unwrap();
            mall.providers.push(provider);
            mall.addresses.push(address);
        }
        mall
    }

    async fn shop(&self, configure: impl FnOnce(InvokerBuilder) -> InvokerBuilder) -> (Invoker, ShopClient) {
        let builder = Invoker::builder()
            .transport(Arc::new(self.network.clone()))
            .direct(self.addresses.iter().map(String::as_str));
        let invoker = configure(builder).build().await.unwrap();
        let shop = ShopClient::refer(&invoker);
        (invoker, shop)
    }

    fn called(&self) -> Vec<usize> {
        self.tills
            .iter()
            .map(|till| till.called.load(Ordering::SeqCst))
            .collect()
    }
}

fn busy(takes_ms: u64) -> Till {
    Till {
        busy: true,
        takes: Duration::from_millis(takes_ms),
        ..Till::default()
    }
}

fn takes(number: u32, ms: u64) -> Till {
    Till {
        number,
        takes: Duration::from_millis(ms),
        ..Till::default()
    }
}

fn rpc<T: std::fmt::Debug, E: std::fmt::Debug>(outcome: Result<T, CallError<E>>) -> RpcError {
    match outcome {
        Err(CallError::Rpc(error)) => error,
        other => panic!("expected an error of the framework, got {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn call_with_retries_ends_by_its_deadline() {
    let mall = Mall::open([busy(30), busy(30)]).await;
    let (_invoker, shop) = mall.shop(|builder| builder).await;
    let patient = Arc::new(Failover::new(1000).backoff(Duration::from_millis(20), Duration::from_millis(40)));
    let start = Instant::now();
    let call = shop
        .buy()
        .fault_tolerance(patient)
        .timeout(Duration::from_millis(200));
    let error = rpc(call.await);
    assert!(
        start.elapsed() <= Duration::from_millis(210),
        "{:?}",
        start.elapsed()
    );
    assert!(error.attempts.len() >= 3, "{error}");

    let hanging = Mall::open([takes(1, 100_000), takes(2, 100_000)]).await;
    for name in ["failover?retries=5", "hedging?after_ms=20&attempts=5", "forking"] {
        let (_invoker, shop) = hanging.shop(|builder| builder.fault_tolerance(name)).await;
        let start = Instant::now();
        let error = rpc(shop.price().timeout(Duration::from_millis(200)).await);
        assert_eq!(error.code, Code::DeadlineExceeded, "{name}");
        let elapsed = start.elapsed();
        let bounds = Duration::from_millis(200)..=Duration::from_millis(210);
        assert!(bounds.contains(&elapsed), "{name}: {elapsed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn hedge_wins_and_the_late_providers_handler_is_told_to_stop() {
    let mall = Mall::open([takes(1, 10_000), takes(2, 5)]).await;
    let hedging = || Arc::new(Hedging::after(Duration::from_millis(20)));
    let (invoker, shop) = mall.shop(|builder| builder.fault_tolerance(hedging())).await;
    let start = Instant::now();
    assert_eq!(shop.price().await, Ok(2));
    assert!(
        start.elapsed() < Duration::from_millis(50),
        "{:?}",
        start.elapsed()
    );
    mall.tills[0].given_up.notified().await;
    assert_eq!(mall.called(), [1, 1]);
    assert_eq!(invoker.statistics().in_flight, 0);
}

#[tokio::test]
async fn late_answer_to_the_first_attempt_does_not_complete_the_second() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let invoker = net::invoker(&listener.local_addr().unwrap().to_string()).await;
    let client = WireClient::refer(&invoker);
    let call = client.echo("x".to_owned()).retry(1).future();
    let mut peer = Raw::new(listener.accept().await.unwrap().0);
    assert_eq!(peer.next().await.unwrap().status, Status::HELLO);
    let answer = |id, text: &[u8; 1]| {
        let envelope = [b"\x93\xa1", &text[..], b"\xc0\xc0"].concat();
        raw::response(id, Status::NONE, "msgpack", &envelope)
    };
    let first = peer.next().await.unwrap();
    let busy = b"\x93\xc0\x95\x08\xa4busy\x00\xc0\xc0\xc0";
    peer.send(&raw::response(first.id, Status::FAILED, "msgpack", busy))
        .await;
    let second = peer.next().await.unwrap();
    assert_eq!((first.kind, second.kind), (Kind::Request, Kind::Request));
    assert_ne!(first.id, second.id);
    peer.send(&answer(first.id, b"1")).await;
    peer.send(&answer(second.id, b"2")).await;
    assert_eq!(call.await, Ok("2".to_owned()));
    assert_eq!(invoker.statistics().answers_dropped, 1);
}

#[tokio::test(start_paused = true)]
async fn with_a_dead_and_a_live_instance_every_failover_call_succeeds() {
    let mut mall = Mall::open([takes(1, 0)]).await;
    mall.addresses.push("nobody:1".to_owned());
    let (_invoker, shop) = mall.shop(|builder| builder.fault_tolerance("failover")).await;
    for _ in 0..200 {
        assert_eq!(shop.buy().await, Ok(1));
    }
}

#[tokio::test(start_paused = true)]
async fn methods_own_error_is_not_retried_and_keeps_its_type() {
    let mall = Mall::open([takes(1, 0), takes(2, 0)]).await;
    let (_invoker, shop) = mall
        .shop(|builder| builder.fault_tolerance("failover?retries=5"))
        .await;
    let item = "tea".to_owned();
    let sold_out = ShopError::SoldOut { item: item.clone() };
    assert_eq!(
        shop.find(item.clone()).await,
        Err(CallError::App(sold_out.clone()))
    );
    assert_eq!(mall.called().iter().sum::<usize>(), 1);
    // Nor is it replaced, unless that is asked for.
    let kept = shop.find(item.clone()).fallback(7).retry(3);
    assert_eq!(kept.await, Err(CallError::App(sold_out.clone())));
    let replaced = shop.find(item).fallback_for(move |error| match error {
        CallError::App(ShopError::SoldOut { .. }) => Some(0),
        CallError::Rpc(_) => None,
    });
    assert_eq!(replaced.await, Ok(0));
    assert_eq!(mall.called().iter().sum::<usize>(), 3);
}

#[tokio::test(start_paused = true)]
async fn call_decides_over_its_own_retries() {
    let mall = Mall::open([busy(0), busy(0), busy(0)]).await;
    let (_one, fast) = mall.shop(|builder| builder).await;
    let error = rpc(fast.buy().retry(2).await);
    assert_eq!((error.code, error.attempts.len()), (Code::Overloaded, 3));
    let mut addresses: Vec<_> = error.attempts.iter().map(|attempt| &attempt.address).collect();
    addresses.sort();
    assert_eq!(
        addresses,
        mall.addresses.iter().collect::<Vec<_>>(),
        "each instance once"
    );
    let (_other, over) = mall.shop(|builder| builder.fault_tolerance("failover")).await;
    assert_eq!(rpc(over.buy().await).attempts.len(), 3);
    assert_eq!(rpc(over.buy().no_retry().await).attempts.len(), 1);
    let failed = over.buy().no_retry().future().await;
    assert_eq!(rpc(failed).attempts.len(), 1);
    // Through filters as well.
    let (_filtered, filtered) = mall.shop(|builder| builder.filter("access_log")).await;
    assert_eq!(rpc(filtered.buy().retry(1).await).attempts.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn fallback_replaces_a_framework_error_in_every_form() {
    let mall = Mall::open([busy(0), takes(2, 0)]).await;
    let (invoker, shop) = mall.shop(|builder| builder).await;
    let busy = |shop: &ShopClient| shop.buy().to_address(&mall.addresses[0]);
    assert_eq!(busy(&shop).fallback(9).await, Ok(9));
    assert_eq!(busy(&shop).fallback(9).future().await, Ok(9));
    let words = |error: &RpcError| u32::try_from(error.message.len()).unwrap();
    assert_eq!(busy(&shop).fallback_with(words).await, Ok(4));
    let (sender, outcome) = oneshot::channel();
    busy(&shop)
        .fallback(9)
        .callback(move |outcome| sender.send(outcome).unwrap())
        .unwrap();
    assert_eq!(outcome.await.unwrap(), Ok(9));
    let all = shop.buy().fallback(9).broadcast().await.unwrap();
    let outcomes: Vec<_> = all.into_iter().map(|one| one.outcome).collect();
    assert_eq!(outcomes, [Ok(9), Ok(2)]);
    // A call that succeeds keeps its result, and in process it is the same.
    assert_eq!(shop.buy().to_address(&mall.addresses[1]).fallback(9).await, Ok(2));
    let local = ShopClient::local(Arc::new(Till {
        busy: true,
        ..Till::default()
    }));
    assert_eq!(local.buy().fallback(9).await, Ok(9));
    invoker.shutdown().await;
    assert_eq!(
        shop.buy().fallback(9).await,
        Ok(9),
        "also when the invoker is gone"
    );
}

#[tokio::test(start_paused = true)]
async fn fallback_goes_before_failsafes_empty_value() {
    #[rpc_core::service(name = "test.Lines")]
    trait Lines {
        async fn count(&self) -> Option<u32>;
    }
    let invoker = Invoker::builder()
        .transport(Arc::new(Memory::default()))
        .direct(["nobody:1"])
        .fault_tolerance("failsafe")
        .build()
        .await
        .unwrap();
    let lines = LinesClient::refer(&invoker);
    assert_eq!(lines.count().await, Ok(None));
    assert_eq!(lines.count().fallback(Some(3)).await, Ok(Some(3)));
}

#[tokio::test(start_paused = true)]
async fn calls_that_a_retried_handler_makes_are_not_retried_again() {
    #[rpc_core::service(name = "test.Front")]
    trait Front {
        async fn order(&self) -> Result<u32, CallError<ShopError>>;
    }
    struct Desk(ShopClient);
    impl Front for Desk {
        async fn order(&self) -> Result<u32, CallError<ShopError>> {
            self.0.buy().retry(2).await
        }
    }
    let mall = Mall::open([busy(0)]).await;
    let (_back, shop) = mall.shop(|builder| builder).await;
    let desk = Provider::builder()
        .transport(Arc::new(mall.network.clone()))
        .listen("desk:1")
        .serve(FrontServer::new(Desk(shop)))
        .start()
        .await
        .unwrap();
    let invoker = Invoker::builder()
        .transport(Arc::new(mall.network.clone()))
        .direct([desk.local_addr()])
        .build()
        .await
        .unwrap();
    let error = rpc(FrontClient::refer(&invoker).order().retry(1).await);
    assert_eq!((error.code, error.attempts.len()), (Code::Overloaded, 2));
    assert_eq!(
        mall.called(),
        [4],
        "three for the first order, one for the second; not six"
    );
}
