//! A topic that changes while it lies on two brokers.

use std::collections::BTreeSet;

use mq_common::partition::queue_index_of_key;

use crate::cluster_pair::{PATIENCE, Pair, names, until};

async fn pair() -> Pair {
    let pair = Pair::embedded();
    until("both brokers to be seen", PATIENCE, async || {
        names(&pair.status().0) == ["a", "b"]
    })
    .await;
    pair
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_that_gets_more_queues_is_written_and_read_in_all_of_them() {
    let pair = pair().await;
    pair.mq(&["topic", "create", "t", "--queues", "2"], b"").ok();
    let client = pair.client().await;
    let mut member = client.consumer("t", "g").unwrap().subscribe().await.unwrap();
    let altered = pair.mq(&["--output", "json", "topic", "alter", "t", "--queues", "5"], b"");
    let altered = altered.ok().json();
    assert_eq!(
        (&altered[0]["queues"], &altered[0]["version"]),
        (&5.into(), &2.into())
    );
    let described = pair.mq(&["topic", "describe", "t"], b"").ok();
    let shards: Vec<&str> = described.rows().iter().map(|row| row[2]).collect();
    assert_eq!(shards, ["a", "b", "a", "b", "a"]);
    let lines: String = (0..50).map(|number| format!("key-{number}:{number}\n")).collect();
    let produce = ["produce", "t", "--key-separator", ":"];
    pair.mq(&produce, lines.as_bytes()).ok();
    // A member that was there before reads the new queues too, without being started again.
    let mut queues = BTreeSet::new();
    for _ in 0..50 {
        let message = tokio::time::timeout(PATIENCE, member.next())
            .await
            .unwrap()
            .unwrap();
        let key = message.key.as_deref().unwrap();
        assert_eq!(Some(message.queue.0 as usize), queue_index_of_key(key, 5));
        queues.insert(message.queue.0);
        member.ack(&message).unwrap();
    }
    assert_eq!(queues, (0..5).collect());
    member.close().await.unwrap();
    client.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_that_was_away_adopts_the_change() {
    let mut pair = pair().await;
    pair.mq(&["topic", "create", "t", "--queues", "2"], b"").ok();
    pair.brokers[1].kill();
    let change = ["topic", "alter", "t", "--retention", "2d"];
    pair.mq(&change, b"").fails(1, "`b`");
    pair.brokers[1].restart();
    // Both as the registry shows them, so that it can be asked alone afterwards.
    until("both brokers to be back", PATIENCE, async || {
        names(&pair.status().0) == ["a", "b"]
    })
    .await;
    // What was begun is completed by repeating it, or by the comparison of the brokers, whichever comes
    // first.
    pair.mq(&change, b"").ok();
    pair.brokers[0].kill();
    let described = pair.mq(&["topic", "describe", "t"], b"");
    assert!(described.stdout.contains("\t2d\t"), "{described:#?}");
}
