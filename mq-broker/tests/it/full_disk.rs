//! A broker on a disk of 64 MiB that fills up: typed refusals, nothing lost, consumers drain it, and it goes on by
//! itself when there is space again.

use std::path::Path;

use mq_common::api::admin::{AlterTopicRequest, DeleteTopicRequest, DiskStatus};
use mq_common::ids::{Durability, TopicName};
use mq_common::{Error, ErrorCode};
use rpc_core::CallError;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::groups::member;
use crate::support::mount::SmallDisk;
use crate::support::{BrokerProcess, Client, Options, eventually, topic};

/// Small segments and entries, so that everything happens on a small disk.
fn small() -> Options {
    Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
        .variable("MQ__CHECKPOINT__EVERY_MS", "200")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576")
        // All of it stays in the journal.
        .variable("MQ__JOURNAL__BUDGET_BYTES", "1000000000")
        .variable("MQ__DISK__FULL_BYTES", "8388608")
        .variable("MQ__DISK__CHECK_MS", "50")
}

fn refusal(error: CallError<Error>) -> Error {
    match error {
        CallError::App(error) => error,
        CallError::Rpc(error) => panic!("{error}"),
    }
}

async fn disk(client: &Client) -> DiskStatus {
    client.admin.status().await.unwrap().disk.unwrap()
}

/// Sends until the broker takes no more: how many it took, and why it stopped.
async fn send_until_refused(client: &Client, topic: &TopicName) -> (usize, Error) {
    let filler = "x".repeat(60_000);
    for number in 0.. {
        let value = format!("{number} {filler}");
        if let Err(error) = client.send(topic, 0, &[&value], None).await {
            return (number, refusal(error));
        }
    }
    unreachable!("the disk has an end")
}

/// All of a queue is there, in order, byte for byte.
async fn check(client: &Client, topic: &TopicName, count: usize) {
    let filler = "x".repeat(60_000);
    let read = client.read(topic, 0, 0).await;
    assert_eq!(read.len(), count);
    for (number, message) in read.iter().enumerate() {
        assert!(message.value == format!("{number} {filler}"), "message {number}");
    }
}

async fn delete(client: &Client, topic: &TopicName) {
    let request = DeleteTopicRequest {
        name: topic.clone(),
        identity: None,
        drop_transactions: false,
    };
    client.admin.delete_topic(request).await.unwrap();
}

/// Fills the disk: first the broker up to its mark, then another program to the last byte.
async fn filled(data: &Path, disk: &SmallDisk) -> (BrokerProcess, Client, usize) {
    let broker = BrokerProcess::start_with(data, &small());
    let client = Client::connect(&broker).await;
    for name in ["kept", "dropped"] {
        client.create_topic(&topic(name), 1, Durability::Fsynced).await;
    }
    for number in 0..20 {
        let value = format!("{number} {}", "x".repeat(60_000));
        client.send(&topic("kept"), 0, &[&value], None).await.unwrap();
    }
    let (taken, error) = send_until_refused(&client, &topic("dropped")).await;
    assert_eq!(error.code, ErrorCode::DiskFull, "{error}");
    let shortage = error.disk.expect("the numbers come with the refusal");
    assert!(
        shortage.free < shortage.needed && shortage.needed == 8 << 20,
        "{shortage:?}"
    );
    // Two spares are made of what is left, before somebody else has it.
    eventually("the reserve is there", async || spares(data) >= 2).await;
    disk.fill();
    (broker, client, taken)
}

