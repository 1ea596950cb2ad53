//! What retention deletes: by age, by bytes, when consumed; how readers and groups learn of it; and that disk
//! space is freed.

use std::time::Duration;

use mq_common::ErrorCode;
use mq_common::api::TopicSettings;
use mq_common::api::admin::{AlterTopicRequest, Topic};
use mq_common::api::group::{AckRequest, GroupMode, HeartbeatRequest, StartAt};
use mq_common::ids::{Durability, GroupName, MemberId, Offset, TopicName};
use rpc_core::CallError;
use tokio::task::JoinSet;

use crate::reclaim::journal_blocks;
use crate::support::{BrokerProcess, Client, Options, Running, eventually, log_path, topic, values};

fn options() -> Options {
    Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
        .variable("MQ__CHECKPOINT__EVERY_MS", "200")
        .variable("MQ__RETENTION__CHECK_MS", "50")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576")
}

async fn create(client: &Client, name: &TopicName, settings: TopicSettings) -> Topic {
    client
        .create_topic_with(name, 1, Durability::Memory, settings)
        .await
}

async fn start(client: &Client, name: &TopicName) -> u64 {
    client.start_of(name, 0).await
}

/// The queue's range, as the error of a fetch below its start reports it.
async fn told(client: &Client, name: &TopicName) -> (u64, u64) {
    let refused = client
        .fetch_once(name, 0, Offset(0), Duration::ZERO)
        .await
        .unwrap_err();
    let CallError::App(error) = refused else {
        panic!("{refused}");
    };
    assert_eq!(error.code, ErrorCode::OffsetOutOfRange);
    error.range.unwrap()
}

/// One member of a group.
pub(crate) struct Member {
    client: Client,
    beat: HeartbeatRequest,
}

impl Member {
    pub(crate) fn new(client: &Client, topic: &TopicName, group: &str) -> Self {
        let beat = HeartbeatRequest {
            group: GroupName::new(group).unwrap(),
            member: MemberId("m".to_owned()),
            topic: topic.clone(),
            mode: GroupMode::Stream,
            start: Some(StartAt::Earliest),
            owned: Vec::new(),
            leaving: false,
        };
        Self {
            client: client.clone(),
            beat,
        }
    }

    /// Sets where its group starts, if it is the first member.
    pub(crate) fn starting_at(mut self, start: StartAt) -> Self {
        self.beat.start = Some(start);
        self
    }

    pub(crate) async fn join(&self) {
        self.client.group.heartbeat(self.beat.clone()).await.unwrap();
    }

    /// Reads up to `next` and acknowledges it.
    pub(crate) async fn ack(&self, next: u64) {
        use mq_common::api::fetch::{FetchRequest, Want};
        let joined = self.client.group.heartbeat(self.beat.clone()).await.unwrap();
        let owned = joined.assigned[0];
        let mut offset = owned.cursor;
        while offset.0 < next {
            let request = FetchRequest {
                member: Some((self.beat.group.clone(), self.beat.member.clone())),
                wants: vec![Want {
                    topic: self.beat.topic.clone(),
                    queue: owned.queue,
                    offset,
                    epoch: Some(owned.epoch),
                }],
                bytes_max: 1,
                wait_ms: 1000,
            };
            let (mut response, _) = self.client.fetch.fetch(request).await.unwrap();
            offset = response.answers.remove(0).1.unwrap().next_offset;
        }
        let request = AckRequest {
            group: self.beat.group.clone(),
            member: self.beat.member.clone(),
            topic: self.beat.topic.clone(),
            acks: vec![mq_common::api::group::Ack {
                queue: owned.queue,
                epoch: owned.epoch,
                next: Offset(next),
            }],
        };
        let answered = self.client.group.ack(request).await.unwrap();
        assert_eq!(answered.outcomes, [Ok(())]);
    }

