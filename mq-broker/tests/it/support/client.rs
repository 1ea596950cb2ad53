//! The smallest client that can produce, fetch and manage.

use std::time::Duration;

use bytes::Bytes;
use mq_common::Error;
use mq_common::api::admin::{CreateTopicRequest, QueueHome, Topic};
use mq_common::api::fetch::{FetchRequest, KNOWS_COMPACTED_META, Want};
use mq_common::api::produce::{ProduceRequest, Receipt, TopicBatches};
use mq_common::api::{
    AdminClient, FetchClient, GroupClient, ProduceClient, TopicSettings, TransactionClient,
};
use mq_common::batch::{Batch, Builder, BuilderOptions, Record, split_stamped};
use mq_common::ids::{Durability, Offset, QueueNumber, ShardName, Timestamp, TopicId, TopicName};
use rpc_core::invoker::Invoker;
use rpc_core::{Attachment, CallError};

use super::BrokerProcess;

/// Stubs of all services of one broker.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) invoker: Invoker,
    pub(crate) produce: ProduceClient,
    pub(crate) fetch: FetchClient,
    pub(crate) group: GroupClient,
    pub(crate) transaction: TransactionClient,
    pub(crate) admin: AdminClient,
    shard: ShardName,
}

/// Ranges of offsets that hold nothing.
pub(crate) type Holes = Vec<(Offset, Offset)>;

/// One message as it was served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) offset: u64,
    pub(crate) key: Option<String>,
    pub(crate) tag: Option<String>,
    pub(crate) value: String,
}

/// What a fetch of one queue came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Read {
    pub(crate) messages: Vec<Delivered>,
    /// Where to go on.
    pub(crate) next: Offset,
    /// Of the queue.
    pub(crate) end: Offset,
    /// All of them.
    pub(crate) holes: Holes,
    /// Those that compaction by keys left.
    pub(crate) compacted: Holes,
}

/// Whether nothing was done because the broker has too much to do: to be tried again.
pub(crate) fn is_busy(error: &CallError<Error>) -> bool {
    match error {
        CallError::App(error) => error.code == mq_common::ErrorCode::Overloaded,
        CallError::Rpc(error) => error.code == rpc_core::Code::Overloaded,
    }
}

impl Client {
    pub(crate) async fn connect(broker: &BrokerProcess) -> Self {
        Self::connect_with(broker, None).await
    }

    pub(crate) async fn connect_with(broker: &BrokerProcess, token: Option<&str>) -> Self {
        let mut builder = Invoker::builder()
            .direct([broker.listen.as_str()])
            .timeout(Duration::from_secs(20));
        if let Some(token) = token {
            builder = builder.token(token);
        }
        let invoker = builder.build().await.unwrap();
        Self {
            produce: ProduceClient::refer(&invoker),
            fetch: FetchClient::refer(&invoker),
            group: GroupClient::refer(&invoker),
            transaction: TransactionClient::refer(&invoker),
            admin: AdminClient::refer(&invoker),
            shard: ShardName::new(broker.name.as_str()).unwrap(),
            invoker,
        }
    }

    /// Makes a topic that keeps its messages for seven days.
    pub(crate) async fn create_topic(&self, name: &TopicName, queues: u32, durability: Durability) -> Topic {
        let created = self.try_create_topic(name, queues, durability, None).await;
        created.unwrap()
    }

    pub(crate) async fn create_topic_with(
        &self,
        name: &TopicName,
        queues: u32,
        durability: Durability,
        settings: TopicSettings,
    ) -> Topic {
        let created = self
            .try_create_topic(name, queues, durability, Some(settings))
            .await;
        created.unwrap()
    }

    pub(crate) async fn try_create_topic(
        &self,
        name: &TopicName,
        queues: u32,
        durability: Durability,
        settings: Option<TopicSettings>,
    ) -> Result<Topic, CallError<Error>> {
        let queues = (0..queues).map(|queue| QueueHome {
            queue: QueueNumber(queue),
            shard: self.shard.clone(),
        });
        let request = CreateTopicRequest {
            name: name.clone(),
            identity: None,
            durability,
            queues: queues.collect(),
            settings,
        };
        self.admin.create_topic(request).await
    }

