//! A small broker in memory, served over loopback by a real provider: enough of each service to test a client
//! against, with switches for what goes wrong.

mod admin;
mod fetch;
pub(crate) mod group;
mod transaction;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mq_common::api::admin::{QueueHome, Topic};
use mq_common::api::group::StartAt;
use mq_common::api::produce::{Produce, ProduceRequest, ProduceResponse, Receipt, TopicBatches};
use mq_common::api::transaction::TransactionState;
use mq_common::api::{AdminServer, FetchServer, GroupServer, ProduceServer, TransactionServer};
use mq_common::batch::{Batch, Stamp};
use mq_common::ids::{
    Durability, GroupName, Lsn, MemberId, Offset, OwnerEpoch, QueueNumber, ShardName, Term, Timestamp,
    TopicId, TopicName, TransactionId,
};
use mq_common::{Error, ErrorCode};
use rpc_core::registry::Registry;
use rpc_core::{Attachment, Provider};
use tokio::sync::Notify;

/// What happens to the next produce call instead of the usual.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Act {
    /// Every batch is refused with this code.
    Refuse(ErrorCode),
    /// The batches are appended, and no answer ever comes.
    Silence,
    /// Nothing unusual.
    Serve,
}

#[derive(Debug, Default)]
struct State {
    topics: BTreeMap<TopicName, Topic>,
    queues: BTreeMap<(TopicName, QueueNumber), Vec<(Stamp, Batch)>>,
    groups: BTreeMap<GroupName, Members>,
    halves: BTreeMap<TransactionId, Half>,
    acts: VecDeque<Act>,
    /// What the next half sends, ends and acks are answered with, after they were done (unknown outcome) or
    /// instead.
    half_codes: VecDeque<ErrorCode>,
    end_codes: VecDeque<ErrorCode>,
    ack_codes: VecDeque<ErrorCode>,
    /// Fetches whose answer lacks its first batch.
    fetches_to_spoil: usize,
    /// Queues whose batches come damaged unless they are asked for from the disk.
    damaged_in_memory: BTreeSet<u32>,
    /// Queues of which nothing is served.
    refused: BTreeSet<u32>,
    /// The queues of each fetch so far, and whether it was to be from the disk.
    fetches: Vec<(Vec<u32>, bool)>,
    /// Where all queues begin.
    start: Offset,
    /// What is not served any more, by its first offset, and whether it was compacted away.
    gone: BTreeMap<(TopicName, QueueNumber, Offset), bool>,
    half_sends: Vec<HalfSend>,
    produce_calls: usize,
    batches: usize,
    lsn: u64,
    ill: bool,
    /// It wants a heartbeat once a minute only.
    seldom: bool,
    /// What heartbeats said of where a new group starts.
    starts: Vec<Option<StartAt>>,
}

#[derive(Debug, Default)]
struct Members {
    alive: BTreeSet<MemberId>,
    owners: BTreeMap<QueueNumber, (MemberId, OwnerEpoch)>,
    cursors: BTreeMap<QueueNumber, Offset>,
    grants: u64,
}

/// What came with a half send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HalfSend {
    pub(crate) key: Option<String>,
    pub(crate) digest: Option<u64>,
    pub(crate) bytes: bytes::Bytes,
}

#[derive(Debug)]
struct Half {
    state: TransactionState,
    topics: Vec<TopicBatches>,
    batches: Vec<Batch>,
    asked: u32,
}

#[derive(Debug)]
struct Shared {
    name: ShardName,
    state: Mutex<State>,
    changed: Notify,
}

/// A broker in memory.
pub(crate) struct FakeBroker {
    shared: Arc<Shared>,
    provider: Provider,
}

impl FakeBroker {
    pub(crate) async fn start(name: &str, registry: &Arc<dyn Registry>) -> Self {
        let shared = Arc::new(Shared {
            name: ShardName::new(name).unwrap(),
            state: Mutex::default(),
            changed: Notify::new(),
        });
        let provider = Provider::builder()
            .listen("127.0.0.1:0")
            .name(name)
            .registry(Arc::clone(registry))
            .serve(ProduceServer::new(Services(Arc::clone(&shared))))
            .serve(FetchServer::new(Services(Arc::clone(&shared))))
            .serve(GroupServer::new(Services(Arc::clone(&shared))))
            .serve(TransactionServer::new(Services(Arc::clone(&shared))))
            .serve(AdminServer::new(Services(Arc::clone(&shared))))
            .start()
            .await
            .unwrap();
        provider
            .registered()
            .wait_for(|registered| *registered)
            .await
            .unwrap();
        Self { shared, provider }
    }

    pub(crate) fn name(&self) -> &str {
        self.shared.name.as_str()
    }

    /// The next produce calls, in order.
    pub(crate) fn acts(&self, acts: impl IntoIterator<Item = Act>) {
        self.shared.lock().acts.extend(acts);
    }

