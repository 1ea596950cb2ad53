//! Consuming: order, acks, moves of queues between members, failures of handlers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mq_client::config::OutOfRange;
use mq_client::consumer::ConsumerEvent;
use mq_client::{ConsumeError, Delivery, Message};
use mq_common::ErrorCode;
use mq_common::api::group::StartAt;
use mq_common::ids::Timestamp;
use tokio::sync::Notify;

use super::Cluster;
use super::broker::group::SINCE_MS;

fn message(payload: &str) -> Message {
    Message::new("t", payload.to_owned()).unwrap()
}

async fn produce(cluster: &Cluster, range: std::ops::Range<u32>) {
    let producer = cluster.client.producer().build();
    for receipt in producer
        .send_all(range.map(|n| message(&n.to_string()).key(n.to_string())))
        .await
    {
        receipt.unwrap();
    }
}

/// Collects what handlers were given.
#[derive(Default)]
struct Inbox {
    seen: Mutex<Vec<(u32, u64, u32)>>,
    arrived: Notify,
}

impl Inbox {
    fn add(&self, message: &Delivery) {
        let payload = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
        self.seen
            .lock()
            .unwrap()
            .push((message.queue.0, message.offset.0, payload));
        self.arrived.notify_waiters();
    }

    fn payloads(&self) -> BTreeSet<u32> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(_, _, payload)| *payload)
            .collect()
    }

    async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let arrived = self.arrived.notified();
                if holds(self) {
                    return;
                }
                arrived.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("messages did not arrive in 10 s");
    }
}

fn collect(
    inbox: &Arc<Inbox>,
) -> impl Fn(Delivery) -> std::future::Ready<Result<(), std::io::Error>> + use<> {
    let inbox = Arc::clone(inbox);
    move |message: Delivery| {
        inbox.add(&message);
        std::future::ready(Ok(()))
    }
}

#[tokio::test]
async fn every_message_arrives_once_and_in_order_and_is_acked() {
    let cluster = Cluster::start(&["a", "b"], 4).await;
    produce(&cluster, 0..100).await;
    let inbox = Arc::<Inbox>::default();
    let consumer = cluster
        .client
        .consumer("t", "g")
        .unwrap()
        .run(collect(&inbox))
        .await
        .unwrap();
    inbox.until(|inbox| inbox.payloads().len() == 100).await;
    produce(&cluster, 100..200).await;
    inbox.until(|inbox| inbox.payloads().len() == 200).await;
    consumer.stop().await.unwrap();
    let seen = inbox.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 200);
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    for (queue, offset, _) in seen {
        let expected = next.entry(queue).or_default();
        assert_eq!(offset, *expected, "queue {queue}");
        *expected += 1;
    }
    for (queue, next) in next {
        let broker = &cluster.brokers[queue as usize % 2];
        assert_eq!(broker.cursor("g", queue), next, "queue {queue}");
        assert_eq!(broker.members("g"), 0);
    }
    cluster.stop().await;
}

#[tokio::test]
async fn second_member_takes_over_half_and_nothing_is_delivered_twice() {
    let cluster = Cluster::start(&["a"], 4).await;
    produce(&cluster, 0..50).await;
    let inbox = Arc::<Inbox>::default();
    let join = || cluster.client.consumer("t", "g").unwrap().run(collect(&inbox));
    let first = join().await.unwrap();
    inbox.until(|inbox| inbox.payloads().len() == 50).await;
    let second = join().await.unwrap();
    cluster.brokers[0]
        .until(|_| first.assigned().len() == 2 && second.assigned().len() == 2)
        .await;
    produce(&cluster, 50..150).await;
    inbox.until(|inbox| inbox.payloads().len() == 150).await;
    first.stop().await.unwrap();
    cluster.brokers[0].until(|_| second.assigned().len() == 4).await;
    produce(&cluster, 150..160).await;
    inbox.until(|inbox| inbox.payloads().len() == 160).await;
    assert_eq!(inbox.seen.lock().unwrap().len(), 160);
    second.stop().await.unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn failed_message_is_handed_over_again_and_those_behind_it_wait() {
    let cluster = Cluster::start(&["a"], 1).await;
    produce(&cluster, 0..5).await;
    let inbox = Arc::<Inbox>::default();
    let handler = {
        let inbox = Arc::clone(&inbox);
        move |message: Delivery| {
            inbox.add(&message);
            let payload = std::str::from_utf8(&message.payload).unwrap().to_owned();
            async move {
                match (payload.as_str(), message.attempt) {
                    ("2", 1) => Err("not now".to_owned()),
                    ("2", 2) => panic!("not now either"),
                    _ => Ok(()),
                }
            }
        }
    };
    let builder = cluster.client.consumer("t", "g").unwrap();
    let builder = builder.retry(Duration::from_millis(5), Duration::from_millis(10));
    let consumer = builder.run(handler).await.unwrap();
    inbox.until(|inbox| inbox.payloads().len() == 5).await;
    consumer.stop().await.unwrap();
    let order: Vec<_> = inbox
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|(_, _, payload)| *payload)
        .collect();
    assert_eq!(order, [0, 1, 2, 2, 2, 3, 4]);
    assert_eq!(cluster.brokers[0].cursor("g", 0), 5);
    cluster.stop().await;
}

