//! A topic that compacts, at a broker of its own: of each key the last message stays, readers pass over the others, and
//! nothing else changes.

use std::collections::BTreeMap;

use mq_common::api::TopicSettings;
use mq_common::api::fetch::{FetchRequest, Fetched, KNOWS_COMPACTED_META, Want};
use mq_common::api::group::StartAt;
use mq_common::api::produce::ProduceRequest;
use mq_common::api::transaction::SendHalfRequest;
use mq_common::batch::{Builder, BuilderOptions, Record, split_stamped};
use mq_common::ids::{Durability, GroupName, Offset, QueueNumber, Timestamp, TopicName};
use rpc_core::Attachment;

use crate::retention::Member;
use crate::support::{BrokerProcess, Client, Options, batch, eventually, topic, topic_batches};

/// A journal of a few segments of 1 MiB. A queue is compacted when 1 MiB of its files was not yet.
fn options() -> Options {
    Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
        .variable("MQ__CHECKPOINT__EVERY_MS", "200")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576")
        .variable("MQ__JOURNAL__BUDGET_BYTES", "2097152")
        .variable("MQ__JOURNAL__BYTES_MAX", "1073741824")
        .variable("MQ__STORE__COMPACTION_DISK_PERCENT", "100")
}

fn compacting() -> TopicSettings {
    TopicSettings {
        compact: true,
        ..TopicSettings::default()
    }
}

/// A message as it was sent: its offset is its place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    key: Option<String>,
    value: String,
}

/// What a reader found in a queue.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    messages: BTreeMap<u64, (Sent, Timestamp)>,
    holes: Vec<(Offset, Offset)>,
    compacted: Vec<(Offset, Offset)>,
}

impl Found {
    /// Whether these and no others are left of the offsets below `end`.
    fn is_left(&self, end: u64, offsets: &[u64]) -> bool {
        self.messages.range(..end).map(|(offset, _)| offset).eq(offsets)
    }

    fn has_key(&self, key: &str) -> bool {
        let mut keys = self.messages.values().map(|(sent, _)| sent.key.as_deref());
        keys.any(|known| known == Some(key))
    }
}

/// The messages of queue 0, one after the other.
struct History {
    name: TopicName,
    sent: Vec<Sent>,
}

impl History {
    async fn send(&mut self, client: &Client, key: Option<&str>, value: &str) {
        let mut builder = Builder::new(BuilderOptions::default());
        let record = Record {
            key: key.map(str::as_bytes),
            ..Record::new(value.as_bytes(), Timestamp(1))
        };
        builder.push(&record).unwrap();
        let batch = builder.finish().unwrap();
        let request = ProduceRequest {
            topics: vec![topic_batches(&self.name, &[(0, &batch)])],
            durability: None,
        };
        let attachment = Attachment::from(batch.into_bytes());
        let mut response = client.produce.produce(request, attachment).await.unwrap();
        let receipt = response.outcomes.remove(0).unwrap();
        assert_eq!(receipt.base_offset.0, self.sent.len() as u64);
        self.sent.push(Sent {
            key: key.map(str::to_owned),
            value: value.to_owned(),
        });
    }

    /// So many messages of seven keys, each tenth one without a key.
    async fn fill(&mut self, client: &Client, messages: usize) {
        let filler = "x".repeat(20_000);
        for _ in 0..messages {
            let number = self.sent.len();
            let key = format!("key-{}", number % 7);
            let key = (!number.is_multiple_of(10)).then_some(key);
            let value = format!("{number} {filler}");
            self.send(client, key.as_deref(), &value).await;
        }
    }

    /// Reads everything, as a caller that knows of compaction or as one that does not.
    async fn read(&self, client: &Client, knows: bool) -> Found {
        let mut found = Found::default();
        let mut next = Offset(0);
        while next.0 < self.sent.len() as u64 {
            let (fetched, messages) = fetch(client, &self.name, next, knows).await;
            assert!(fetched.next_offset > next, "{next} again");
            next = fetched.next_offset;
            found.messages.extend(messages);
            found.holes.extend(fetched.holes);
            found.compacted.extend(fetched.compacted);
        }
        found
    }

