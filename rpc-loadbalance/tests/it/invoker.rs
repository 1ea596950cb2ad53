//! Balancers chosen by name, in an invoker that calls providers in an in-process network; tests control the
//! time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rpc_core::registry::{Freshness, Instance, InstanceId, Registry, RegistryError, ServiceKey, Snapshot};
use rpc_core::transport::{Memory, Transport};
use rpc_core::{CallError, Code, Executed, Invoker, InvokerBuilder, Provider, RpcError};
use tokio::sync::watch;

#[rpc_core::service(name = "test.Till")]
trait Till {
    async fn pay(&self) -> Result<(), CallError>;
}

#[derive(Debug, Default)]
struct Desk {
    broken: bool,
    takes: Duration,
    called: AtomicUsize,
}

impl Till for Arc<Desk> {
    async fn pay(&self) -> Result<(), CallError> {
        self.called.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.takes).await;
        match self.broken {
            true => Err(CallError::Rpc(RpcError::new(
                Code::Internal,
                Executed::Yes,
                "broken",
            ))),
            false => Ok(()),
        }
    }
}

struct Shop {
    desks: Vec<Arc<Desk>>,
    providers: Vec<Provider>,
    till: TillClient,
}

impl Shop {
    /// Desks that the invoker knows by their addresses.
    async fn open(balancer: &str, desks: impl IntoIterator<Item = Desk>) -> Self {
        let desks: Vec<Desk> = desks.into_iter().collect();
        let addresses: Vec<_> = (0..desks.len())
            .map(|number| format!("desk-{number}:1"))
            .collect();
        Self::found(balancer, desks, |builder| builder.direct(addresses)).await
    }

    /// Desks `desk-0:1`, `desk-1:1`, .. that the invoker finds as `configure` says.
    async fn found(
        balancer: &str,
        desks: impl IntoIterator<Item = Desk>,
        configure: impl FnOnce(InvokerBuilder) -> InvokerBuilder,
    ) -> Self {
        let network: Arc<dyn Transport> = Arc::new(Memory::default());
        let desks: Vec<_> = desks.into_iter().map(Arc::new).collect();
        let mut providers = Vec::new();
        for (number, desk) in desks.iter().enumerate() {
            let provider = Provider::builder()
                .transport(Arc::clone(&network))
                .listen(format!("desk-{number}:1"))
                .serve(TillServer::new(Arc::clone(desk)));
            providers.push(provider.start().await.expect("the address is free"));
        }
        let builder = Invoker::builder().transport(network).load_balancer(balancer);
        let invoker = configure(builder)
            .build()
            .await
            .expect("the balancer is linked in");
        Self {
            desks,
            providers,
            till: TillClient::refer(&invoker),
        }
    }

    /// Makes calls, one after the other; returns how many of them failed.
    async fn pay(&self, times: usize) -> usize {
        let mut failed = 0;
        for _ in 0..times {
            failed += usize::from(self.till.pay().await.is_err());
        }
        failed
    }

    /// How often each was called since the last time this was asked.
    fn called(&self) -> Vec<usize> {
        let called = self
            .desks
            .iter()
            .map(|desk| desk.called.swap(0, Ordering::SeqCst));
        called.collect()
    }
}

fn desk() -> Desk {
    Desk {
        takes: Duration::from_millis(2),
        ..Desk::default()
    }
}

#[tokio::test(start_paused = true)]
async fn instance_that_fails_is_left_out_and_tried_again_later() {
    let broken = Desk {
        broken: true,
        ..desk()
    };
    let shop = Shop::open(
        "round_robin?eject_after=3&eject_ms=1000",
        [desk(), broken, desk()],
    )
    .await;
    assert_eq!(shop.pay(100).await, 3, "it gets three calls and no more");
    assert_eq!(shop.called()[1], 3);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(shop.pay(100).await, 3, "it is back, and still fails");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(shop.pay(100).await, 0, "twice as long now");
}