    /// First offset of a queue.
    pub(crate) async fn start_of(&self, name: &TopicName, queue: u32) -> u64 {
        let described = self.admin.describe_topic(name.clone()).await.unwrap();
        described.queues[queue as usize].start.0
    }

    /// Sends one batch of these values.
    pub(crate) async fn send<V: AsRef<[u8]>>(
        &self,
        topic: &TopicName,
        queue: u32,
        values: &[V],
        durability: Option<Durability>,
    ) -> Result<Receipt, CallError<Error>> {
        self.send_to(topic, None, queue, values, durability).await
    }

    /// Sends one batch of these values to the topic of this id.
    pub(crate) async fn send_to<V: AsRef<[u8]>>(
        &self,
        topic: &TopicName,
        id: Option<TopicId>,
        queue: u32,
        values: &[V],
        durability: Option<Durability>,
    ) -> Result<Receipt, CallError<Error>> {
        self.send_batch((topic, id, queue), batch(values), durability)
            .await
    }

    /// Sends a batch to the topic of this id.
    pub(crate) async fn send_batch(
        &self,
        (topic, id, queue): (&TopicName, Option<TopicId>, u32),
        batch: Batch,
        durability: Option<Durability>,
    ) -> Result<Receipt, CallError<Error>> {
        let listed = TopicBatches {
            id,
            ..topic_batches(topic, &[(queue, &batch)])
        };
        let request = ProduceRequest {
            topics: vec![listed],
            durability,
        };
        let attachment = Attachment::from(batch.into_bytes());
        let mut response = self.produce.produce(request, attachment).await?;
        Ok(response.outcomes.remove(0)?)
    }

    /// Sends so many batches of one value each in one call.
    pub(crate) async fn send_each(
        &self,
        topic: &TopicName,
        queue: u32,
        value: &[u8],
        batches: usize,
        durability: Option<Durability>,
    ) -> Result<(), CallError<Error>> {
        let batch = batch(&[value]);
        let request = ProduceRequest {
            topics: vec![topic_batches(topic, &vec![(queue, &batch); batches])],
            durability,
        };
        let attachment = Attachment::from(Bytes::from(batch.bytes().repeat(batches)));
        let response = self.produce.produce(request, attachment).await?;
        for outcome in response.outcomes {
            outcome?;
        }
        Ok(())
    }

    /// Everything visible in a queue from an offset on.
    pub(crate) async fn read(&self, topic: &TopicName, queue: u32, from: u64) -> Vec<Delivered> {
        let mut next = Offset(from);
        let mut all = Vec::new();
        loop {
            let (found, after, end) = self.fetch_once(topic, queue, next, Duration::ZERO).await.unwrap();
            all.extend(found.into_iter().filter(|message| message.offset >= next.0));
            if after >= end {
                return all;
            }
            next = after;
        }
    }

    /// One fetch: the messages, where to go on, and the end. Without an answer: none, and where it was.
    pub(crate) async fn fetch_once(
        &self,
        topic: &TopicName,
        queue: u32,
        offset: Offset,
        wait: Duration,
    ) -> Result<(Vec<Delivered>, Offset, Offset), CallError<Error>> {
        let read = self.fetch_all(topic, queue, offset, wait).await?;
        assert_eq!(read.holes, []);
        Ok((read.messages, read.next, read.end))
    }

    /// One fetch: the messages, where to go on, and the holes.
    pub(crate) async fn fetch_with_holes(
        &self,
        topic: &TopicName,
        queue: u32,
        offset: u64,
    ) -> (Vec<Delivered>, u64, Vec<(u64, u64)>) {
        let fetched = self.fetch_all(topic, queue, Offset(offset), Duration::ZERO).await;
        let read = fetched.unwrap();
        let holes = read.holes.into_iter().map(|(from, end)| (from.0, end.0));
        (read.messages, read.next.0, holes.collect())
    }