    /// It answers nothing about topics and groups any more.
    pub(crate) fn fall_ill(&self) {
        self.shared.lock().ill = true;
    }

    /// It answers again.
    pub(crate) fn recover(&self) {
        self.shared.lock().ill = false;
    }

    /// It wants heartbeats once a minute only.
    pub(crate) fn seldom(&self) {
        self.shared.lock().seldom = true;
    }

    /// It forgets the members of its groups, as a restart does.
    pub(crate) fn forget_members(&self) {
        for group in self.shared.lock().groups.values_mut() {
            group.alive.clear();
            group.owners.clear();
        }
        self.shared.changed.notify_waiters();
    }

    pub(crate) fn starts(&self) -> Vec<Option<StartAt>> {
        self.shared.lock().starts.clone()
    }

    pub(crate) fn has_topic(&self, name: &str) -> bool {
        self.shared
            .lock()
            .topics
            .contains_key(&TopicName::new(name).unwrap())
    }

    /// It has this topic, whatever it had of the name.
    pub(crate) fn declare(&self, topic: Topic) {
        self.shared.lock().topics.insert(topic.name.clone(), topic);
    }

    /// The next half sends are answered so.
    pub(crate) fn half_codes(&self, codes: impl IntoIterator<Item = ErrorCode>) {
        self.shared.lock().half_codes.extend(codes);
    }

    /// The next ends of transactions are answered so.
    pub(crate) fn end_codes(&self, codes: impl IntoIterator<Item = ErrorCode>) {
        self.shared.lock().end_codes.extend(codes);
    }

    /// The next acks are answered so.
    pub(crate) fn ack_codes(&self, codes: impl IntoIterator<Item = ErrorCode>) {
        self.shared.lock().ack_codes.extend(codes);
    }

    /// From now on batches are damaged in its memory; on its disk they are whole.
    pub(crate) fn damage_memory(&self, queue: u32) {
        self.shared.lock().damaged_in_memory.insert(queue);
    }

    /// Whether anything is served of a queue.
    pub(crate) fn serves(&self, queue: u32, serves: bool) {
        let mut state = self.shared.lock();
        if serves {
            state.refused.remove(&queue);
        } else {
            state.refused.insert(queue);
        }
    }

    /// The queues of each fetch so far, and whether it was to be from the disk.
    pub(crate) fn fetches(&self) -> Vec<(Vec<u32>, bool)> {
        self.shared.lock().fetches.clone()
    }

    /// What is below is gone.
    pub(crate) fn trim(&self, start: u64) {
        self.shared.lock().start = Offset(start);
    }

    /// So many fetches lose the first batch of their answer.
    pub(crate) fn spoil_fetches(&self, fetches: usize) {
        self.shared.lock().fetches_to_spoil = fetches;
    }

    /// The batches at these offsets of `t` are damaged, or compacted away.
    pub(crate) fn let_go(&self, queue: u32, offsets: impl IntoIterator<Item = u64>, compacted: bool) {
        let topic = TopicName::new("t").unwrap();
        let places = offsets
            .into_iter()
            .map(|offset| ((topic.clone(), QueueNumber(queue), Offset(offset)), compacted));
        self.shared.lock().gone.extend(places);
    }

    pub(crate) fn half_sends(&self) -> Vec<HalfSend> {
        self.shared.lock().half_sends.clone()
    }

    pub(crate) fn produce_calls(&self) -> usize {
        self.shared.lock().produce_calls
    }

    pub(crate) fn batches(&self) -> usize {
        self.shared.lock().batches
    }

    /// Payloads of a queue in order.
    pub(crate) fn payloads(&self, topic: &str, queue: u32) -> Vec<String> {
        let state = self.shared.lock();
        let key = (TopicName::new(topic).unwrap(), QueueNumber(queue));
        let batches = state.queues.get(&key).map_or(&[][..], Vec::as_slice);
        let mut payloads = Vec::new();
        for (_, batch) in batches {
            for record in &batch.records().unwrap() {
                payloads.push(String::from_utf8_lossy(record.unwrap().payload).into_owned());
            }
        }
        payloads
    }

    pub(crate) fn cursor(&self, group: &str, queue: u32) -> u64 {
        let state = self.shared.lock();
        let group = state.groups.get(&GroupName::new(group).unwrap());
        group
            .and_then(|group| group.cursors.get(&QueueNumber(queue)))
            .map_or(0, |offset| offset.0)
    }

    pub(crate) fn members(&self, group: &str) -> usize {
        let state = self.shared.lock();
        state
            .groups
            .get(&GroupName::new(group).unwrap())
            .map_or(0, |group| group.alive.len())
    }

    pub(crate) fn transaction(&self, id: &TransactionId) -> TransactionState {
        self.shared.lock().halves[id].state
    }

