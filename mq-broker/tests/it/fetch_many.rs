//! One fetch over many queues.

use std::collections::BTreeSet;

use mq_common::api::fetch::{FetchRequest, Want};
use mq_common::ids::{Durability, Offset, QueueNumber, TopicName};

use crate::support::{BrokerProcess, Client, Options, eventually, topic};

const QUEUES: u32 = 2000;

/// A poll of this many queues of the topic, each from this offset on.
fn request(topic: &TopicName, offsets: &[Offset], bytes_max: u32, wait_ms: u32) -> FetchRequest {
    let wants = offsets.iter().zip(0..).map(|(offset, queue)| Want {
        topic: topic.clone(),
        queue: QueueNumber(queue),
        offset: *offset,
        epoch: None,
    });
    FetchRequest {
        member: None,
        wants: wants.collect(),
        bytes_max,
        wait_ms,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_long_poll_waits_for_thousands_of_queues_and_answers_those_that_have_something() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&folder.path().join("data"));
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, QUEUES, Durability::Memory).await;
    let offsets = vec![Offset(0); QUEUES as usize];
    let waiting = client.fetch.fetch(request(&orders, &offsets, 1 << 20, 30_000));
    let sending = async {
        eventually("the poll waits", async || {
            broker.get("/metrics").1.contains("hc_mq_fetches_waiting 1\n")
        })
        .await;
        client.send(&orders, 1234, &["x"], None).await.unwrap()
    };
    let (answered, _) = tokio::join!(async { waiting.await }, sending);
    let (response, batches) = answered.unwrap();
    let answers: Vec<_> = response.answers.iter().map(|(want, _)| *want).collect();
    assert_eq!(answers, [1234]);
    let fetched = response.answers[0].1.as_ref().unwrap();
    assert_eq!(fetched.next_offset, Offset(1));
    assert_eq!(batches.into_bytes().len(), fetched.bytes as usize);
}

/// Small answers from memory and from files: every queue has its turn, and everything is read once.
#[tokio::test(flavor = "multi_thread")]
async fn queues_in_memory_and_in_files_have_their_turns_in_small_answers() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "800000")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576");
    let broker = BrokerProcess::start_with(&folder.path().join("data"), &options);
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 4, Durability::Memory).await;
    let filler = "x".repeat(9_000);
    // The first two queues are old, the others new: some are in files and some in memory.
    for queue in [0, 1, 2, 3] {
        for number in 0..60 {
            client
                .send(&orders, queue, &[format!("{queue}-{number}-{filler}")], None)
                .await
                .unwrap();
        }
    }
    let mut offsets = vec![Offset(0); 4];
    let mut answered = BTreeSet::new();
    let mut calls = 0;
    while offsets.iter().any(|offset| offset.0 < 60) {
        let request = request(&orders, &offsets, 20_000, 0);
        let (response, _) = client.fetch.fetch(request).await.unwrap();
        assert!(!response.answers.is_empty(), "{offsets:?}");
        for (want, fetched) in response.answers {
            let offset = &mut offsets[want as usize];
            let fetched = fetched.unwrap();
            assert!(fetched.holes.is_empty() && fetched.next_offset > *offset);
            *offset = fetched.next_offset;
            if calls < 40 {
                answered.insert(want);
            }
        }
        calls += 1;
    }
    assert_eq!(answered.len(), 4, "every queue had its turn early");
}

/// However little each queue has: other clients do not wait for thousands of reads.
#[tokio::test(flavor = "multi_thread")]
async fn one_answer_reads_the_files_of_some_queues_and_the_next_ones_bring_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576");
    let broker = BrokerProcess::start_with(&folder.path().join("data"), &options);
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, QUEUES, Durability::Memory).await;
    for queue in 0..QUEUES {
        client.send(&orders, queue, &["x"], None).await.unwrap();
    }
    let mut left: BTreeSet<u32> = (0..QUEUES).collect();
    while !left.is_empty() {
        let offsets: Vec<_> = (0..QUEUES)
            .map(|queue| Offset(u64::from(!left.contains(&queue))))
            .collect();
        let (response, _) = client
            .fetch
            .fetch(request(&orders, &offsets, 1 << 20, 0))
            .await
            .unwrap();
        let answered = response.answers.iter().filter(|(_, fetched)| {
            let fetched = fetched.as_ref().unwrap();
            fetched.bytes > 0
        });
        let answered: Vec<u32> = answered.map(|(want, _)| *want).collect();
        assert!((1..=512).contains(&answered.len()), "{} queues", answered.len());
        for want in answered {
            assert!(left.remove(&want), "{want} twice");
        }
    }
}
