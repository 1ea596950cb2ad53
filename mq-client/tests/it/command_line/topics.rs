//! Topics, groups and the cluster.

use crate::support::{Broker, mq, mq_with_input};

#[test]
fn a_topic_is_created_listed_described_and_deleted() {
    let broker = Broker::start();
    let at = broker.listen.as_str();
    let created = mq(at, &["topic", "create", "orders", "--queues", "3"]).ok();
    assert_eq!(created.rows()[0][..3], ["orders", "3", "fsynced"]);
    // Repeating it is harmless; another shape is not.
    mq(at, &["topic", "create", "orders", "--queues", "3"]).ok();
    mq(at, &["topic", "create", "orders", "--queues", "4"]).fails(1, "orders");

    mq(
        at,
        &[
            "topic",
            "create",
            "clicks",
            "--queues",
            "1",
            "--durability",
            "memory",
        ],
    )
    .ok();
    let listed = mq(at, &["--output", "json", "topic", "list"]).ok().json();
    let names: Vec<_> = listed
        .iter()
        .map(|topic| topic["topic"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["clicks", "orders"]);
    assert_eq!(listed[0]["durability"], "memory");
    assert_eq!(listed[1]["queues"], 3);

    mq_with_input(at, &["produce", "orders"], b"a\nb\nc\nd\n").ok();
    let queues = mq(at, &["topic", "describe", "orders", "--output", "json"])
        .ok()
        .json();
    assert_eq!(queues.len(), 3);
    assert_eq!(
        queues
            .iter()
            .map(|queue| queue["messages"].as_u64().unwrap())
            .sum::<u64>(),
        4
    );
    assert_eq!(queues[0]["shard"], broker.name.as_str());

    let deleted = mq(at, &["--output", "json", "topic", "delete", "orders"]).ok();
    assert_eq!(
        deleted.json(),
        [serde_json::json!({"topic": "orders", "state": "deleted"})]
    );
    let left = mq(at, &["topic", "list"]).ok();
    assert_eq!(left.rows().len(), 1);
    mq(at, &["topic", "describe", "orders"]).fails(1, "mq topic create");
}

#[test]
fn a_group_shows_how_far_it_is() {
    let broker = Broker::start();
    let at = broker.listen.as_str();
    mq(at, &["topic", "create", "orders", "--queues", "2"]).ok();
    mq_with_input(at, &["produce", "orders"], b"a\nb\nc\nd\ne\n").ok();
    mq(
        at,
        &[
            "consume",
            "orders",
            "--group",
            "billing",
            "--count",
            "5",
            "--timeout",
            "10s",
        ],
    )
    .ok();
    let groups = mq(at, &["--output", "json", "group", "list"]).ok().json();
    assert_eq!(groups.len(), 1);
    assert_eq!(
        (&groups[0]["group"], &groups[0]["lag"]),
        (&"billing".into(), &0.into())
    );
    let queues = mq(at, &["--output", "json", "group", "describe", "billing"])
        .ok()
        .json();
    assert_eq!(queues.len(), 2);
    assert_eq!(
        queues
            .iter()
            .map(|queue| queue["cursor"].as_u64().unwrap())
            .sum::<u64>(),
        5
    );
    mq(at, &["group", "describe", "nobody"]).fails(1, "mq group list");
}

#[test]
fn the_cluster_shows_its_brokers() {
    let broker = Broker::start_with(&["--name", "a"]);
    let status = mq(&broker.listen, &["--output", "json", "cluster", "status"])
        .ok()
        .json();
    assert_eq!(status.len(), 1);
    assert_eq!(status[0]["broker"], "a");
    assert_eq!(status[0]["address"], broker.listen.as_str());
    assert_eq!(status[0]["state"], "leader");
}
