//! A queue that its broker does not serve, or serves damaged, keeps none of the others that are asked for
//! with it.

use mq_client::{Delivery, Message};

use super::Cluster;

/// Messages in both queues of `t`; answers how many each has.
async fn produce(cluster: &Cluster) -> [u64; 2] {
    let producer = cluster.client.producer().build();
    let mut counts = [0; 2];
    for n in 0..40 {
        let message = Message::new("t", "x").unwrap().key(format!("key {n}"));
        let receipt = producer.send(message).await.unwrap();
        counts[receipt.queue.0 as usize] += 1;
    }
    assert!(counts.iter().all(|count| *count > 0));
    counts
}

async fn consume(cluster: &Cluster) -> mq_client::Consumer {
    let consumer = cluster.client.consumer("t", "g").unwrap().threads(1);
    let handler = |_: Delivery| std::future::ready(Ok::<_, std::io::Error>(()));
    consumer.run(handler).await.unwrap()
}

#[tokio::test]
async fn queue_that_is_refused_rests_while_the_other_is_asked_for_and_comes_back() {
    let cluster = Cluster::start(&["a"], 2).await;
    let counts = produce(&cluster).await;
    let broker = &cluster.brokers[0];
    broker.serves(0, false);
    let consumer = consume(&cluster).await;
    broker.until(|broker| broker.cursor("g", 1) == counts[1]).await;
    broker.serves(0, true);
    broker.until(|broker| broker.cursor("g", 0) == counts[0]).await;
    consumer.stop().await.unwrap();
    let fetches = broker.fetches();
    assert!(fetches.contains(&(vec![1], false)), "{fetches:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn queue_that_comes_damaged_is_asked_of_the_disk_alone() {
    let cluster = Cluster::start(&["a"], 2).await;
    let counts = produce(&cluster).await;
    let broker = &cluster.brokers[0];
    broker.damage_memory(0);
    let consumer = consume(&cluster).await;
    broker
        .until(|broker| (0..2).all(|queue| broker.cursor("g", queue) == counts[queue as usize]))
        .await;
    consumer.stop().await.unwrap();
    let mut from_disk = broker.fetches();
    from_disk.retain(|(_, from_disk)| *from_disk);
    assert!(!from_disk.is_empty());
    assert!(
        from_disk.iter().all(|(queues, _)| *queues == [0]),
        "{from_disk:?}"
    );
    cluster.stop().await;
}
