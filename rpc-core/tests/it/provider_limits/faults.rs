//! What breaks inside the provider: callers that go, accepts that fail, handlers that panic, restarts.

use std::borrow::Cow;

use super::*;

#[tokio::test]
async fn handlers_that_end_after_their_callers_have_gone_leave_nothing() {
    let (provider, worker, client, _network) = pair(|builder| builder).await;
    for round in 1..=50 {
        let calls: Vec<_> = (0..100)
            .map(|_| client.hold(Attachment::new()).future())
            .collect();
        until(|| worker.started() == round * 100).await;
        drop(calls);
        worker.gate.add_permits(100);
    }
    until(|| provider.running() == 0).await;
    assert_eq!(
        client.echo("and goes on".to_owned()).await.unwrap(),
        "and goes on"
    );
}

/// A listener that runs out of descriptors.
#[derive(Debug)]
struct Exhausted {
    inner: Box<dyn Listener>,
    failures: AtomicUsize,
    accepts: Arc<AtomicUsize>,
}

impl Listener for Exhausted {
    fn local_addr(&self) -> io::Result<String> {
        self.inner.local_addr()
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<Stream>> {
        self.accepts.fetch_add(1, Ordering::SeqCst);
        let left = self.failures.load(Ordering::SeqCst);
        if left > 0 {
            self.failures.store(left - 1, Ordering::SeqCst);
            // EMFILE.
            return Box::pin(std::future::ready(Err(io::Error::from_raw_os_error(24))));
        }
        self.inner.accept()
    }
}

#[derive(Debug)]
struct Scarce(Memory, Arc<AtomicUsize>);

impl Transport for Scarce {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        self.0.connect(address)
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            Ok(Box::new(Exhausted {
                inner: self.0.bind(address).await?,
                failures: AtomicUsize::new(20),
                accepts: Arc::clone(&self.1),
            }) as Box<dyn Listener>)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn p14_accept_without_descriptors_does_not_spin_and_recovers() {
    let (network, accepts) = (Memory::default(), Arc::new(AtomicUsize::new(0)));
    let provider = Provider::builder()
        .listen("test:0")
        .transport(Arc::new(Scarce(network.clone(), Arc::clone(&accepts))))
        .serve(WorkServer::new(Worker::new()))
        .start()
        .await
        .unwrap();
    sleep(Duration::from_secs(5)).await;
    let tried = accepts.load(Ordering::SeqCst);
    assert!((5..=15).contains(&tried), "{tried} tries in 5 s");
    let client = client(&provider, &network, None).await;
    client.echo("after all".to_owned()).await.unwrap();
}

/// A service that nobody generated, and that panics wherever it can.
struct Panicking;

static METHODS: [Method; 2] = [method("at_once"), method("later")];

const fn method(name: &'static str) -> Method {
    Method {
        name: Cow::Borrowed(name),
        idempotent: false,
        blocking: false,
        in_flight_max: None,
        long_poll: false,
        streaming: false,
        parameter_types: Cow::Borrowed(&[]),
        result_type: Cow::Borrowed(""),
    }
}

impl Service for Panicking {
    fn methods(&self) -> &'static [Method] {
        &METHODS
    }

    fn call(&self, method: usize, _: Request) -> BoxFuture<'static, Result<Response, RpcError>> {
        assert!(method == 1, "on purpose");
        Box::pin(async {
            tokio::task::yield_now().await;
            panic!("on purpose, later")
        })
    }
}

#[rpc_core::service(name = "test.Panicking")]
pub(crate) trait Panics {
    async fn at_once(&self);
    async fn later(&self);
}

#[tokio::test]
async fn p16_panic_in_a_handwritten_service_is_internal_and_the_process_lives() {
    let network = Memory::default();
    let served = Served {
        route: Arc::new(Route::new("test.Panicking")),
        service: Arc::new(Panicking),
    };
    let provider = Provider::builder()
        .listen("test:0")
        .transport(Arc::new(network.clone()))
        .serve(served)
        .serve(WorkServer::new(Worker::new()))
        .start()
        .await
        .unwrap();
    let builder = Invoker::builder().direct([provider.local_addr()]);
    let invoker = builder.transport(Arc::new(network)).build().await.unwrap();
    let client = PanicsClient::refer(&invoker);
    for outcome in [client.at_once().await, client.later().await] {
        let error = outcome.unwrap_err();
        assert_eq!(error.rpc().unwrap().code, Code::Internal);
        assert!(
            !error.to_string().contains("purpose"),
            "what it said is the provider's: {error}"
        );
    }
    assert_eq!(provider.running(), 0);
    assert_eq!(
        WorkClient::refer(&invoker)
            .echo("lives".to_owned())
            .await
            .unwrap(),
        "lives"
    );
}

#[tokio::test]
async fn rolling_restart_under_load_fails_no_call() {
    let network = Memory::default();
    let start = |address: String| {
        let network = network.clone();
        async move {
            let builder = Provider::builder().listen(address).transport(Arc::new(network));
            builder
                .serve(WorkServer::new(Worker::new()))
                .start()
                .await
                .unwrap()
        }
    };
    let mut providers = vec![start("a:1".to_owned()).await, start("b:2".to_owned()).await];
    let invoker = Invoker::builder()
        .direct(providers.iter().map(Provider::local_addr))
        .transport(Arc::new(network.clone()))
        .fault_tolerance("failover")
        .timeout(Duration::from_secs(10))
        .build()
        .await
        .unwrap();
    let client = WorkClient::refer(&invoker);
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut load = JoinSet::new();
    for _ in 0..16 {
        let (client, over) = (client.clone(), Arc::clone(&over));
        load.spawn(async move {
            let mut calls = 0_usize;
            while !over.load(Ordering::SeqCst) {
                client.nap(1).await.unwrap();
                calls += 1;
            }
            calls
        });
    }
    for round in 0..4 {
        let leaving = providers.remove(0);
        let address = leaving.local_addr().to_owned();
        leaving.shutdown(Duration::from_secs(10)).await;
        providers.push(start(address.clone()).await);
        let back = providers.last().unwrap();
        let patience = std::time::Instant::now() + Duration::from_secs(20);
        while back.connections() == 0 {
            assert!(
                std::time::Instant::now() < patience,
                "round {round}: nobody came back to {address}"
            );
            tokio::task::yield_now().await;
        }
    }
    over.store(true, Ordering::SeqCst);
    let mut calls = 0;
    while let Some(done) = load.join_next().await {
        calls += done.unwrap();
    }
    assert!(calls > 100, "{calls}");
}
