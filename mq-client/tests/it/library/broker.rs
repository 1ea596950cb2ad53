//! A small broker in memory, served over loopback by a real provider: enough of each service to test a client against,
//! with switches for what goes wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mq_common::api::admin::{
    Admin, BrokerStatus, CreateTopicRequest, DeleteTopicRequest, QueueDescription, Topic, TopicDescription,
};
use mq_common::api::fetch::{Fetch, FetchRequest, FetchResponse, Fetched};
use mq_common::api::group::{
    AckRequest, AckResponse, Assigned, Group, GroupDescription, HeartbeatRequest, HeartbeatResponse,
};
use mq_common::api::produce::{Produce, ProduceRequest, ProduceResponse, Receipt, TopicBatches};
use mq_common::api::transaction::{
    Check, Decision, EndTransactionRequest, EndTransactionResponse, PollChecksRequest, PollChecksResponse,
    SendHalfRequest, SendHalfResponse, Transaction, TransactionDescription, TransactionState,
};
use mq_common::api::{AdminServer, FetchServer, GroupServer, ProduceServer, TransactionServer};
use mq_common::batch::{Batch, Stamp, stamp_header};
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
    produce_calls: usize,
    batches: usize,
    lsn: u64,
}

#[derive(Debug, Default)]
struct Members {
    alive: BTreeSet<MemberId>,
    owners: BTreeMap<QueueNumber, (MemberId, OwnerEpoch)>,
    cursors: BTreeMap<QueueNumber, Offset>,
    grants: u64,
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

/// See the module.
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
                Act::Silence | Act::Serve => state.has(&self.0.name, &topic, queue),
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

impl Fetch for Services {
    async fn fetch(&self, request: FetchRequest) -> Result<(FetchResponse, Attachment), Error> {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(u64::from(request.wait_ms));
        loop {
            let changed = self.0.changed.notified();
            let (response, attachment) = self.look(&request);
            if !response.answers.is_empty() {
                return Ok((response, attachment));
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Ok((response, attachment));
            }
        }
    }

    async fn offset_at(&self, topic: TopicName, queue: QueueNumber, _: Timestamp) -> Result<Offset, Error> {
        Ok(self.0.lock().end(&topic, queue))
    }
}

impl Services {
    fn look(&self, request: &FetchRequest) -> (FetchResponse, Attachment) {
        let state = self.0.lock();
        let mut attachment = Attachment::new();
        let mut answers = Vec::new();
        for (index, want) in (0_u32..).zip(&request.wants) {
            let owner = request.member.as_ref().and_then(|(group, member)| {
                let owner = state.groups.get(group)?.owners.get(&want.queue)?;
                (owner.0 == *member && Some(owner.1) == want.epoch).then_some(())
            });
            if request.member.is_some() && owner.is_none() {
                answers.push((index, Err(Error::new(ErrorCode::Fenced, "not the owner"))));
                continue;
            }
            let end = state.end(&want.topic, want.queue);
            if want.offset >= end {
                continue;
            }
            let before = attachment.len();
            let log = &state.queues[&(want.topic.clone(), want.queue)];
            let mut next_offset = want.offset;
            for (stamp, batch) in log {
                let behind = stamp.base_offset.0 + u64::from(batch.record_count());
                if behind <= want.offset.0 || attachment.len() > request.bytes_max as usize {
                    continue;
                }
                let header = stamp_header(stamp, batch.header().region_bytes, batch.checksum());
                attachment.push(bytes::Bytes::copy_from_slice(&header));
                attachment.push(batch.bytes().clone());
                next_offset = Offset(behind);
            }
            let fetched = Fetched {
                bytes: u32::try_from(attachment.len() - before).unwrap(),
                next_offset,
                end,
                holes: Vec::new(),
            };
            answers.push((index, Ok(fetched)));
        }
        (FetchResponse { answers }, attachment)
    }
}

impl Group for Services {
    async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Error> {
        let mut state = self.0.lock();
        let state = &mut *state;
        let topic = state
            .topics
            .get(&request.topic)
            .ok_or_else(|| Error::new(ErrorCode::UnknownTopic, "none"))?;
        if request.group.as_str() == "refused" {
            return Err(Error::new(
                ErrorCode::SubscriptionMismatch,
                "the group has another topic",
            ));
        }
        let group = state.groups.entry(request.group.clone()).or_default();
        let here = topic
            .queues
            .iter()
            .filter(|home| home.shard == self.0.name)
            .map(|home| home.queue);
        if request.leaving {
            group.alive.remove(&request.member);
            group.owners.retain(|_, (owner, _)| *owner != request.member);
        } else {
            group.alive.insert(request.member.clone());
        }
        let members: Vec<_> = group.alive.iter().cloned().collect();
        let mut revoking = Vec::new();
        for queue in here {
            let Some(target) = members.get(queue.0 as usize % members.len().max(1)) else {
                continue;
            };
            match group.owners.get(&queue) {
                Some((owner, epoch)) if owner == &request.member && owner != target => {
                    if request.owned.contains(&(queue, *epoch)) {
                        revoking.push(queue);
                    } else {
                        group.owners.remove(&queue);
                    }
                }
                Some(_) => {}
                None if *target == request.member => {
                    group.grants += 1;
                    let epoch = OwnerEpoch {
                        term: Term(1),
                        counter: group.grants,
                    };
                    group.owners.insert(queue, (request.member.clone(), epoch));
                }
                None => {}
            }
        }
        let mine = group
            .owners
            .iter()
            .filter(|(_, (owner, _))| *owner == request.member);
        let assigned = mine.map(|(&queue, &(_, epoch))| Assigned {
            queue,
            epoch,
            cursor: group.cursors.get(&queue).copied().unwrap_or_default(),
        });
        let response = HeartbeatResponse {
            assigned: assigned.collect(),
            revoking,
            members: u32::try_from(members.len()).unwrap(),
            heartbeat_ms: 50,
            session_ms: 5000,
        };
        self.0.changed.notify_waiters();
        Ok(response)
    }

