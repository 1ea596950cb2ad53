//! The registry of one process against the contract.

use std::sync::Arc;

use async_trait::async_trait;
use rpc_core::registry::Registry;
use rpc_registry::contract::{self, Fixture};

struct Place;

#[async_trait]
impl Fixture for Place {
    async fn open(&self) -> Arc<dyn Registry> {
        rpc_registry::local("contract")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_keeps_the_contract() {
    contract::check(Arc::new(Place)).await;
}

#[tokio::test]
async fn places_of_other_names_see_nothing() {
    let (here, there) = (rpc_registry::local("here"), rpc_registry::local("there"));
    let key = contract::unused_key("places");
    let me = contract::instance("h:1");
    here.register(&key, &me, std::time::Duration::ZERO)
        .await
        .expect("local takes everything");
    assert!(there.subscribe(&key).expect("open").borrow().instances.is_empty());
    assert_eq!(here.subscribe(&key).expect("open").borrow().instances.len(), 1);
}