fn spares(data: &Path) -> usize {
    let files = std::fs::read_dir(data.join("journal")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".spare")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_full_disk_refuses_messages_and_everything_else_goes_on_until_there_is_space() {
    let small_disk = SmallDisk::of_megabytes(64);
    let data = small_disk.path().join("data");
    let (broker, client, taken) = filled(&data, &small_disk).await;
    assert!(taken > 500, "{taken}");
    let (kept, dropped) = (topic("kept"), topic("dropped"));
    let shown = disk(&client).await;
    assert_eq!((shown.state.as_str(), shown.needed), ("full", 8 << 20));
    eventually("not one byte is free", async || disk(&client).await.free == 0).await;
    let (status, text) = broker.get("/readyz");
    assert!(status == 200 && text.contains("nearly full"), "{status} {text}");
    assert!(broker.get("/metrics").1.contains("hc_mq_disk_full 1"));
    // Reads, groups and acks go on.
    check(&client, &kept, 20).await;
    check(&client, &dropped, taken).await;
    let consumer = member(&client, &kept, "a");
    let assigned = consumer.beat(&[], false).await.assigned;
    consumer.fetch(&assigned[0]).await.unwrap();
    for next in 1..=100 {
        let next = next.min(10);
        consumer
            .ack(assigned[0].queue, assigned[0].epoch, next)
            .await
            .unwrap();
    }
    // Deleting gives the space back, with the other program's file still there.
    delete(&client, &dropped).await;
    eventually("messages are taken again", async || {
        client.send(&kept, 0, &["again"], None).await.is_ok()
    })
    .await;
    assert_eq!(disk(&client).await.state, "ok");
    assert!(broker.stop().success());
    let broker = BrokerProcess::start_with(&data, &small());
    let client = Client::connect(&broker).await;
    let read = client.read(&kept, 0, 0).await;
    assert_eq!((read.len(), read[20].value.as_str()), (21, "again"));
    let consumer = member(&client, &kept, "a");
    assert_eq!(consumer.beat(&[], false).await.assigned[0].cursor.0, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_broker_starts_with_not_one_byte_free_and_is_drained() {
    let small_disk = SmallDisk::of_megabytes(64);
    let data = small_disk.path().join("data");
    let (broker, _, taken) = filled(&data, &small_disk).await;
    broker.kill();
    small_disk.fill();
    let (kept, dropped) = (topic("kept"), topic("dropped"));
    // More than once: a start takes little of what it finds.
    for start in 0..3 {
        let broker = BrokerProcess::start_with(&data, &small());
        let client = Client::connect(&broker).await;
        check(&client, &kept, 20).await;
        check(&client, &dropped, taken).await;
        let consumer = member(&client, &kept, &format!("member-{start}"));
        eventually("the queue is free", async || {
            let assigned = consumer.beat(&[], false).await.assigned;
            match assigned.first() {
                Some(own) => {
                    consumer.fetch(own).await.is_ok()
                        && consumer.ack(own.queue, own.epoch, start + 1).await.is_ok()
                }
                None => false,
            }
        })
        .await;
        let error = refusal(client.send(&kept, 0, &["no"], None).await.unwrap_err());
        assert_eq!(error.code, ErrorCode::DiskFull, "{error}");
        broker.kill();
    }
    let broker = BrokerProcess::start_with(&data, &small());
    let client = Client::connect(&broker).await;
    delete(&client, &dropped).await;
    eventually("messages are taken again", async || {
        client.send(&kept, 0, &["again"], None).await.is_ok()
    })
    .await;
    let read = client.read(&kept, 0, 0).await;
    assert_eq!((read.len(), read[20].value.as_str()), (21, "again"));
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_full_disk_with_queue_files_keeps_everything_and_goes_on() {
    let small_disk = SmallDisk::of_megabytes(64);
    let data = small_disk.path().join("data");
    let options = small()
        .variable("MQ__JOURNAL__BUDGET_BYTES", "6291456")
        .variable("MQ__JOURNAL__BYTES_MAX", "60000000");
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    let (kept, dropped) = (topic("kept"), topic("dropped"));
    client.create_topic(&kept, 1, Durability::Fsynced).await;
    client.create_topic(&dropped, 1, Durability::Fsynced).await;
    let filler = "x".repeat(60_000);
    for number in 0..20 {
        let value = format!("{number} {filler}");
        client.send(&kept, 0, &[&value], None).await.unwrap();
    }
    let (mut taken, error) = send_until_refused(&client, &dropped).await;
    assert_eq!(error.code, ErrorCode::DiskFull, "{error}");
    // Rounds of compaction give some of it back, until there is nothing to give.
    for _ in 0..200 {
        let value = format!("{taken} {filler}");
        match client.send(&dropped, 0, &[&value], None).await {
            Ok(_) => taken += 1,
            Err(error) => assert_eq!(refusal(error).code, ErrorCode::DiskFull),
        }
    }
    small_disk.fill();
    check(&client, &kept, 20).await;
    check(&client, &dropped, taken).await;
    broker.kill();
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    check(&client, &kept, 20).await;
    check(&client, &dropped, taken).await;
    delete(&client, &dropped).await;
    eventually("messages are taken again", async || {
        client.send(&kept, 0, &["again"], None).await.is_ok()
    })
    .await;
    assert_eq!(client.read(&kept, 0, 0).await.len(), 21);
    assert!(broker.stop().success());
}

/// Queues and messages in each, all of which are acknowledged one by one: some 3 MiB of acks.
const ACKED: (u32, u64) = (200, 1000);

#[tokio::test(flavor = "multi_thread")]
async fn s5_acks_go_on_far_beyond_the_reserve_while_not_one_byte_is_free() {
    let small_disk = SmallDisk::of_megabytes(64);
    let data = small_disk.path().join("data");
    let broker = BrokerProcess::start_with(&data, &small());
    let client = Client::connect(&broker).await;
    let (wide, (queues, messages)) = (topic("wide"), ACKED);
    client.create_topic(&wide, queues, Durability::Memory).await;
    for queue in 0..queues {
        client
            .send(&wide, queue, &vec!["x"; usize::try_from(messages).unwrap()], None)
            .await
            .unwrap();
    }
    assert!(broker.stop().success());
    let (broker, client, taken) = filled(&data, &small_disk).await;
    let consumer = member(&client, &wide, "a");
    let assigned = consumer.beat(&[], false).await.assigned;
    assert_eq!(assigned.len(), queues as usize);
    for own in &assigned {
        consumer.fetch(own).await.unwrap();
    }
    let recycled = || broker.metric("hc_mq_journal_segments_recycled_total ");
    let before = recycled();
    for next in 1..=messages {
        // Who is faster than the checkpoints that free the reserve is refused until the next one.
        eventually("the ack is taken", async || {
            let acked = consumer.ack_all(&assigned, next).await;
            acked.is_ok() || {
                assert_eq!(acked.unwrap_err().code, ErrorCode::ReadOnly);
                false
            }
        })
        .await;
        if next % 20 == 0 {
            consumer.beat(&assigned, false).await;
        }
    }
    // Twice what the two spares hold: segments of acks alone were freed and filled again.
    eventually("segments of acks are freed and filled again", async || {
        recycled() >= before + 2
    })
    .await;
    assert_eq!(disk(&client).await.free, 0);
    check(&client, &topic("dropped"), taken).await;
    broker.kill();
    let broker = BrokerProcess::start_with(&data, &small());
    let client = Client::connect(&broker).await;
    let consumer = member(&client, &wide, "b");
    eventually("the queues are free", async || {
        consumer.beat(&[], false).await.assigned.len() == queues as usize
    })
    .await;
    let owned = consumer.beat(&[], false).await.assigned;
    assert!(owned.iter().all(|own| own.cursor.0 == messages));
    check(&client, &topic("dropped"), taken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_with_the_reserve_in_use_it_is_read_only_says_so_with_numbers_and_resumes_by_itself() {
    let small_disk = SmallDisk::of_megabytes(64);
    let data = small_disk.path().join("data");
    // Without a checkpoint no segment is freed.
    let options = small().variable("MQ__CHECKPOINT__EVERY_MS", "3600000");
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    let kept = topic("kept");
    client.create_topic(&kept, 1, Durability::Fsynced).await;
    let mut wide = client
        .create_topic(&topic("wide"), 1000, Durability::Fsynced)
        .await;
    for number in 0..20 {
        let value = format!("{number} {}", "x".repeat(60_000));
        client.send(&kept, 0, &[&value], None).await.unwrap();
    }
    eventually("the reserve is there", async || spares(&data) >= 2).await;
    let ballast = small_disk.fill();
    eventually("not one byte is free", async || disk(&client).await.free == 0).await;
    let error = refusal(client.send(&kept, 0, &["no"], None).await.unwrap_err());
    assert_eq!(error.code, ErrorCode::DiskFull, "{error}");
    // Declarations go on in the reserve, until the last of it is only for what gives space back.
    let error = loop {
        let mut topic = wide.clone();
        topic.settings.retention_ms = topic.settings.retention_ms.map(|ms| ms + 1);
        match client.admin.alter_topic(AlterTopicRequest { topic }).await {
            Ok(altered) => wide = altered,
            Err(error) => break refusal(error),
        }
    };
    assert_eq!(error.code, ErrorCode::ReadOnly, "{error}");
    let shortage = error.disk.expect("the numbers come with the refusal");
    assert!(shortage.free < shortage.needed && shortage.needed == 8 << 20);
    assert!(wide.version > 10, "{}", wide.version);
    let shown = disk(&client).await;
    assert_eq!((shown.state.as_str(), shown.needed), ("read_only", 8 << 20));
    eventually("the metric says it, too", async || {
        broker.metric("hc_mq_disk_full ") == 2
    })
    .await;
    let error = refusal(client.send(&kept, 0, &["no"], None).await.unwrap_err());
    assert!(error.disk.is_some(), "{error}");
    check(&client, &kept, 20).await;
    std::fs::remove_file(ballast).unwrap();
    eventually("messages are taken again", async || {
        client.send(&kept, 0, &["again"], None).await.is_ok()
    })
    .await;
    assert_eq!(disk(&client).await.state, "ok");
    eventually("the metric says that it is over", async || {
        broker.metric("hc_mq_disk_full ") == 0
    })
    .await;
    broker.kill();
    let broker = BrokerProcess::start_with(&data, &small());
    let client = Client::connect(&broker).await;
    assert_eq!(client.read(&kept, 0, 0).await.len(), 21);
    let found = client
        .admin
        .describe_topic(wide.name.clone())
        .await
        .unwrap()
        .topic;
    assert_eq!(found, wide, "what was refused is nowhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn s25_without_file_descriptors_a_roll_is_refused_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let options = small();
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    let pid = Pid::from_raw(i32::try_from(broker.id()).unwrap());
    let limit = |soft: u64| {
        let limits = Rlimit {
            current: Some(soft),
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        prlimit(pid, Resource::Nofile, limits).unwrap()
    };
    let before = limit(0).current.unwrap();
    let (taken, error) = send_until_refused(&client, &orders).await;
    assert_eq!(error.code, ErrorCode::ReadOnly, "{error}");
    assert!(error.to_string().contains("journal"), "{error}");
    limit(before);
    eventually("a segment is begun", async || {
        client.send(&orders, 0, &["again"], None).await.is_ok()
    })
    .await;
    let read = client.read(&orders, 0, 0).await;
    assert_eq!(read.len(), taken + 1);
    assert!(broker.stop().success());
}
