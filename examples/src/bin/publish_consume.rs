//! A first broker program: a topic, a producer, and a consumer group whose handler is found at link time.
//!
//! `cargo run -p examples --bin publish_consume`
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::convert::Infallible;
use std::error::Error;
use std::sync::OnceLock;
use std::time::Duration;

use examples::local_broker::LocalBroker;
use mq_client::{Client, Delivery, Message, NewTopic};
use tokio::sync::mpsc::{Sender, channel};

/// Where the handler sends what it received; a real one would do its work instead.
static GOT: OnceLock<Sender<Delivery>> = OnceLock::new();

/// After `Ok` the message is acked; after `Err` it is handed over again after a pause.
#[mq_client::consumer(topic = "orders", group = "billing")]
async fn bill(order: &Delivery) -> Result<(), Infallible> {
    if let Some(got) = GOT.get() {
        // The example ends when it has received everything; then the receiver is gone.
        drop(got.send(order.clone()).await);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let broker = LocalBroker::start("example", "embedded").await?;
    let client = Client::builder().brokers([broker.address()]).build().await?;
    client
        .admin()
        .create_topic(NewTopic::new("orders").queues(4))
        .await?;

    let (sender, mut got) = channel(16);
    GOT.set(sender).map_err(|_| "the handler was set up twice")?;
    let running = client.run_consumers().await?;
    println!("consuming: {}", running.names().join(", "));

    let producer = client.producer().linger(Duration::from_millis(1)).build();
    // Messages with the same key go to the same queue, in order.
    for step in ["placed", "paid", "shipped"] {
        let order = Message::new("orders", format!("order 7 is {step}"))?
            .key("order-7")
            .tag("status");
        let receipt = producer.send(order).await?;
        println!(
            "sent {step}: queue {}, offset {}, {}",
            receipt.queue, receipt.base_offset, receipt.durability
        );
    }
    // This one has no receipt: it is sent in the background, at most once, and may be lost.
    producer
        .send_oneway(Message::new("orders", "order 8 was looked at")?)
        .await?;
    producer.flush().await;

    for _ in 0..4 {
        let order = tokio::time::timeout(Duration::from_secs(10), got.recv())
            .await?
            .ok_or("the handler is gone")?;
        let body = String::from_utf8_lossy(&order.payload);
        println!("got `{body}` from queue {}, offset {}", order.queue, order.offset);
    }

    running.stop().await?;
    client.shutdown().await;
    broker.stop().await
}