#[tokio::test]
async fn subscription_acks_only_what_the_application_acked() {
    let cluster = Cluster::start(&["a"], 1).await;
    produce(&cluster, 0..10).await;
    let mut subscription = cluster
        .client
        .consumer("t", "g")
        .unwrap()
        .subscribe()
        .await
        .unwrap();
    for offset in 0..5 {
        let message = subscription.next().await.unwrap();
        assert_eq!((message.offset.0, message.attempt), (offset, 1));
        if offset < 3 {
            subscription.ack(&message).unwrap();
        }
    }
    subscription.flush_acks().await;
    assert_eq!(cluster.brokers[0].cursor("g", 0), 3);
    subscription.close().await.unwrap();
    let mut again = cluster
        .client
        .consumer("t", "g")
        .unwrap()
        .subscribe()
        .await
        .unwrap();
    assert_eq!(again.next().await.unwrap().offset.0, 3);
    again.close().await.unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn chunks_give_records_without_copies_and_skip_what_is_done() {
    let cluster = Cluster::start(&["a"], 1).await;
    let producer = cluster
        .client
        .producer()
        .linger(Duration::from_millis(20))
        .build();
    let sent = producer.send_all((0..10).map(|n| message(&n.to_string()))).await;
    assert!(sent.iter().all(Result::is_ok));
    let mut subscription = cluster
        .client
        .consumer("t", "g")
        .unwrap()
        .subscribe()
        .await
        .unwrap();
    let first = subscription.next().await.unwrap();
    subscription.ack(&first).unwrap();
    subscription.close().await.unwrap();
    let mut subscription = cluster
        .client
        .consumer("t", "g")
        .unwrap()
        .subscribe()
        .await
        .unwrap();
    let mut payloads = Vec::new();
    while payloads.len() < 9 {
        let chunk = subscription.poll().await.unwrap();
        chunk
            .for_each(|offset, record| payloads.push((offset.0, record.payload.to_vec())))
            .unwrap();
        subscription.ack_chunk(&chunk).unwrap();
    }
    assert_eq!(payloads.first(), Some(&(1, b"1".to_vec())));
    subscription.flush_acks().await;
    assert_eq!(cluster.brokers[0].cursor("g", 0), 10);
    subscription.close().await.unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn refused_member_does_not_start() {
    let cluster = Cluster::start(&["a", "b"], 2).await;
    let refused = cluster
        .client
        .consumer("t", "refused")
        .unwrap()
        .subscribe()
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, ConsumeError::Refused { error, .. } if error.code == ErrorCode::SubscriptionMismatch),
        "{refused}"
    );
    let unknown = cluster
        .client
        .consumer("nope", "g")
        .unwrap()
        .subscribe()
        .await
        .unwrap_err();
    assert!(matches!(unknown, ConsumeError::Route(_)), "{unknown}");
    cluster.stop().await;
}

static REGISTERED: std::sync::LazyLock<Inbox> = std::sync::LazyLock::new(Inbox::default);

#[mq_client::consumer(topic = "t", group = "registered", threads = 2)]
async fn registered(message: &Delivery) -> Result<(), std::io::Error> {
    REGISTERED.add(message);
    Ok(())
}

#[tokio::test]
async fn registered_consumers_run() {
    let cluster = Cluster::start(&["a"], 2).await;
    produce(&cluster, 0..10).await;
    let running = cluster.client.run_consumers().await.unwrap();
    assert_eq!(running.names(), ["it::library::consume::registered"]);
    REGISTERED.until(|inbox| inbox.payloads().len() == 10).await;
    running.stop().await.unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn ack_that_is_refused_for_a_while_is_told_again_and_nothing_comes_twice() {
    let cluster = Cluster::start(&["a"], 4).await;
    produce(&cluster, 0..40).await;
    let inbox = Arc::<Inbox>::default();
    let join = || cluster.client.consumer("t", "g").unwrap().run(collect(&inbox));
    let broker = &cluster.brokers[0];
    broker.ack_codes([ErrorCode::Overloaded, ErrorCode::Overloaded]);
    let first = join().await.unwrap();
    inbox.until(|inbox| inbox.payloads().len() == 40).await;
    // Two queues are asked back before the first ack is taken: they must not be given back without it.
    let second = join().await.unwrap();
    broker
        .until(|_| first.assigned().len() == 2 && second.assigned().len() == 2)
        .await;
    broker
        .until(|broker| (0..4).map(|queue| broker.cursor("g", queue)).sum::<u64>() == 40)
        .await;
    first.stop().await.unwrap();
    second.stop().await.unwrap();
    assert_eq!(inbox.seen.lock().unwrap().len(), 40);
    cluster.stop().await;
}

#[tokio::test]
async fn answer_that_lacks_a_batch_is_fetched_again() {
    let cluster = Cluster::start(&["a"], 1).await;
    for n in 0..5 {
        produce(&cluster, n..n + 1).await;
    }
    cluster.brokers[0].spoil_fetches(2);
    let inbox = Arc::<Inbox>::default();
    let consumer = cluster
        .client
        .consumer("t", "g")
        .unwrap()
        .run(collect(&inbox))
        .await
        .unwrap();
    inbox.until(|inbox| inbox.payloads().contains(&4)).await;
    consumer.stop().await.unwrap();
    let seen: Vec<_> = inbox
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|(_, offset, _)| *offset)
        .collect();
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    cluster.stop().await;
}