    /// The offsets from 0 to `end` that are served, and the holes between them.
    pub(crate) async fn offsets_and_holes(
        &self,
        topic: &TopicName,
        queue: u32,
        end: u64,
    ) -> (Vec<u64>, Vec<(u64, u64)>) {
        let (mut next, mut offsets, mut holes) = (0, Vec::new(), Vec::new());
        while next < end {
            let (found, after, missing) = self.fetch_with_holes(topic, queue, next).await;
            let found = found.iter().map(|message| message.offset);
            offsets.extend(found.filter(|offset| *offset >= next));
            holes.extend(missing);
            assert!(after > next);
            next = after;
        }
        (offsets, holes)
    }

    pub(crate) async fn fetch_all(
        &self,
        topic: &TopicName,
        queue: u32,
        offset: Offset,
        wait: Duration,
    ) -> Result<Read, CallError<Error>> {
        let request = FetchRequest {
            member: None,
            wants: vec![Want {
                topic: topic.clone(),
                queue: QueueNumber(queue),
                offset,
                epoch: None,
            }],
            bytes_max: 1 << 20,
            wait_ms: u32::try_from(wait.as_millis()).unwrap(),
        };
        self.fetch_as(request).await
    }

    /// One fetch of one queue as the request says. Without an answer: nothing, and where it was.
    pub(crate) async fn fetch_as(&self, request: FetchRequest) -> Result<Read, CallError<Error>> {
        let (queue, offset) = (request.wants[0].queue, request.wants[0].offset);
        let call = self.fetch.fetch(request).meta(KNOWS_COMPACTED_META, "1");
        let (response, attachment) = call.await?;
        let Some((_, answer)) = response.answers.into_iter().next() else {
            return Ok(Read {
                next: offset,
                end: offset,
                ..Read::default()
            });
        };
        let fetched = answer?;
        let bytes = attachment.into_bytes();
        assert_eq!(bytes.len(), fetched.bytes as usize);
        Ok(Read {
            messages: decode(bytes, queue.0),
            next: fetched.next_offset,
            end: fetched.end,
            holes: fetched.holes,
            compacted: fetched.compacted,
        })
    }
}

/// A topic's name.
pub(crate) fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

/// A batch of these values.
pub(crate) fn batch<V: AsRef<[u8]>>(values: &[V]) -> Batch {
    let mut builder = Builder::new(BuilderOptions::default());
    for value in values {
        builder.push(&Record::new(value.as_ref(), Timestamp(1))).unwrap();
    }
    builder.finish().unwrap()
}

/// How batches are listed in a request.
pub(crate) fn topic_batches(topic: &TopicName, batches: &[(u32, &Batch)]) -> TopicBatches {
    let batches = batches
        .iter()
        .map(|(queue, batch)| (QueueNumber(*queue), u32::try_from(batch.len()).unwrap()));
    TopicBatches {
        topic: topic.clone(),
        batches: batches.collect(),
        id: None,
    }
}

/// The values alone.
pub(crate) fn values(delivered: &[Delivered]) -> Vec<&str> {
    delivered.iter().map(|message| message.value.as_str()).collect()
}

fn decode(mut bytes: Bytes, queue: u32) -> Vec<Delivered> {
    let mut all = Vec::new();
    while let Some(stamped) = split_stamped(&mut bytes).unwrap() {
        assert_eq!(stamped.stamp.queue, QueueNumber(queue));
        let records = stamped.batch.records().unwrap();
        for (offset, record) in (stamped.stamp.base_offset.0..).zip(records.iter()) {
            let record = record.unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            all.push(Delivered {
                offset,
                key: record.key.map(text),
                tag: record.tag.map(str::to_owned),
                value: text(record.payload),
            });
        }
    }
    all
}
