//! Stream groups: assignment, epochs, cursors that survive.

use mq_common::ErrorCode;
use mq_common::api::PageRequest;
use mq_common::api::fetch::{FetchRequest, Want};
use mq_common::api::group::{
    Ack, AckRequest, Assigned, GroupMode, HeartbeatRequest, HeartbeatResponse, StartAt,
};
use mq_common::batch::split_stamped;
use mq_common::ids::{
    Durability, GroupName, MemberId, Offset, OwnerEpoch, QueueNumber, Timestamp, TopicName,
};

use crate::support::{BrokerProcess, Client, eventually, topic};

pub(crate) struct Member<'a> {
    client: &'a Client,
    group: GroupName,
    topic: TopicName,
    id: MemberId,
}

impl Member<'_> {
    pub(crate) async fn beat(&self, owned: &[Assigned], leaving: bool) -> HeartbeatResponse {
        let request = HeartbeatRequest {
            group: self.group.clone(),
            member: self.id.clone(),
            topic: self.topic.clone(),
            mode: GroupMode::Stream,
            start: Some(StartAt::Earliest),
            owned: owned.iter().map(|queue| (queue.queue, queue.epoch)).collect(),
            leaving,
        };
        self.client.group.heartbeat(request).await.unwrap()
    }

    pub(crate) async fn ack(
        &self,
        queue: QueueNumber,
        epoch: OwnerEpoch,
        next: u64,
    ) -> Result<(), mq_common::Error> {
        let ack = Ack {
            queue,
            epoch,
            next: Offset(next),
        };
        let request = AckRequest {
            group: self.group.clone(),
            member: self.id.clone(),
            topic: self.topic.clone(),
            acks: vec![ack],
        };
        self.client.group.ack(request).await.unwrap().outcomes.remove(0)
    }

    /// Acknowledges everything before an offset in all of these queues, with one call.
    pub(crate) async fn ack_all(&self, assigned: &[Assigned], next: u64) -> Result<(), mq_common::Error> {
        let acks = assigned.iter().map(|own| Ack {
            queue: own.queue,
            epoch: own.epoch,
            next: Offset(next),
        });
        let request = AckRequest {
            group: self.group.clone(),
            member: self.id.clone(),
            topic: self.topic.clone(),
            acks: acks.collect(),
        };
        let outcomes = self.client.group.ack(request).await.unwrap().outcomes;
        outcomes.into_iter().collect()
    }

    /// One fetch as a member: where to go on, or why not.
    pub(crate) async fn fetch(&self, assigned: &Assigned) -> Result<Offset, mq_common::Error> {
        let request = FetchRequest {
            member: Some((self.group.clone(), self.id.clone())),
            wants: vec![Want {
                topic: self.topic.clone(),
                queue: assigned.queue,
                offset: assigned.cursor,
                epoch: Some(assigned.epoch),
            }],
            bytes_max: 1 << 20,
            wait_ms: 0,
        };
        let (response, _) = self.client.fetch.fetch(request).await.unwrap();
        let answer = response.answers.into_iter().next();
        answer.map_or(Ok(assigned.cursor), |(_, answer)| {
            answer.map(|fetched| fetched.next_offset)
        })
    }
}

pub(crate) fn member<'a>(client: &'a Client, topic: &TopicName, id: &str) -> Member<'a> {
    member_of(client, topic, "billing", id)
}

