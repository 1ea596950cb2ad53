//! Consuming a topic that compacts: offsets without a message are passed over, are no damage, and hold no
//! cursor up.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mq_client::consumer::ConsumerEvent;
use mq_client::{Delivery, Message, Subscription};
use mq_common::ids::{Offset, QueueNumber};

use super::Cluster;

/// So many messages in queue 0 of `t`, each a batch.
async fn produce(cluster: &Cluster, count: usize) {
    let producer = cluster.client.producer().build();
    for _ in 0..count {
        producer.send(Message::new("t", "x").unwrap()).await.unwrap();
    }
}

async fn subscribe(cluster: &Cluster) -> Subscription {
    let builder = cluster.client.consumer("t", "g").unwrap();
    builder.subscribe().await.unwrap()
}

/// Pulls in vain until the cursor is there.
async fn pull_until_cursor(cluster: &Cluster, subscription: &mut Subscription, cursor: u64) {
    let broker = &cluster.brokers[0];
    tokio::select! {
        message = subscription.next() => panic!("{message:?}"),
        () = broker.until(|broker| broker.cursor("g", 0) == cursor) => {}
    }
}

#[tokio::test]
async fn what_was_compacted_is_counted_and_only_damage_is_a_hole() {
    let cluster = Cluster::start(&["a"], 1).await;
    produce(&cluster, 10).await;
    let broker = &cluster.brokers[0];
    broker.let_go(0, [0, 1, 4, 5, 8, 9], true);
    broker.let_go(0, [6], false);
    let seen = Arc::<Mutex<Vec<u64>>>::default();
    let events = Arc::<Mutex<Vec<ConsumerEvent>>>::default();
    let (handled, observed) = (Arc::clone(&seen), Arc::clone(&events));
    let consumer = cluster
        .client
        .consumer("t", "g")
        .unwrap()
        .retry(Duration::from_millis(1), Duration::from_millis(1))
        .on_event(move |event| observed.lock().unwrap().push(event))
        .run(move |message: Delivery| {
            handled.lock().unwrap().push(message.offset.0);
            // The one before a hole comes again.
            let failed = message.offset == Offset(3) && message.attempt == 1;
            std::future::ready(if failed { Err("not now") } else { Ok(()) })
        })
        .await
        .unwrap();
    broker.until(|broker| broker.cursor("g", 0) == 10).await;
    consumer.stop().await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [2, 3, 3, 7]);
    let events = events.lock().unwrap().clone();
    let compacted = events.iter().map(|event| match event {
        ConsumerEvent::Compacted { offsets, .. } => *offsets,
        _ => 0,
    });
    assert_eq!(compacted.sum::<u64>(), 6, "{events:?}");
    let damage: Vec<_> = events
        .iter()
        .filter(|event| matches!(event, ConsumerEvent::Hole { .. } | ConsumerEvent::Corrupt { .. }))
        .collect();
    let hole = ConsumerEvent::Hole {
        queue: QueueNumber(0),
        from: Offset(6),
        to: Offset(7),
    };
    assert_eq!(damage, [&hole]);
    cluster.stop().await;
}

#[tokio::test]
async fn acks_pass_over_what_holds_nothing_once_all_before_it_is_acked() {
    let cluster = Cluster::start(&["a"], 1).await;
    produce(&cluster, 6).await;
    cluster.brokers[0].let_go(0, [0, 3, 4, 5], true);
    let mut subscription = subscribe(&cluster).await;
    let first = subscription.next().await.unwrap();
    let second = subscription.next().await.unwrap();
    assert_eq!((first.offset, second.offset), (Offset(1), Offset(2)));
    subscription.ack(&first).unwrap();
    produce(&cluster, 1).await;
    let third = subscription.next().await.unwrap();
    assert_eq!(third.offset, Offset(6));
    subscription.flush_acks().await;
    assert_eq!(cluster.brokers[0].cursor("g", 0), 2, "the second is not acked");
    subscription.ack(&third).unwrap();
    subscription.ack(&second).unwrap();
    subscription.flush_acks().await;
    assert_eq!(cluster.brokers[0].cursor("g", 0), 7);
    subscription.close().await.unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn pulling_group_reaches_the_end_over_a_hole_and_goes_on_from_within_one() {
    let cluster = Cluster::start(&["a"], 1).await;
    produce(&cluster, 6).await;
    cluster.brokers[0].let_go(0, [4, 5], true);
    let mut subscription = subscribe(&cluster).await;
    for offset in 0..4 {
        let message = subscription.next().await.unwrap();
        assert_eq!(message.offset, Offset(offset));
        if offset < 2 {
            subscription.ack(&message).unwrap();
        }
    }
    subscription.close().await.unwrap();
    assert_eq!(cluster.brokers[0].cursor("g", 0), 2);
    // Its cursor lies in the middle of what is compacted now.
    cluster.brokers[0].let_go(0, [0, 1, 2], true);
    let mut subscription = subscribe(&cluster).await;
    let message = subscription.next().await.unwrap();
    assert_eq!(message.offset, Offset(3));
    subscription.ack(&message).unwrap();
    pull_until_cursor(&cluster, &mut subscription, 6).await;
    subscription.close().await.unwrap();
    // And with nothing before the hole.
    produce(&cluster, 2).await;
    cluster.brokers[0].let_go(0, [6, 7], true);
    let mut subscription = subscribe(&cluster).await;
    pull_until_cursor(&cluster, &mut subscription, 8).await;
    subscription.close().await.unwrap();
    cluster.stop().await;
}