#[tokio::test(start_paused = true)]
async fn p18_invoker_whose_instances_all_fail_goes_on_trying_them() {
    let broken = || Desk {
        broken: true,
        ..desk()
    };
    let shop = Shop::open("random?eject_after=1", [broken(), broken()]).await;
    assert_eq!(shop.pay(50).await, 50);
    assert_eq!(
        shop.called().iter().sum::<usize>(),
        50,
        "each call reached an instance"
    );
}

#[tokio::test(start_paused = true)]
async fn p2c_finds_the_slow_instance_by_itself() {
    let slow = Desk {
        takes: Duration::from_millis(100),
        ..desk()
    };
    let shop = Shop::open("p2c", [slow, desk(), desk()]).await;
    assert_eq!(shop.pay(300).await, 0);
    let called = shop.called();
    assert!((1..=5).contains(&called[0]), "{called:?}");
    assert!(called[1] + called[2] >= 295, "{called:?}");
}

/// A registry that shows what the test sets.
#[derive(Debug)]
struct Shown(watch::Sender<Snapshot>);

impl Shown {
    fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(Snapshot::unknown())))
    }

    /// Shows these as `(address, zone, weight)`, known by their addresses.
    fn show(&self, instances: &[(&str, &str, u32)]) {
        let instance = |(address, zone, weight): &(&str, &str, u32)| {
            let json = format!(
                r#"{{"id": "{address}", "address": "{address}", "zone": "{zone}", "weight": {weight}}}"#
            );
            Arc::new(serde_json::from_str::<Instance>(&json).expect("an instance"))
        };
        self.0.send_replace(Snapshot {
            instances: instances.iter().map(instance).collect(),
            freshness: Freshness::Fresh,
        });
    }
}

#[async_trait::async_trait]
impl Registry for Shown {
    async fn register(&self, _: &ServiceKey, _: &Instance, _: Duration) -> Result<(), RegistryError> {
        Ok(())
    }

    async fn deregister(&self, _: &ServiceKey, _: &InstanceId) -> Result<(), RegistryError> {
        Ok(())
    }

    fn subscribe(&self, _: &ServiceKey) -> Result<watch::Receiver<Snapshot>, RegistryError> {
        Ok(self.0.subscribe())
    }

    async fn close(&self) {}
}

#[tokio::test(start_paused = true)]
async fn own_zone_is_called_while_it_lives() {
    let registry = Shown::new();
    let shown = Arc::clone(&registry);
    registry.show(&[("desk-0:1", "a", 100), ("desk-1:1", "b", 100)]);
    let mut shop = Shop::found("round_robin?zone=b", [desk(), desk()], |builder| {
        builder.registry(shown)
    })
    .await;
    assert_eq!(shop.pay(10).await, 0);
    assert_eq!(shop.called(), [0, 10]);
    // It ends without deregistering, and the list does not know yet.
    drop(shop.providers.pop());
    let failed = shop.pay(10).await;
    assert!(
        failed <= 2,
        "{failed} calls found it dead: one on its connection, one that connected again"
    );
    assert!(shop.called()[0] >= 8);
    registry.show(&[("desk-0:1", "a", 100)]);
    assert_eq!(shop.pay(10).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_an_instance_survives_a_change_of_the_list() {
    let registry = Shown::new();
    let shown = Arc::clone(&registry);
    registry.show(&[("desk-0:1", "a", 100), ("desk-1:1", "a", 100)]);
    let broken = Desk {
        broken: true,
        ..desk()
    };
    let shop = Shop::found("weighted?eject_after=3", [desk(), broken, desk()], |builder| {
        builder.registry(shown)
    })
    .await;
    assert_eq!(shop.pay(20).await, 3);
    // One more joins, and the broken one announces that it can bear more.
    registry.show(&[
        ("desk-0:1", "a", 100),
        ("desk-1:1", "a", 900),
        ("desk-2:1", "a", 100),
    ]);
    assert_eq!(shop.pay(20).await, 0, "it is still left out");
    let called = shop.called();
    assert_eq!(called[1], 3);
    assert!(
        (8..=10).contains(&called[2]),
        "in turn with the first: {called:?}"
    );
}
