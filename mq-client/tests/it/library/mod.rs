//! The client library against a small broker in memory, over loopback.

mod admin;
mod broker;
mod compacted;
mod consume;
mod plugins;
mod produce;
mod transact;
mod unserved;

use std::sync::Arc;

use broker::FakeBroker;
use mq_client::{Client, NewTopic};
use rpc_core::registry::Registry;

/// Brokers, and a client that finds them.
pub(crate) struct Cluster {
    pub(crate) brokers: Vec<FakeBroker>,
    pub(crate) client: Client,
    registry: Arc<dyn Registry>,
}

impl Cluster {
    /// Brokers of these names and a topic `t` with so many queues, in a registry of their own.
    pub(crate) async fn start(names: &[&str], queues: u32) -> Self {
        let registry = rpc_registry::local(&format!("mq-client-{}", fastrand::u64(..)));
        let mut brokers = Vec::new();
        for name in names {
            brokers.push(FakeBroker::start(name, &registry).await);
        }
        let client = Client::builder()
            .registry(Arc::clone(&registry))
            .build()
            .await
            .unwrap();
        client
            .admin()
            .create_topic(NewTopic::new("t").queues(queues))
            .await
            .unwrap();
        Self {
            brokers,
            client,
            registry,
        }
    }

    pub(crate) async fn stop(self) {
        self.client.shutdown().await;
        for broker in self.brokers {
            broker.stop().await;
        }
        self.registry.close().await;
    }
}
