//! Producing: choice of queue, batches, order, failures and what is said about them.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use mq_client::{Message, Outcome, PushError, RouteError, SendError};
use mq_common::ErrorCode;
use mq_common::batch::Compression;
use mq_common::ids::{Durability, QueueNumber};

use super::Cluster;
use super::broker::Act;

fn message(payload: &str) -> Message {
    Message::new("t", payload.to_owned()).unwrap()
}

#[tokio::test]
async fn send_returns_where_the_message_went() {
    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster.client.producer().build();
    for offset in 0..3 {
        let receipt = producer.send(message("x")).await.unwrap();
        assert_eq!(
            (receipt.queue.0, receipt.base_offset.0, receipt.durability),
            (0, offset, Durability::Fsynced)
        );
    }
    assert_eq!(producer.stats().confirmed, 3);
    cluster.stop().await;
}

#[tokio::test]
async fn key_decides_the_queue_and_keeps_the_order() {
    let cluster = Cluster::start(&["a", "b"], 8).await;
    let producer = cluster.client.producer().build();
    let messages = (0..200).map(|n| message(&n.to_string()).key(format!("key-{}", n % 5)));
    let receipts = producer.send_all(messages).await;
    for key in 0..5_usize {
        let of_key: Vec<_> = receipts
            .iter()
            .skip(key)
            .step_by(5)
            .map(|r| r.as_ref().unwrap())
            .collect();
        let queues: BTreeSet<_> = of_key.iter().map(|receipt| receipt.queue).collect();
        assert_eq!(queues.len(), 1);
        assert!(of_key.is_sorted_by_key(|receipt| receipt.base_offset));
    }
    cluster.stop().await;
}

#[tokio::test]
async fn messages_without_a_key_spread_over_brokers_and_queues() {
    let cluster = Cluster::start(&["a", "b"], 4).await;
    let producer = cluster.client.producer().build();
    let mut queues = BTreeSet::new();
    for _ in 0..8 {
        queues.insert(producer.send(message("x")).await.unwrap().queue.0);
    }
    assert_eq!(queues, BTreeSet::from([0, 1, 2, 3]));
    cluster.stop().await;
}

#[tokio::test]
async fn messages_sent_together_travel_together() {
    let cluster = Cluster::start(&["a"], 2).await;
    let producer = cluster.client.producer().linger(Duration::from_secs(60)).build();
    let messages = (0..50).map(|n| message(&n.to_string()));
    let flush = async {
        while producer.stats().confirmed < 50 {
            producer.flush().await;
            tokio::task::yield_now().await;
        }
    };
    let (receipts, ()) = tokio::join!(producer.send_all(messages), flush);
    assert!(receipts.iter().all(Result::is_ok));
    let batches = cluster.brokers[0].batches();
    assert!(batches <= 10, "{batches} batches");
    cluster.stop().await;
}

#[tokio::test]
async fn compressed_batches_arrive_whole() {
    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster.client.producer().compression(Compression::Lz4).build();
    producer.send(message(&"abc".repeat(1000))).await.unwrap();
    assert_eq!(cluster.brokers[0].payloads("t", 0), ["abc".repeat(1000)]);
    cluster.stop().await;
}