    /// What must hold at any moment: what is there is as it was sent, what is not there is named, the last of
    /// each key is there, and everything without one. Only a tombstone may go, and nothing of its key outlives
    /// it.
    async fn check(&self, client: &Client) -> Found {
        let found = self.read(client, true).await;
        for (offset, (message, _)) in &found.messages {
            assert!(
                *message == self.sent[usize::try_from(*offset).unwrap()],
                "{offset}"
            );
        }
        assert_eq!(found.holes, found.compacted, "nothing is damaged");
        let in_hole = |offset: u64| {
            found
                .holes
                .iter()
                .any(|(from, to)| (from.0..to.0).contains(&offset))
        };
        let mut last = BTreeMap::new();
        for (offset, sent) in (0..).zip(&self.sent) {
            assert_ne!(found.messages.contains_key(&offset), in_hole(offset), "{offset}");
            match &sent.key {
                Some(key) => drop(last.insert(key, (offset, sent.value.is_empty()))),
                None => assert!(found.messages.contains_key(&offset), "{offset} has no key"),
            }
        }
        for (key, (offset, is_tombstone)) in last {
            let is_there = found.messages.contains_key(&offset);
            assert!(is_there || is_tombstone && !found.has_key(key), "{key} {offset}");
        }
        found
    }
}

/// What different questions were answered while no pass deleted anything.
struct AtRest {
    found: Found,
    unaware: Found,
    /// The time of each message, and the offset that it leads to.
    starts: Vec<(Timestamp, Offset)>,
}

impl History {
    /// Asks again until the messages are the same before and after: passes come to an end when nothing is sent.
    async fn at_rest(&self, client: &Client) -> AtRest {
        loop {
            let found = self.check(client).await;
            let unaware = self.read(client, false).await;
            let mut starts = Vec::new();
            for (_, time) in found.messages.values() {
                let at = client.fetch.offset_at(self.name.clone(), QueueNumber(0), *time);
                starts.push((*time, at.await.unwrap()));
            }
            if self.check(client).await == found {
                return AtRest {
                    found,
                    unaware,
                    starts,
                };
            }
        }
    }
}

async fn fetch(
    client: &Client,
    name: &TopicName,
    offset: Offset,
    knows: bool,
) -> (Fetched, BTreeMap<u64, (Sent, Timestamp)>) {
    let request = FetchRequest {
        member: None,
        wants: vec![Want {
            topic: name.clone(),
            queue: QueueNumber(0),
            offset,
            epoch: None,
        }],
        bytes_max: 1 << 20,
        wait_ms: 1000,
    };
    let mut call = client.fetch.fetch(request);
    if knows {
        call = call.meta(KNOWS_COMPACTED_META, "1");
    }
    let (mut response, attachment) = call.await.unwrap();
    let fetched = response.answers.remove(0).1.unwrap();
    let mut bytes = attachment.into_bytes();
    let mut messages = BTreeMap::new();
    while let Some(stamped) = split_stamped(&mut bytes).unwrap() {
        let records = stamped.batch.records().unwrap();
        for (offset, record) in (stamped.stamp.base_offset.0..).zip(records.iter()) {
            let record = record.unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let sent = Sent {
                key: record.key.map(text),
                value: text(record.payload),
            };
            messages.insert(offset, (sent, stamped.stamp.append_time));
        }
    }
    (fetched, messages)
}

