//! The real client and the real broker: members come and go, handlers fail, the broker is killed; no message
//! is passed over, and the group's cursors never run ahead of what handlers finished.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mq_client::consumer::Consumer;
use mq_client::{Client, Delivery, Message, NewTopic};
use tokio::task::JoinSet;

use crate::support::Broker;

const QUEUES: u32 = 5;

/// For each queue the offsets that a handler finished.
#[derive(Default)]
struct Finished(Mutex<BTreeMap<u32, BTreeSet<u64>>>);

impl Finished {
    fn add(&self, message: &Delivery) {
        let mut finished = self.0.lock().unwrap();
        finished
            .entry(message.queue.0)
            .or_default()
            .insert(message.offset.0);
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().values().map(BTreeSet::len).sum()
    }

    /// First offset of a queue that no handler finished.
    fn reach(&self, queue: u32) -> u64 {
        let finished = self.0.lock().unwrap();
        let offsets = finished.get(&queue).into_iter().flatten();
        (0..)
            .zip(offsets)
            .find(|(expected, offset)| expected != *offset)
            .map_or_else(
                || finished.get(&queue).map_or(0, |all| all.len() as u64),
                |(expected, _)| expected,
            )
    }
}

async fn member(client: &Client, finished: &Arc<Finished>) -> Consumer {
    let finished = Arc::clone(finished);
    let handler = move |message: Delivery| {
        let finished = Arc::clone(&finished);
        async move {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..300))).await;
            if fastrand::u32(..100) == 0 {
                return Err("not now".to_owned());
            }
            finished.add(&message);
            Ok(())
        }
    };
    let builder = client.consumer("orders", "billing").unwrap();
    let builder = builder.retry(Duration::from_millis(2), Duration::from_millis(20));
    builder.threads(2).run(handler).await.unwrap()
}

/// No cursor stands behind a message that no handler finished; answers with their sum.
async fn check_cursors(client: &Client, finished: &Finished) -> u64 {
    let described = client.admin().describe_group("billing").await.unwrap();
    let queues = described.items.iter().flat_map(|group| &group.queues);
    let mut sum = 0;
    for queue in queues {
        // Read after the cursor, so it can only have grown.
        let reach = finished.reach(queue.queue.0);
        assert!(
            queue.cursor.0 <= reach,
            "the cursor of queue {} is {}, finished are the messages below {reach}",
            queue.queue,
            queue.cursor
        );
        sum += queue.cursor.0;
    }
    sum
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within 40 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_passed_over_while_members_come_and_go_and_the_broker_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("broker.toml");
    std::fs::write(&config, "[group]\nheartbeat_ms = 100\nsession_ms = 1000\n").unwrap();
    let mut broker = Broker::start_with(&["--config", config.to_str().unwrap()]);
    let client = Client::builder().brokers([&broker.listen]).build().await.unwrap();
    client
        .admin()
        .create_topic(
            NewTopic::new("orders")
                .queues(QUEUES)
                .durability(mq_common::ids::Durability::Memory),
        )
        .await
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut producing = JoinSet::new();
    producing.spawn({
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        async move {
            let producer = client.producer().build();
            let mut acked = 0_u64;
            for n in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let message = |part| Message::new("orders", format!("{n}.{part}")).unwrap();
                let receipts = producer.send_all((0..20).map(message)).await;
                acked += receipts.iter().filter(|receipt| receipt.is_ok()).count() as u64;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            acked
        }
    });
    let finished = Arc::<Finished>::default();
    let mut members = vec![member(&client, &finished).await];
    for round in 0..6 {
        let before = finished.count();
        until("messages are handled", async || finished.count() > before + 300).await;
        check_cursors(&client, &finished).await;
        match round {
            0 | 1 | 4 => members.push(member(&client, &finished).await),
            // Dropped, not stopped: it leaves in the background, in the midst of the others' work.
            2 => drop(members.remove(0)),
            _ => broker.restart(),
        }
    }
    stop.store(true, Ordering::Relaxed);
    let acked = producing.join_next().await.unwrap().unwrap();
    let ends = async || {
        let described = client.admin().describe_topic("orders").await.unwrap();
        let queues = described.items.iter().flat_map(|topic| &topic.queues);
        queues.map(|queue| queue.end.0).sum::<u64>()
    };
    let all = ends().await;
    assert!(all >= acked, "{acked} were acked, {all} are there");
    until("every message is handled and acked", async || {
        check_cursors(&client, &finished).await == all
    })
    .await;
    assert_eq!(finished.count() as u64, all);
    for member in members {
        member.stop().await.unwrap();
    }
    client.shutdown().await;
}