    async fn ack(&self, request: AckRequest) -> Result<AckResponse, Error> {
        let mut state = self.0.lock();
        let group = state.groups.entry(request.group).or_default();
        let mut outcomes = Vec::new();
        for ack in request.acks {
            let owner = group.owners.get(&ack.queue);
            if owner != Some(&(request.member.clone(), ack.epoch)) {
                outcomes.push(Err(Error::new(ErrorCode::Fenced, "not the owner")));
                continue;
            }
            let cursor = group.cursors.entry(ack.queue).or_default();
            *cursor = (*cursor).max(ack.next);
            outcomes.push(Ok(()));
        }
        self.0.changed.notify_waiters();
        Ok(AckResponse { outcomes })
    }

    async fn list(&self) -> Result<Vec<GroupDescription>, Error> {
        Ok(Vec::new())
    }

    async fn describe(&self, _: GroupName) -> Result<Vec<GroupDescription>, Error> {
        Ok(Vec::new())
    }
}

impl Transaction for Services {
    async fn send_half(
        &self,
        request: SendHalfRequest,
        batches: Attachment,
    ) -> Result<SendHalfResponse, Error> {
        let batches = split(&request.topics, batches)
            .into_iter()
            .map(|(_, _, batch)| batch)
            .collect();
        let mut state = self.0.lock();
        state.lsn += 1;
        let transaction = TransactionId {
            shard: self.0.name.clone(),
            lsn: Lsn(state.lsn),
        };
        let half = Half {
            state: TransactionState::Open,
            topics: request.topics,
            batches,
            asked: 0,
        };
        state.halves.insert(transaction.clone(), half);
        self.0.changed.notify_waiters();
        Ok(SendHalfResponse {
            transaction,
            durability: Durability::Fsynced,
            state: TransactionState::Open,
        })
    }