#[tokio::test(flavor = "multi_thread")]
async fn new_readers_get_the_last_of_each_key_and_old_groups_go_on_over_what_went_also_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let broker = BrokerProcess::start_with(&data, &options());
    let client = Client::connect(&broker).await;
    let name = topic("prices");
    client
        .create_topic_with(&name, 1, Durability::Memory, compacting())
        .await;
    let mut history = History {
        name: name.clone(),
        sent: Vec::new(),
    };
    history.send(&client, Some("seldom"), "once").await;
    history.send(&client, Some("gone"), "was here").await;
    history.send(&client, Some("gone"), "").await;
    history.fill(&client, 200).await;
    let old = Member::new(&client, &name, "old");
    old.join().await;
    old.ack(101).await;
    history.fill(&client, 200).await;
    // Of what was sent first only what is the last of its key, or has none, is left.
    let left: Vec<u64> = [0, 2].into_iter().chain((10..150).step_by(10)).collect();
    eventually("the old values are gone", async || {
        history.check(&client).await.is_left(150, &left)
    })
    .await;
    broker.kill();
    let broker = BrokerProcess::start_with(&data, &options());
    let client = Client::connect(&broker).await;
    // What no checkpoint had yet is done again, when there is one.
    history.fill(&client, 10).await;
    eventually("they are gone again", async || {
        history.check(&client).await.is_left(150, &left)
    })
    .await;
    let AtRest {
        found,
        unaware,
        starts,
    } = history.at_rest(&client).await;
    assert_eq!(found.messages[&2].0.value, "", "the tombstone stays for a day");
    assert_eq!(
        (&unaware.messages, &unaware.holes),
        (&found.messages, &found.holes)
    );
    assert_eq!(unaware.compacted, [], "a caller from before could not read it");
    // A time leads to where the messages from then on begin.
    for (time, at) in starts {
        for (offset, (_, appended)) in &found.messages {
            assert_eq!(*offset >= at.0, *appended >= time, "{offset} {at}");
        }
    }
    // Its cursor lies in a hole, and so does the beginning of the next group.
    let end = history.sent.len() as u64;
    let old = Member::new(&client, &name, "old");
    let new = Member::new(&client, &name, "new").starting_at(StartAt::Offset(Offset(55)));
    new.join().await;
    assert_eq!((old.progress().await, new.progress().await), ((101, 0), (55, 0)));
    for member in [old, new] {
        member.ack(end).await;
        assert_eq!(
            member.progress().await,
            (end, 0),
            "nothing is left, nothing was lost"
        );
    }
    history.fill(&client, 150).await;
    history.check(&client).await;
    assert!(broker.stop().success());
}

async fn send_large_half(client: &Client, orders: &TopicName) {
    let batch = batch(&vec!["x".repeat(20_000); 35]);
    let request = SendHalfRequest {
        producer_group: GroupName::new("producers").unwrap(),
        key: None,
        digest: None,
        topics: vec![topic_batches(orders, &[(0, &batch)])],
        check_after_ms: None,
    };
    let attachment = Attachment::from(batch.into_bytes());
    client.transaction.send_half(request, attachment).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_hold_more_of_the_journal_than_its_budget_keep_no_topic_from_compacting() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start_with(&folder.path().join("data"), &options());
    let client = Client::connect(&broker).await;
    let (name, orders) = (topic("prices"), topic("orders"));
    client.create_topic(&orders, 2, Durability::Fsynced).await;
    client
        .create_topic_with(&name, 1, Durability::Memory, compacting())
        .await;
    let mut history = History {
        name,
        sent: Vec::new(),
    };
    // One in each of four segments, too large to be written once more for the rest of it.
    for _ in 0..4 {
        send_large_half(&client, &orders).await;
        history.fill(&client, 60).await;
    }
    let left: Vec<u64> = (0..60).step_by(10).collect();
    eventually("the old values are gone", async || {
        history.check(&client).await.is_left(60, &left)
    })
    .await;
    assert!(
        broker.metric("hc_mq_journal_segments_held") >= 3,
        "the journal is beyond its budget"
    );
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_key_is_gone_with_its_tombstone_and_does_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let options = options().variable("MQ__STORE__TOMBSTONE_MS", "1");
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    let name = topic("prices");
    client
        .create_topic_with(&name, 1, Durability::Memory, compacting())
        .await;
    let mut history = History {
        name: name.clone(),
        sent: Vec::new(),
    };
    history.send(&client, Some("gone"), "was here").await;
    history.send(&client, Some("gone"), "").await;
    history.send(&client, None, "").await;
    history.fill(&client, 250).await;
    eventually("nothing tells of the key", async || {
        !history.check(&client).await.has_key("gone")
    })
    .await;
    let (first, _) = fetch(&client, &name, Offset(0), true).await;
    assert_eq!(
        first.holes[0],
        (Offset(0), Offset(2)),
        "the queue still starts at 0"
    );
    broker.kill();
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    history.fill(&client, 10).await;
    eventually("nothing tells of it again", async || {
        !history.check(&client).await.has_key("gone")
    })
    .await;
    // The key may be used again.
    history.send(&client, Some("gone"), "back").await;
    history.fill(&client, 250).await;
    let found = history.check(&client).await;
    assert!(found.has_key("gone") && found.messages.contains_key(&2));
    assert!(broker.stop().success());
}