#[tokio::test]
async fn batch_that_comes_damaged_is_asked_for_from_the_disk_and_told() {
    let cluster = Cluster::start(&["a"], 1).await;
    for n in 0..5 {
        produce(&cluster, n..n + 1).await;
    }
    cluster.brokers[0].damage_memory(0);
    let inbox = Arc::<Inbox>::default();
    let events = Arc::<Mutex<Vec<ConsumerEvent>>>::default();
    let observed = Arc::clone(&events);
    let consumer = cluster
        .client
        .consumer("t", "g")
        .unwrap()
        .on_event(move |event| observed.lock().unwrap().push(event))
        .run(collect(&inbox))
        .await
        .unwrap();
    cluster.brokers[0]
        .until(|broker| broker.cursor("g", 0) == 5)
        .await;
    consumer.stop().await.unwrap();
    let seen: Vec<_> = inbox
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|(_, offset, _)| *offset)
        .collect();
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    let events = events.lock().unwrap().clone();
    let corrupt =
        |event: &&ConsumerEvent| matches!(event, ConsumerEvent::Corrupt { offset, .. } if offset.0 == 0);
    assert_eq!(events.iter().filter(corrupt).count(), 1, "{events:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn consumer_that_is_to_stop_at_a_gap_ends_with_what_there_is() {
    let cluster = Cluster::start(&["a"], 1).await;
    for n in 0..5 {
        produce(&cluster, n..n + 1).await;
    }
    cluster.brokers[0].trim(3);
    let inbox = Arc::<Inbox>::default();
    let consumer = cluster
        .client
        .consumer("t", "g")
        .unwrap()
        .out_of_range(OutOfRange::Stop)
        .run(collect(&inbox))
        .await
        .unwrap();
    let failed = consumer.stopped().await;
    assert!(
        matches!(
            failed,
            Err(ConsumeError::OutOfRange {
                cursor: 0,
                start: 3,
                end: 5,
                ..
            })
        ),
        "{failed:?}"
    );
    assert!(inbox.seen.lock().unwrap().is_empty());
    assert_eq!(
        cluster.brokers[0].cursor("g", 0),
        0,
        "the cursor waits for a person"
    );
    cluster.stop().await;
}

#[tokio::test]
async fn member_that_its_broker_forgot_joins_again_at_once() {
    let cluster = Cluster::start(&["a"], 4).await;
    cluster.brokers[0].seldom();
    let inbox = Arc::<Inbox>::default();
    let consumer = cluster.client.consumer("t", "g").unwrap();
    let consumer = consumer.run(collect(&inbox)).await.unwrap();
    produce(&cluster, 0..10).await;
    inbox.until(|inbox| inbox.payloads().len() == 10).await;
    cluster.brokers[0].forget_members();
    // Its next heartbeat is due in a minute.
    produce(&cluster, 10..20).await;
    inbox.until(|inbox| inbox.payloads().len() == 20).await;
    consumer.stop().await.unwrap();
    cluster.stop().await;
}

/// Waits until a member has joined there, and says where the group was to start.
async fn start_at(cluster: &Cluster, broker: usize) -> Vec<Option<StartAt>> {
    cluster.brokers[broker]
        .until(|broker| broker.members("g") == 1)
        .await;
    let mut starts = cluster.brokers[broker].starts();
    starts.dedup();
    starts
}

#[tokio::test]
async fn group_of_the_latest_begins_at_one_time_also_where_it_is_met_later() {
    let since = Some(StartAt::Time(Timestamp(SINCE_MS - 1000)));
    let join = async |cluster: &Cluster| {
        let consumer = cluster
            .client
            .consumer("t", "g")
            .unwrap()
            .start_at(StartAt::Latest);
        consumer.run(collect(&Arc::default())).await.unwrap()
    };
    // A broker that was away at the start.
    let cluster = Cluster::start(&["a", "b"], 2).await;
    cluster.brokers[1].fall_ill();
    let consumer = join(&cluster).await;
    assert_eq!(start_at(&cluster, 0).await[..2], [None, Some(StartAt::Latest)]);
    cluster.brokers[1].recover();
    assert_eq!(start_at(&cluster, 1).await, [since]);
    consumer.stop().await.unwrap();
    cluster.stop().await;

    // The same, met first by a member that was not there when the group began.
    let cluster = Cluster::start(&["a", "b"], 2).await;
    cluster.brokers[1].fall_ill();
    join(&cluster).await.stop().await.unwrap();
    cluster.brokers[1].recover();
    let consumer = join(&cluster).await;
    assert_eq!(start_at(&cluster, 1).await[..2], [None, since]);
    consumer.stop().await.unwrap();
    cluster.stop().await;
}