#[tokio::test]
async fn unknown_topic_and_unknown_queue_are_definite_and_say_what_to_do() {
    let cluster = Cluster::start(&["a"], 2).await;
    let producer = cluster.client.producer().build();
    let error = producer
        .send(Message::new("nope", "x").unwrap())
        .await
        .unwrap_err();
    assert!(
        matches!(error, SendError::Route(RouteError::UnknownTopic { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("mq topic create nope"), "{error}");
    let error = producer
        .send(message("x").queue(QueueNumber(2)))
        .await
        .unwrap_err();
    assert!(
        matches!(error, SendError::Route(RouteError::UnknownQueue { queue: 2, .. })),
        "{error}"
    );
    assert_eq!(error.outcome(), Outcome::Definite);
    let error = producer.send(message(&"x".repeat(5 << 20))).await.unwrap_err();
    assert!(matches!(error, SendError::Message(_)), "{error}");
    producer.send(message("still works")).await.unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn passing_refusal_is_tried_again_and_a_lasting_one_is_not() {
    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster.client.producer().build();
    cluster.brokers[0].acts([
        Act::Refuse(ErrorCode::Overloaded),
        Act::Refuse(ErrorCode::NotLeader),
    ]);
    producer.send(message("x")).await.unwrap();
    assert_eq!(cluster.brokers[0].produce_calls(), 3);
    cluster.brokers[0].acts([Act::Refuse(ErrorCode::DurabilityBelowFloor)]);
    let error = producer.send(message("y")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::DurabilityBelowFloor));
    assert_eq!(error.outcome(), Outcome::Definite);
    assert_eq!(cluster.brokers[0].payloads("t", 0), ["x"]);
    cluster.stop().await;
}

#[tokio::test]
async fn full_disk_fails_at_once_unless_another_broker_takes_the_message() {
    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster.client.producer().build();
    cluster.brokers[0].acts([Act::Refuse(ErrorCode::DiskFull)]);
    let error = producer.send(message("x")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::DiskFull));
    assert_eq!(error.outcome(), Outcome::Definite);
    assert_eq!(cluster.brokers[0].produce_calls(), 1, "not tried again");
    producer.send(message("y")).await.unwrap();
    cluster.stop().await;
    let cluster = Cluster::start(&["a", "b"], 2).await;
    let producer = cluster.client.producer().build();
    for broker in &cluster.brokers {
        broker.acts([Act::Refuse(ErrorCode::DiskFull)]);
    }
    // Whichever is asked first, the other one refuses once too, and the third time it is taken.
    producer.send(message("z")).await.unwrap();
    let calls: Vec<_> = cluster
        .brokers
        .iter()
        .map(super::FakeBroker::produce_calls)
        .collect();
    assert_eq!(calls.iter().sum::<usize>(), 3, "{calls:?}");
    // With a key it belongs to one broker.
    for broker in &cluster.brokers {
        broker.acts([Act::Refuse(ErrorCode::DiskFull)]);
    }
    let error = producer.send(message("k").key("k")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::DiskFull));
    cluster.stop().await;
}

#[tokio::test]
async fn send_without_an_answer_is_of_unknown_outcome_and_never_sent_again() {
    let cluster = Cluster::start(&["a", "b"], 2).await;
    let producer = cluster
        .client
        .producer()
        .timeout(Duration::from_millis(300))
        .build();
    let calls = || -> usize { cluster.brokers.iter().map(super::FakeBroker::produce_calls).sum() };
    // Connected, and the topic is known.
    producer.send(message("x")).await.unwrap();
    let before = calls();
    for broker in &cluster.brokers {
        broker.acts([Act::Silence]);
    }
    let error = producer.send(message("x")).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert_eq!(producer.stats().unknown, 1);
    assert_eq!(calls(), before + 1);
    cluster.stop().await;
}

#[tokio::test]
async fn messages_without_a_key_move_on_when_a_broker_dies_and_keyed_ones_fail() {
    let mut cluster = Cluster::start(&["a", "b"], 4).await;
    let producer = cluster.client.producer().timeout(Duration::from_secs(5)).build();
    producer.send(message("x")).await.unwrap();
    producer.send(message("x")).await.unwrap();
    cluster.brokers.pop().unwrap().stop().await;
    for _ in 0..10 {
        let receipt = producer.send(message("y")).await.unwrap();
        assert_eq!(receipt.queue.0 % 2, 0, "queues 0 and 2 are those of `a`");
    }
    let impatient = cluster
        .client
        .producer()
        .timeout(Duration::from_millis(200))
        .build();
    let error = impatient
        .send(message("z").queue(QueueNumber(1)))
        .await
        .unwrap_err();
    assert_eq!(error.outcome(), Outcome::Definite, "{error}");
    cluster.stop().await;
}

#[tokio::test]
async fn oneway_messages_arrive_and_their_bytes_are_limited() {
    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster
        .client
        .producer()
        .in_flight_bytes(10_000)
        .linger(Duration::from_secs(60))
        .build();
    let mut refused = None;
    for n in 0..1000 {
        if let Err(error) = producer.send_oneway(message(&format!("{n:0100}"))).await {
            refused = Some((n, error));
            break;
        }
    }
    let (queued, error) = refused.unwrap();
    assert!(
        matches!(error, SendError::Overloaded { limit: 10_000 }),
        "{error}"
    );
    producer.flush().await;
    assert_eq!(producer.stats().oneway_sent, queued);
    let broker = &cluster.brokers[0];
    broker
        .until(|broker| broker.payloads("t", 0).len() as u64 == queued)
        .await;
    cluster.stop().await;
}

#[tokio::test]
async fn oneway_messages_to_a_dead_broker_are_dropped_and_counted() {
    let mut cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster.client.producer().build();
    producer.send(message("x")).await.unwrap();
    cluster.brokers.pop().unwrap().stop().await;
    producer.send_oneway(message("y")).await.unwrap();
    producer.flush().await;
    assert_eq!(
        (producer.stats().oneway_sent, producer.stats().oneway_dropped),
        (0, 1)
    );
    cluster.stop().await;
}

#[tokio::test]
async fn callback_gets_the_outcome_on_a_thread_of_the_pool() {
    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster.client.producer().build();
    let (sender, receiver) = mpsc::sync_channel(1);
    let tell = move |outcome: Result<_, _>| {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        sender.send((outcome, thread)).unwrap();
    };
    producer.send_callback(message("x"), tell).await.unwrap();
    producer.flush().await;
    let (outcome, thread) = tokio::task::spawn_blocking(move || receiver.recv().unwrap())
        .await
        .unwrap();
    assert_eq!(outcome.unwrap().base_offset.0, 0);
    assert!(thread.starts_with("callback-"), "{thread}");
    cluster.stop().await;
}

#[tokio::test]
async fn writer_takes_records_without_waiting_and_counts_them() {
    let cluster = Cluster::start(&["a", "b"], 4).await;
    let producer = cluster
        .client
        .producer()
        .batch_bytes(2000)
        .in_flight_bytes(10_000)
        .build();
    let mut writer = producer.writer("t").await.unwrap();
    let mut full = 0;
    for n in 0..1000_u32 {
        let payload = format!("{n:050}");
        let key = (n % 2 == 0).then(|| n.to_string());
        while let Err(error) = writer.push(key.as_ref().map(String::as_bytes), payload.as_bytes()) {
            assert_eq!(error, PushError::Full);
            full += 1;
            writer.ready().await;
        }
    }
    let summary = writer.flush().await;
    assert_eq!(
        (summary.confirmed, summary.failed, summary.unknown),
        (1000, 0, 0),
        "{summary:?}"
    );
    assert!(full > 0, "the budget was never full");
    let mut all: Vec<_> = (0..4)
        .flat_map(|queue| {
            cluster
                .brokers
                .iter()
                .flat_map(move |broker| broker.payloads("t", queue))
        })
        .collect();
    all.sort();
    assert!(
        all.iter()
            .map(|payload| payload.parse::<u32>().unwrap())
            .eq(0..1000)
    );
    cluster.stop().await;
}

#[tokio::test]
async fn shutdown_fails_what_was_queued_and_not_sent() {
    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster.client.producer().linger(Duration::from_secs(60)).build();
    cluster
        .client
        .producer()
        .build()
        .send(message("so that the route is known"))
        .await
        .unwrap();
    let sending = producer.send(message("x"));
    // Joined in this order, the message is queued before the client is stopped.
    let (sent, ()) = tokio::join!(sending, cluster.client.shutdown());
    assert_eq!(sent, Err(SendError::Closed));
    cluster.stop().await;
}

#[tokio::test]
async fn producer_of_a_stopped_client_refuses_at_once() {
    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster.client.producer().build();
    let mut writer = producer.writer("t").await.unwrap();
    writer.push(None, b"x").unwrap();
    cluster.client.shutdown().await;
    assert_eq!(producer.send(message("x")).await, Err(SendError::Closed));
    assert_eq!(producer.send_oneway(message("x")).await, Err(SendError::Closed));
    let other = Message::new("never-looked-up", "x").unwrap();
    assert_eq!(producer.send(other).await, Err(SendError::Closed));
    let summary = writer.flush().await;
    assert_eq!(
        (summary.failed, summary.first_error),
        (1, Some(SendError::Closed))
    );
    cluster.stop().await;
}

#[tokio::test]
async fn dropped_producer_still_sends_what_it_had_queued() {
    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster.client.producer().linger(Duration::from_secs(60)).build();
    for n in 0..3 {
        producer.send_oneway(message(&n.to_string())).await.unwrap();
    }
    drop(producer);
    cluster.brokers[0]
        .until(|broker| broker.payloads("t", 0) == ["0", "1", "2"])
        .await;
    cluster.stop().await;
}

#[tokio::test]
async fn what_waits_for_a_topic_does_not_go_to_the_next_one_of_its_name() {
    let cluster = Cluster::start(&["a"], 8).await;
    let broker = &cluster.brokers[0];
    let producer = cluster.client.producer().build();
    producer.send(message("before").key("k")).await.unwrap();
    // Refused for the moment, and tried again when the topic is another one, in which the key has another
    // queue.
    broker.acts([Act::Refuse(ErrorCode::Overloaded)]);
    let waiting = producer.send(message("late").key("k"));
    let making = async {
        broker.until(|broker| broker.produce_calls() == 2).await;
        broker.make_again("t", 1);
    };
    let (late, ()) = tokio::join!(waiting, making);
    let late = late.unwrap_err();
    assert_eq!(late.code(), Some(ErrorCode::UnknownTopic), "{late}");
    assert_eq!(late.outcome(), Outcome::Definite);
    // The refusal had the routes asked for again.
    let receipt = loop {
        match producer.send(message("new").key("k")).await {
            Ok(receipt) => break receipt,
            Err(error) => assert_eq!(error.code(), Some(ErrorCode::UnknownTopic), "{error}"),
        }
    };
    assert_eq!((receipt.queue.0, receipt.base_offset.0), (0, 0));
    assert_eq!(broker.payloads("t", 0), ["new"]);
    cluster.stop().await;
}