pub(crate) fn member_of<'a>(client: &'a Client, topic: &TopicName, group: &str, id: &str) -> Member<'a> {
    Member {
        client,
        group: GroupName::new(group).unwrap(),
        topic: topic.clone(),
        id: MemberId(id.to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acked_cursor_survives_a_kill_and_old_epochs_are_fenced() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let orders = topic("orders");
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    client.send(&orders, 0, &["a", "b", "c"], None).await.unwrap();
    let one = member(&client, &orders, "one");
    let assigned = one.beat(&[], false).await.assigned;
    assert_eq!((assigned.len(), assigned[0].cursor), (1, Offset(0)));
    let old = assigned[0];
    let early = one.ack(QueueNumber(0), old.epoch, 1).await.unwrap_err();
    assert_eq!(
        early.code,
        ErrorCode::OffsetOutOfRange,
        "nothing was delivered yet"
    );
    assert_eq!(one.fetch(&old).await.unwrap(), Offset(3));
    one.ack(QueueNumber(0), old.epoch, 2).await.unwrap();
    let beyond = one.ack(QueueNumber(0), old.epoch, 9).await.unwrap_err();
    assert_eq!(beyond.code, ErrorCode::OffsetOutOfRange);
    // Progress asks for no sync: a kill of the process alone must not lose it.
    broker.kill();
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    let one = member(&client, &orders, "one");
    assert_eq!(one.fetch(&old).await.unwrap_err().code, ErrorCode::NotMember);
    let assigned = one.beat(&[], false).await.assigned;
    assert_eq!(assigned[0].cursor, Offset(2));
    assert!(assigned[0].epoch > old.epoch);
    assert_eq!(one.fetch(&old).await.unwrap_err().code, ErrorCode::Fenced);
    let described = client.group.describe(one.group.clone()).await.unwrap();
    assert_eq!(described[0].queues[0].cursor, Offset(2));
    assert_eq!(described[0].members, [MemberId("one".into())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_are_shared_and_move_when_a_member_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&folder.path().join("data"));
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 4, Durability::Fsynced).await;
    let (one, two) = (member(&client, &orders, "one"), member(&client, &orders, "two"));
    let all = one.beat(&[], false).await.assigned;
    assert_eq!(all.len(), 4);
    assert_eq!(
        two.beat(&[], false).await.assigned.len(),
        0,
        "nothing is free yet"
    );
    let asked = one.beat(&all, false).await;
    assert_eq!(asked.revoking.len(), 2);
    let keeps: Vec<Assigned> = asked
        .assigned
        .iter()
        .filter(|queue| !asked.revoking.contains(&queue.queue))
        .copied()
        .collect();
    assert_eq!(one.beat(&keeps, false).await.assigned.len(), 2);
    assert_eq!(two.beat(&[], false).await.assigned.len(), 2);
    one.beat(&[], true).await;
    eventually("the other member gets all queues", async || {
        two.beat(&[], false).await.assigned.len() == 4
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_member_loses_its_queues() {
    let folder = tempfile::tempdir().unwrap();
    let options = crate::support::Options::default()
        .variable("MQ__GROUP__HEARTBEAT_MS", "100")
        .variable("MQ__GROUP__SESSION_MS", "300");
    let broker = BrokerProcess::start_with(&folder.path().join("data"), &options);
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 2, Durability::Fsynced).await;
    let (one, two) = (member(&client, &orders, "one"), member(&client, &orders, "two"));
    let held = one.beat(&[], false).await;
    assert_eq!((held.assigned.len(), held.session_ms), (2, 300));
    eventually("the live member gets all queues", async || {
        two.beat(&[], false).await.assigned.len() == 2
    })
    .await;
    assert_eq!(
        one.fetch(&held.assigned[0]).await.unwrap_err().code,
        ErrorCode::NotMember
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn group_of_another_topic_is_refused_with_both_shown() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&folder.path().join("data"));
    let client = Client::connect(&broker).await;
    let (orders, other) = (topic("orders"), topic("other"));
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    client.create_topic(&other, 1, Durability::Fsynced).await;
    member(&client, &orders, "one").beat(&[], false).await;
    let request = HeartbeatRequest {
        group: GroupName::new("billing").unwrap(),
        member: MemberId("two".into()),
        topic: other,
        mode: GroupMode::Stream,
        start: Some(StartAt::Latest),
        owned: Vec::new(),
        leaving: false,
    };
    let refused = client.group.heartbeat(request).await.unwrap_err().to_string();
    assert!(
        refused.contains("orders") && refused.contains("other"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn new_group_can_start_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&folder.path().join("data"));
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    client.send(&orders, 0, &["a", "b"], None).await.unwrap();
    // Append times are the broker's: the next one that is later than the first.
    let first = append_time(&client, &orders, 0).await;
    let mut later = 2;
    let now = loop {
        client.send(&orders, 0, &["c"], None).await.unwrap();
        let time = append_time(&client, &orders, later).await;
        if time > first {
            break time;
        }
        later += 1;
    };
    let offset_at = |time| client.fetch.offset_at(orders.clone(), QueueNumber(0), time);
    assert_eq!(offset_at(now).await.unwrap(), Offset(later));
    assert_eq!(offset_at(Timestamp(0)).await.unwrap(), Offset(0));
    assert_eq!(
        offset_at(Timestamp(now.0 + 60_000)).await.unwrap(),
        Offset(later + 1)
    );
}

/// When the batch at this offset was appended.
async fn append_time(client: &Client, topic: &TopicName, offset: u64) -> Timestamp {
    let request = FetchRequest {
        member: None,
        wants: vec![Want {
            topic: topic.clone(),
            queue: QueueNumber(0),
            offset: Offset(offset),
            epoch: None,
        }],
        bytes_max: 1,
        wait_ms: 0,
    };
    let (_, batches) = client.fetch.fetch(request).await.unwrap();
    let stamped = split_stamped(&mut batches.into_bytes()).unwrap().unwrap();
    stamped.stamp.append_time
}

#[tokio::test(flavor = "multi_thread")]
async fn group_is_made_only_when_asked_to_and_says_since_when_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    client.send(&orders, 0, &["before"], None).await.unwrap();
    let heartbeat = |group: &str, start| HeartbeatRequest {
        group: GroupName::new(group).unwrap(),
        member: MemberId("one".into()),
        topic: orders.clone(),
        mode: GroupMode::Stream,
        start,
        owned: Vec::new(),
        leaving: false,
    };
    let unknown = client
        .group
        .heartbeat(heartbeat("first", None))
        .await
        .unwrap_err();
    assert!(
        matches!(&unknown, rpc_core::CallError::App(error) if error.code == ErrorCode::UnknownGroup),
        "{unknown}"
    );
    assert_eq!(client.group.list(PageRequest::default()).await.unwrap().items, []);
    let made = client
        .group
        .heartbeat(heartbeat("first", Some(StartAt::Latest)))
        .await
        .unwrap();
    assert_eq!(made.assigned[0].cursor, Offset(1));
    client.send(&orders, 0, &["since"], None).await.unwrap();
    broker.kill();

    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    let again = client.group.heartbeat(heartbeat("first", None)).await.unwrap();
    assert_eq!((again.since, again.assigned[0].cursor), (made.since, Offset(1)));
    // Met later, a group that begins at that time passes over nothing that was sent since.
    let later = heartbeat("second", Some(StartAt::Time(made.since)));
    let later = client.group.heartbeat(later).await.unwrap();
    assert!(later.assigned[0].cursor <= Offset(1), "{later:?}");
}
