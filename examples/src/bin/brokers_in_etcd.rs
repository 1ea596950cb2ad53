//! Two brokers that register in etcd, a client that discovers them there, and a producer that spreads its
//! messages over both with a load balancer chosen by name.
//!
//! `cargo run -p examples --bin brokers_in_etcd -- --etcd 127.0.0.1:2379`; without `--etcd` it starts one
//! from PATH or from where `cargo xtask tools` installs it.
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::collections::BTreeSet;
use std::error::Error;
use std::time::Duration;

use clap::Parser;
use examples::local_broker::LocalBroker;
use examples::local_etcd::LocalEtcd;
use mq_client::{Client, Message, NewTopic};

#[derive(Debug, Parser)]
struct Arguments {
    /// host:port of a running etcd; without it, one is started.
    #[arg(long)]
    etcd: Option<String>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let own = match Arguments::parse().etcd {
        Some(address) => Err(address),
        None => Ok(LocalEtcd::start()?),
    };
    let registry = format!(
        "etcd://{}",
        own.as_ref()
            .map_or_else(|given| given.as_str(), LocalEtcd::address)
    );

    let (a, b) = (
        LocalBroker::start("broker-a", &registry).await?,
        LocalBroker::start("broker-b", &registry).await?,
    );
    let client = Client::builder()
        .registry(registry.as_str())
        .load_balancer("round_robin")
        .build()
        .await?;
    let topic = client
        .admin()
        .create_topic(NewTopic::new("orders").queues(4))
        .await?;
    for home in &topic.queues {
        println!("queue {} is on {}", home.queue, home.shard);
    }

    let producer = client.producer().build();
    let mut shards = BTreeSet::new();
    for number in 0..8 {
        let receipt = producer
            .send(Message::new("orders", format!("order {number}"))?)
            .await?;
        let shard = &topic.queues[receipt.queue.0 as usize].shard;
        println!("order {number} went to {shard}, queue {}", receipt.queue);
        shards.insert(shard.clone());
    }
    assert_eq!(shards.len(), 2, "both brokers get their share");

    let mut orders = client.consumer("orders", "billing")?.subscribe().await?;
    for _ in 0..8 {
        let order = tokio::time::timeout(Duration::from_secs(10), orders.next())
            .await?
            .ok_or("it ended")?;
        orders.ack(&order)?;
    }
    println!("all eight were consumed from both brokers");

    orders.close().await?;
    client.shutdown().await;
    a.stop().await?;
    b.stop().await
}