    /// Cursor, and how much it lost.
    pub(crate) async fn progress(&self) -> (u64, u64) {
        let group = self.beat.group.clone();
        let described = self.client.group.describe(group).await.unwrap();
        let queue = &described[0].queues[0];
        (queue.cursor.0, queue.expired_unread)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_of_bytes_frees_the_disk_and_what_is_left_is_served_after_a_kill() {
    let Running {
        folder: _folder,
        data,
        broker,
        client,
    } = Running::start(&options()).await;
    let name = topic("t");
    let settings = TopicSettings {
        retention_bytes: Some(1_000_000),
        ..TopicSettings::default()
    };
    create(&client, &name, settings).await;
    let behind = Member::new(&client, &name, "behind");
    behind.join().await;
    let filler = "x".repeat(100_000);
    for number in 0..300 {
        let value = format!("{number} {filler}");
        client.send(&name, 0, &[value], None).await.unwrap();
    }
    // Ten batches are slightly more than the limit.
    eventually("the start moved", async || start(&client, &name).await == 290).await;
    let began = 290;
    assert_eq!(told(&client, &name).await, (began, 300));
    assert_eq!(behind.progress().await, (began, began), "named, not silent");
    // Two segments with what is left, the one being written, and at most four spares.
    eventually("the space is free", async || journal_blocks(&data) <= 9 << 20).await;
    let (_, text) = broker.get("/metrics");
    for metric in [
        "hc_mq_trimmed_records_total",
        "hc_mq_expired_unread_records_total",
    ] {
        assert!(text.contains(&format!("{metric} {began}")), "{text}");
    }
    let log = std::fs::read_to_string(log_path(&data)).unwrap();
    assert!(log.contains("had not acknowledged"), "{log}");
    broker.kill();
    let broker = BrokerProcess::start_with(&data, &options());
    let client = Client::connect(&broker).await;
    assert_eq!(told(&client, &name).await, (began, 300));
    let read = client.read(&name, 0, began).await;
    let numbers: Vec<u64> = values(&read)
        .iter()
        .map(|value| value.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(numbers, (began..300).collect::<Vec<_>>());
    let behind = Member::new(&client, &name, "behind");
    assert_eq!(behind.progress().await, (began, began));
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn old_messages_go_and_young_ones_stay() {
    let Running {
        folder: _folder,
        data: _,
        broker,
        client,
    } = Running::start(&options()).await;
    let (short, long, forever) = (topic("short"), topic("long"), topic("forever"));
    let age = |ms| TopicSettings {
        retention_ms: Some(ms),
        ..TopicSettings::default()
    };
    create(&client, &short, age(300)).await;
    create(&client, &long, TopicSettings::of_new_topic()).await;
    create(&client, &forever, TopicSettings::default()).await;
    for name in [&short, &long, &forever] {
        client.send(name, 0, &["a", "b", "c"], None).await.unwrap();
    }
    eventually("what is old is gone", async || start(&client, &short).await == 3).await;
    let receipt = client.send(&short, 0, &["d"], None).await.unwrap();
    assert_eq!(receipt.base_offset, Offset(3), "offsets go on");
    assert_eq!(
        (start(&client, &long).await, start(&client, &forever).await),
        (0, 0)
    );
    eventually("the next one too", async || start(&client, &short).await == 4).await;
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn consumed_messages_go_when_every_group_is_done_with_them() {
    let Running {
        folder: _folder,
        data: _,
        broker,
        client,
    } = Running::start(&options()).await;
    let name = topic("t");
    let settings = TopicSettings {
        consumed: true,
        ..TopicSettings::default()
    };
    create(&client, &name, settings).await;
    for value in ["a", "b", "c", "d"] {
        client.send(&name, 0, &[value], None).await.unwrap();
    }
    let (fast, slow) = (
        Member::new(&client, &name, "fast"),
        Member::new(&client, &name, "slow"),
    );
    slow.join().await;
    fast.join().await;
    fast.ack(4).await;
    slow.ack(2).await;
    eventually("both are done with two", async || {
        start(&client, &name).await == 2
    })
    .await;
    slow.ack(4).await;
    eventually("and with all", async || start(&client, &name).await == 4).await;
    assert_eq!((fast.progress().await, slow.progress().await), ((4, 0), (4, 0)));
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_group_has_not_acknowledged_is_held_up_to_the_ceiling() {
    let Running {
        folder: _folder,
        data: _,
        broker,
        client,
    } = Running::start(&options()).await;
    let (held, given_up) = (topic("held"), topic("given-up"));
    let hold = |ms| TopicSettings {
        retention_ms: Some(1),
        hold_ms: Some(ms),
        ..TopicSettings::default()
    };
    create(&client, &held, hold(3_600_000)).await;
    create(&client, &given_up, hold(2)).await;
    let mut members = Vec::new();
    for name in [&held, &given_up] {
        let member = Member::new(&client, name, &format!("of-{name}"));
        member.join().await;
        members.push(member);
        for value in ["a", "b", "c"] {
            client.send(name, 0, &[value], None).await.unwrap();
        }
    }
    eventually("the ceiling is passed", async || {
        start(&client, &given_up).await == 3
    })
    .await;
    assert_eq!(members[1].progress().await, (3, 3));
    members[0].ack(2).await;
    eventually("what is acknowledged goes", async || {
        start(&client, &held).await == 2
    })
    .await;
    assert_eq!(members[0].progress().await, (2, 0));
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_races_with_trimming_gets_right_messages_or_is_told_the_start() {
    let racing = options().variable("MQ__RETENTION__CHECK_MS", "1");
    let Running {
        folder: _folder,
        data: _,
        broker,
        client,
    } = Running::start(&racing).await;
    let name = topic("t");
    let settings = TopicSettings {
        retention_bytes: Some(200_000),
        ..TopicSettings::default()
    };
    create(&client, &name, settings).await;
    let (writer, to) = (client.clone(), name.clone());
    let mut writing = JoinSet::new();
    writing.spawn(async move {
        let filler = "x".repeat(20_000);
        for number in 0..800 {
            let value = format!("{number} {filler}");
            writer.send(&to, 0, &[value], None).await.unwrap();
        }
    });
    let (mut next, mut read) = (Offset(0), 0);
    let mut written = false;
    while next.0 < 800 {
        if let Some(ended) = writing.try_join_next() {
            ended.unwrap();
            written = true;
        }
        match client.fetch_once(&name, 0, next, Duration::from_secs(1)).await {
            Ok((found, after, _)) => {
                for message in &found {
                    let number = message.value.split(' ').next().unwrap();
                    assert_eq!(number, message.offset.to_string());
                    assert_eq!(message.value.len(), number.len() + 20_001);
                }
                read += found.len();
                next = after;
                // Goes back now and then while the writer runs, so that the start overtakes it.
                if read % 7 == 0 && !written {
                    next = Offset(next.0.saturating_sub(30));
                }
            }
            Err(CallError::App(error)) => {
                assert_eq!(error.code, ErrorCode::OffsetOutOfRange, "{error}");
                let (start, end) = error.range.expect("it says where to go on");
                assert!(next.0 < start && start <= end, "{next} {start} {end}");
                next = Offset(start);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(read > 0, "the newest messages are kept");
    // However the race went, and however slow retention was: a reader at the beginning is too late now.
    eventually("the limit of bytes is kept", async || {
        start(&client, &name).await > 700
    })
    .await;
    let (start, end) = told(&client, &name).await;
    assert!(700 < start && start < 800 && end == 800, "{start} {end}");
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_limits_hold_at_once_and_after_a_kill() {
    let Running {
        folder: _folder,
        data,
        broker,
        client,
    } = Running::start(&options()).await;
    let name = topic("t");
    let mut declared = create(&client, &name, TopicSettings::default()).await;
    client
        .send(&name, 0, &["a message that fits"], None)
        .await
        .unwrap();
    declared.settings.message_bytes_max = Some(10);
    declared.settings.retention_ms = Some(1);
    let request = AlterTopicRequest {
        topic: declared.clone(),
    };
    let altered = client.admin.alter_topic(request.clone()).await.unwrap();
    assert_eq!(altered.version, declared.version + 1);
    // A repetition, as after a lost answer.
    assert_eq!(client.admin.alter_topic(request).await.unwrap(), altered);
    eventually("the new age holds", async || start(&client, &name).await == 1).await;
    broker.kill();
    let broker = BrokerProcess::start_with(&data, &options());
    let client = Client::connect(&broker).await;
    assert_eq!(
        client.admin.describe_topic(name.clone()).await.unwrap().topic,
        altered
    );
    let values = ["0123456789", "0123456789a"];
    let refused = client.send(&name, 0, &values, None).await.unwrap_err();
    let CallError::App(error) = refused else {
        panic!("{refused}");
    };
    assert_eq!(error.code, ErrorCode::TooLarge);
    assert!(error.is_definite());
    assert!(
        error.message.contains("11 bytes") && error.message.contains("at most 10"),
        "{error}"
    );
    client.send(&name, 0, &values[..1], None).await.unwrap();
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_floor_holds_for_the_next_send() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&folder.path().join("data"));
    let client = Client::connect(&broker).await;
    let name = topic("floors");
    client.create_topic(&name, 1, Durability::Memory).await;
    for (offset, floor) in (1..).zip([Durability::Fsynced, Durability::Memory]) {
        let mut declared = client.admin.describe_topic(name.clone()).await.unwrap().topic;
        declared.durability = floor;
        let request = AlterTopicRequest { topic: declared };
        client.admin.alter_topic(request).await.unwrap();
        let receipt = client.send(&name, 0, &["x"], None).await.unwrap();
        assert_eq!(receipt.durability, floor);
        let below = client.send(&name, 0, &["y"], Some(Durability::Memory)).await;
        let is_refused =
            matches!(&below, Err(CallError::App(error)) if error.code == ErrorCode::DurabilityBelowFloor);
        assert_eq!(is_refused, floor == Durability::Fsynced, "{below:?}");
        let end = client.admin.describe_topic(name.clone()).await.unwrap().queues[0].end;
        assert_eq!(end, Offset(offset + u64::from(!is_refused)), "it is visible");
    }
}