    /// Another topic takes the name: as if it had been deleted and made again, with so many queues.
    pub(crate) fn make_again(&self, topic: &str, queues: u32) {
        let mut state = self.shared.lock();
        let name = TopicName::new(topic).unwrap();
        state.queues.retain(|(topic, _), _| *topic != name);
        let topic = state.topics.get_mut(&name).unwrap();
        topic.id.0 += 1;
        topic.queues = (0..queues)
            .map(|queue| QueueHome {
                queue: QueueNumber(queue),
                shard: self.shared.name.clone(),
            })
            .collect();
    }

    /// Stops it: connections are cut, the registration is taken back.
    pub(crate) async fn stop(self) {
        self.provider.shutdown(Duration::ZERO).await;
    }

    /// Waits until `holds`, woken by every change at the broker.
    pub(crate) async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.shared.changed.notified();
                if holds(self) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("it did not come to hold in 10 s");
    }
}

/// One type for all five services.
struct Services(Arc<Shared>);

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn well(&self) -> Result<(), Error> {
        match self.ill {
            true => Err(Error::new(ErrorCode::ShuttingDown, "ill")),
            false => Ok(()),
        }
    }

    fn append(&mut self, topic: &TopicName, queue: QueueNumber, batch: Batch, flags: u16) -> Receipt {
        self.lsn += 1;
        let log = self.queues.entry((topic.clone(), queue)).or_default();
        let base_offset = log.last().map_or(Offset(0), |(stamp, batch)| {
            Offset(stamp.base_offset.0 + u64::from(batch.record_count()))
        });
        let stamp = Stamp {
            queue,
            base_offset,
            lsn: Lsn(self.lsn),
            append_time: Timestamp(self.lsn),
            epoch: Term(1),
            flags,
        };
        log.push((stamp, batch));
        self.batches += 1;
        Receipt {
            base_offset,
            lsn: Lsn(self.lsn),
            durability: Durability::Fsynced,
        }
    }

    fn end(&self, topic: &TopicName, queue: QueueNumber) -> Offset {
        let log = self.queues.get(&(topic.clone(), queue));
        log.and_then(|log| log.last())
            .map_or(Offset(0), |(stamp, batch)| {
                Offset(stamp.base_offset.0 + u64::from(batch.record_count()))
            })
    }

    fn is(&self, topic: &TopicName, meant: Option<TopicId>) -> Result<(), Error> {
        let known = self.topics.get(topic);
        let other = known.is_some_and(|known| meant.is_some_and(|id| id != known.id));
        (!other)
            .then_some(())
            .ok_or_else(|| Error::new(ErrorCode::UnknownTopic, "another topic has the name now"))
    }

    fn has(&self, shard: &ShardName, topic: &TopicName, queue: QueueNumber) -> Result<(), Error> {
        let known = self.topics.get(topic).filter(|topic| !topic.deleted);
        let known =
            known.ok_or_else(|| Error::new(ErrorCode::UnknownTopic, format!("no topic `{topic}`")))?;
        let here = known
            .queues
            .iter()
            .any(|home| home.queue == queue && home.shard == *shard);
        here.then_some(())
            .ok_or_else(|| Error::new(ErrorCode::UnknownQueue, "not here"))
    }
}

fn split(topics: &[TopicBatches], attachment: Attachment) -> Vec<(TopicName, QueueNumber, Batch)> {
    let mut bytes = attachment.into_bytes();
    let mut batches = Vec::new();
    for topic in topics {
        for &(queue, length) in &topic.batches {
            let batch = Batch::parse(bytes.split_to(length as usize)).unwrap();
            batches.push((topic.topic.clone(), queue, batch));
        }
    }
    batches
}

impl Produce for Services {
    async fn produce(&self, request: ProduceRequest, batches: Attachment) -> Result<ProduceResponse, Error> {
        let batches = split(&request.topics, batches);
        let meant: BTreeMap<_, _> = request
            .topics
            .iter()
            .filter_map(|topic| Some((topic.topic.clone(), topic.id?)))
            .collect();
        let act = {
            let mut state = self.0.lock();
            state.produce_calls += 1;
            state.acts.pop_front().unwrap_or(Act::Serve)
        };
        let mut outcomes = Vec::new();
        for (topic, queue, batch) in batches {
            let mut state = self.0.lock();
            let refused = match act {
                Act::Refuse(code) => Err(Error::new(code, "told to refuse")),
                Act::Silence | Act::Serve => state
                    .is(&topic, meant.get(&topic).copied())
                    .and_then(|()| state.has(&self.0.name, &topic, queue)),
            };
            outcomes.push(refused.map(|()| state.append(&topic, queue, batch, 0)));
        }
        self.0.changed.notify_waiters();
        if matches!(act, Act::Silence) {
            std::future::pending::<()>().await;
        }
        Ok(ProduceResponse { outcomes })
    }
}
