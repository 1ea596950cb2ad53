//! Defects of hc-rpc that no other test has: `docs/hc-rpc-defects.md` is the list of all of them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rpc_core::registry::{Freshness, Instance, InstanceId, Registry, RegistryError, ServiceKey, Snapshot};
use rpc_core::{CallError, Code, Executed, Invoker, Provider, ProviderError};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};

use crate::net::{self, Handlers, Watch, WireClient, WireServer};

mod billing {
    #[rpc_core::service(name = "billing.User")]
    pub(super) trait User {
        async fn whose(&self) -> String;
    }
}

mod forum {
    #[rpc_core::service(name = "forum.User")]
    pub(super) trait User {
        async fn whose(&self) -> String;
    }
}

struct Both;

impl billing::User for Both {
    async fn whose(&self) -> String {
        "billing".to_owned()
    }
}

impl forum::User for Both {
    async fn whose(&self) -> String {
        "forum".to_owned()
    }
}

#[rpc_core::service(name = "test.Nullable")]
trait Nullable {
    async fn maybe(&self, text: Option<String>, list: Vec<Option<u8>>) -> Option<String>;
    async fn nothing(&self);
}

struct Nulls;

impl Nullable for Nulls {
    async fn maybe(&self, text: Option<String>, list: Vec<Option<u8>>) -> Option<String> {
        text.filter(|_| list.is_empty())
    }

    async fn nothing(&self) {}
}

#[tokio::test]
async fn callback_hears_of_the_deadline_and_of_a_lost_connection() {
    let (provider, watch, _invoker, client) = net::pair().await;
    let (sender, outcome) = oneshot::channel();
    client.echo("connected".into()).await.unwrap();
    let call = client.wait().timeout(Duration::from_millis(500));
    call.callback(move |outcome| drop(sender.send(outcome))).unwrap();
    let Err(CallError::Rpc(error)) = outcome.await.unwrap() else {
        panic!("it was answered");
    };
    assert_eq!(error.code, Code::DeadlineExceeded);

    let (sender, outcome) = oneshot::channel();
    client
        .wait()
        .callback(move |outcome| drop(sender.send(outcome)))
        .unwrap();
    watch.until(|watch| net::value(&watch.started) == 2).await;
    provider.shutdown(Duration::ZERO).await;
    let Err(CallError::Rpc(error)) = outcome.await.unwrap() else {
        panic!("it was answered");
    };
    assert_eq!((error.code, error.executed), (Code::Unavailable, Executed::Maybe));
}

#[tokio::test]
async fn call_that_sets_no_time_has_a_second() {
    let (provider, _watch) = net::provider().await;
    let invoker = Invoker::builder()
        .direct([provider.local_addr()])
        .build()
        .await
        .unwrap();
    let left_ms = WireClient::refer(&invoker).left().await.unwrap();
    assert!(
        (1..=1000).contains(&left_ms),
        "{left_ms} ms were left at the handler"
    );
}

#[tokio::test]
async fn services_of_one_simple_name_do_not_mix() {
    let provider = Provider::builder()
        .listen("127.0.0.1:0")
        .serve(billing::UserServer::new(Both))
        .serve(forum::UserServer::new(Both));
    let provider = provider.start().await.unwrap();
    let invoker = net::invoker(provider.local_addr()).await;
    assert_eq!(
        billing::UserClient::refer(&invoker).whose().await.unwrap(),
        "billing"
    );
    assert_eq!(forum::UserClient::refer(&invoker).whose().await.unwrap(), "forum");
}

#[tokio::test]
async fn nulls_cross_in_json_both_ways() {
    let provider = Provider::builder()
        .listen("127.0.0.1:0")
        .serve(NullableServer::new(Nulls));
    let provider = provider.start().await.unwrap();
    let invoker = Invoker::builder()
        .direct([provider.local_addr()])
        .serializer("json");
    let client = NullableClient::refer(&invoker.build().await.unwrap());
    assert_eq!(client.maybe(None, vec![None]).await, Ok(None));
    assert_eq!(
        client.maybe(Some("a".to_owned()), vec![]).await,
        Ok(Some("a".to_owned()))
    );
    assert_eq!(client.nothing().await, Ok(()));
}

#[tokio::test]
async fn addresses_of_ip_version_6_are_understood() {
    // Nobody listens there, or the machine has no such addresses: in any case it is asked, and nothing was executed.
    let client = WireClient::refer(&net::invoker("[::1]:1").await);
    let Err(CallError::Rpc(error)) = client.echo("x".to_owned()).timeout(Duration::from_secs(2)).await else {
        panic!("somebody answered");
    };
    assert_eq!(error.executed, Executed::No);
    assert!(error.to_string().contains("[::1]:1"), "{error}");
    assert!(!error.to_string().contains("invalid"), "{error}");
}

/// A registry without anybody in it, which tries each address it is told.
#[derive(Debug, Default)]
struct Trying {
    reached: Mutex<Vec<bool>>,
    never: Mutex<Vec<watch::Sender<Snapshot>>>,
}

#[async_trait]
impl Registry for Trying {
    async fn register(&self, _: &ServiceKey, instance: &Instance, _: Duration) -> Result<(), RegistryError> {
        let reached = TcpStream::connect(&instance.address).await.is_ok();
        self.reached.lock().unwrap().push(reached);
        Ok(())
    }

    async fn deregister(&self, _: &ServiceKey, _: &InstanceId) -> Result<(), RegistryError> {
        Ok(())
    }

    fn subscribe(&self, _: &ServiceKey) -> Result<watch::Receiver<Snapshot>, RegistryError> {
        let nobody = Snapshot {
            instances: Arc::from([]),
            freshness: Freshness::Fresh,
        };
        let (sender, receiver) = watch::channel(nobody);
        self.never.lock().unwrap().push(sender);
        Ok(receiver)
    }

    async fn close(&self) {}
}

#[tokio::test]
async fn only_a_port_that_listens_is_registered() {
    let registry = Arc::new(Trying::default());
    let wire = || WireServer::new(Handlers(Watch::default()));
    let provider = Provider::builder()
        .listen("127.0.0.1:0")
        .registry(Arc::clone(&registry))
        .serve(wire());
    let provider = provider.start().await.unwrap();
    assert_eq!(*registry.reached.lock().unwrap(), [true]);
    let second = Provider::builder()
        .listen(provider.local_addr())
        .registry(Arc::clone(&registry));
    let refused = second.serve(wire()).start().await;
    assert!(
        matches!(refused, Err(ProviderError::Listen { .. })),
        "{refused:?}"
    );
    assert_eq!(
        registry.reached.lock().unwrap().len(),
        1,
        "the taken port was registered"
    );
}

#[tokio::test]
async fn service_without_an_instance_is_unavailable_at_once() {
    let invoker = Invoker::builder().registry(Arc::new(Trying::default()));
    let client = WireClient::refer(&invoker.build().await.unwrap());
    let call = client.echo("x".to_owned()).timeout(Duration::from_secs(3600));
    let Err(CallError::Rpc(error)) = call.await else {
        panic!("somebody answered");
    };
    assert_eq!((error.code, error.executed), (Code::Unavailable, Executed::No));
}