    async fn end(&self, request: EndTransactionRequest) -> Result<EndTransactionResponse, Error> {
        let mut state = self.0.lock();
        let unknown = || Error::new(ErrorCode::UnknownTransaction, "no such transaction");
        let half = state.halves.get_mut(&request.transaction).ok_or_else(unknown)?;
        let wished = match request.decision {
            Decision::Commit => TransactionState::Committed,
            Decision::Rollback => TransactionState::RolledBack,
            Decision::Unknown => {
                return Ok(EndTransactionResponse {
                    state: half.state,
                    already: false,
                    receipt: None,
                    placed: Vec::new(),
                });
            }
        };
        let already = half.state == wished;
        half.state = wished;
        let mut receipt = None;
        if wished == TransactionState::Committed && !already {
            let places: Vec<_> = half
                .topics
                .iter()
                .flat_map(|topic| {
                    topic
                        .batches
                        .iter()
                        .map(|(queue, _)| (topic.topic.clone(), *queue))
                })
                .zip(half.batches.clone())
                .collect();
            for ((topic, queue), batch) in places {
                let placed = state.append(&topic, queue, batch, Stamp::TRANSACTIONAL);
                receipt.get_or_insert(placed);
            }
        }
        self.0.changed.notify_waiters();
        Ok(EndTransactionResponse {
            state: wished,
            already,
            receipt,
            placed: Vec::new(),
        })
    }

    /// Asks for every open transaction at once and again and again, for the test does not want to wait.
    async fn poll_checks(
        &self,
        request: PollChecksRequest,
    ) -> Result<(PollChecksResponse, Attachment), Error> {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(u64::from(request.wait_ms));
        loop {
            let changed = self.0.changed.notified();
            let mut attachment = Attachment::new();
            let mut checks = Vec::new();
            for (transaction, half) in &mut self.0.lock().halves {
                if half.state != TransactionState::Open || half.asked > 3 {
                    continue;
                }
                half.asked += 1;
                half.batches
                    .iter()
                    .for_each(|batch| attachment.push(batch.bytes().clone()));
                checks.push(Check {
                    transaction: transaction.clone(),
                    key: None,
                    asked: half.asked - 1,
                    topics: half.topics.clone(),
                });
            }
            if !checks.is_empty() || tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Ok((PollChecksResponse { checks }, attachment));
            }
        }
    }

    async fn list(&self) -> Result<Vec<TransactionDescription>, Error> {
        Ok(Vec::new())
    }
}

impl Admin for Services {
    async fn create_topic(&self, request: CreateTopicRequest) -> Result<Topic, Error> {
        let mut state = self.0.lock();
        let (id, version) = request.identity.unwrap_or((TopicId(7), 1));
        let topic = Topic {
            name: request.name.clone(),
            id,
            version,
            durability: request.durability,
            queues: request.queues,
            deleted: false,
        };
        Ok(state.topics.entry(request.name).or_insert(topic).clone())
    }

    async fn delete_topic(&self, request: DeleteTopicRequest) -> Result<Topic, Error> {
        let mut state = self.0.lock();
        let topic = state.topics.get_mut(&request.name);
        let topic = topic.ok_or_else(|| Error::new(ErrorCode::UnknownTopic, "none"))?;
        topic.deleted = true;
        topic.version = request.identity.map_or(topic.version + 1, |(_, version)| version);
        Ok(topic.clone())
    }

    async fn topics(&self) -> Result<Vec<Topic>, Error> {
        Ok(self.0.lock().topics.values().cloned().collect())
    }

    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription, Error> {
        let state = self.0.lock();
        let found = state.topics.get(&topic).cloned();
        let found =
            found.ok_or_else(|| Error::new(ErrorCode::UnknownTopic, format!("no topic `{topic}`")))?;
        let here = found.queues.iter().filter(|home| home.shard == self.0.name);
        let queues = here.map(|home| QueueDescription {
            queue: home.queue,
            start: Offset(0),
            end: state.end(&topic, home.queue),
            bytes: 0,
        });
        Ok(TopicDescription {
            queues: queues.collect(),
            topic: found,
        })
    }

    async fn status(&self) -> Result<BrokerStatus, Error> {
        Ok(BrokerStatus {
            shard: self.0.name.clone(),
            version: "fake".to_owned(),
            address: String::new(),
            http: String::new(),
            role: "leader".to_owned(),
            term: Term(1),
            appended: Lsn(0),
            flushed: Lsn(0),
            synced: Lsn(0),
            topics: 0,
            queues: 0,
            groups: 0,
            transactions: 0,
            journal_bytes: 0,
            uptime_ms: 0,
            registration: String::new(),
        })
    }
}
