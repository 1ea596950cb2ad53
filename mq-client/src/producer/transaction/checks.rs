//! Answers the brokers' questions about undecided transactions: one long poll per broker; the listener
//! answers each question.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mq_common::api::produce::TopicBatches;
use mq_common::api::transaction::{Check, Decision, PollChecksRequest};
use mq_common::batch::{Batch, BatchError};
use mq_common::ids::ShardName;
use rpc_core::registry::Instance;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{AGAIN_FIRST, AGAIN_MAX, CheckedTransaction, Shared, TransactionListener, millis, without_panic};
use crate::message::Message;

/// How long one poll waits for questions at the broker.
const POLL_WAIT: Duration = Duration::from_secs(20);
/// The most questions in one response.
const POLL_MAX: u32 = 32;

impl<L: TransactionListener> Shared<L> {
    /// Polls every broker for questions, including brokers that appear later.
    pub(super) async fn answer_checks(self: Arc<Self>, stop: CancellationToken) {
        let mut registrations = self.client.routes.registrations();
        let mut polls: BTreeMap<ShardName, (Arc<Instance>, DropGuard)> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        loop {
            registrations.mark_unchanged();
            let brokers = self.client.routes.brokers();
            polls.retain(|shard, (instance, _)| {
                brokers
                    .get(shard)
                    .is_some_and(|now| now.address == instance.address)
            });
            for (shard, broker) in brokers {
                if polls.contains_key(&shard) {
                    continue;
                }
                let token = stop.child_token();
                tasks.spawn(Arc::clone(&self).poll(Arc::clone(&broker), token.clone()));
                polls.insert(shard, (broker, token.drop_guard()));
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = registrations.changed() => if changed.is_err() {
                    break;
                },
                Some(_) = tasks.join_next() => {}
            }
        }
        drop(polls);
        tasks.join_all().await;
    }

    async fn poll(self: Arc<Self>, broker: Arc<Instance>, stop: CancellationToken) {
        let mut wait = AGAIN_FIRST;
        let mut received = Vec::new();
        loop {
            let request = PollChecksRequest {
                producer_group: self.group.clone(),
                member: self.member.clone(),
                received: std::mem::take(&mut received),
                max: POLL_MAX,
                wait_ms: millis(POLL_WAIT),
            };
            let call = self.client.transaction.poll_checks(request).to(&broker);
            let answer = tokio::select! {
                () = stop.cancelled() => return,
                answer = call.timeout(POLL_WAIT + Duration::from_secs(5)) => answer,
            };
            match answer {
                Ok((response, batches)) => {
                    wait = AGAIN_FIRST;
                    let mut batches = batches.into_bytes();
                    for check in response.checks {
                        let transaction = check.transaction.clone();
                        let answered = tokio::select! {
                            () = stop.cancelled() => return,
                            answered = self.answer(check, &mut batches) => answered,
                        };
                        if !answered {
                            received.push(transaction);
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(broker = %broker.name, %error, "poll for transaction checks failed");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(wait) => {}
                    }
                    wait = (wait * 2).min(AGAIN_MAX);
                }
            }
        }
    }

    /// Asks the listener and sends its decision to the broker; false if the broker did not get it.
    async fn answer(&self, check: Check, batches: &mut Bytes) -> bool {
        let messages = match messages_of(&check.topics, batches) {
            Ok(messages) => messages,
            Err(error) => {
                tracing::error!(transaction = %check.transaction, %error, "a half message cannot be read");
                return false;
            }
        };
        let checked = CheckedTransaction {
            transaction: check.transaction,
            key: check.key,
            asked: check.asked,
            messages,
        };
        let decision = without_panic(self.listener.check_local_transaction(&checked)).await;
        let decision = decision.unwrap_or(Decision::Unknown);
        let poller = Some((self.group.clone(), self.member.clone()));
        let ended = self
            .client
            .end_transaction(&checked.transaction, decision, poller, self.timeout)
            .await;
        if let Err(error) = &ended {
            tracing::warn!(transaction = %checked.transaction, ?decision, %error, "a check was not answered");
        }
        ended.is_ok()
    }
}

/// Splits the batches of one question off `batches` and decodes them. All of them are split off, even if one
/// cannot be read: the next question starts after them.
fn messages_of(topics: &[TopicBatches], batches: &mut Bytes) -> Result<Vec<Message>, BatchError> {
    let stated = topics
        .iter()
        .flat_map(|topic| &topic.batches)
        .map(|(_, bytes)| *bytes as usize)
        .fold(0, usize::saturating_add);
    let mut batches = batches.split_to(stated.min(batches.len()));
    let mut messages = Vec::new();
    let lengths = topics
        .iter()
        .flat_map(|topic| topic.batches.iter().map(move |batch| (&topic.topic, batch)));
    for (topic, &(queue, bytes)) in lengths {
        let bytes = bytes as usize;
        if bytes > batches.len() {
            return Err(BatchError::Truncated {
                what: "the batches of a question",
                expected: bytes,
                actual: batches.len(),
            });
        }
        let records = Batch::parse(batches.split_to(bytes))?.records()?;
        for record in &records {
            messages.push(Message::of_record(topic, queue, records.bytes(), &record?));
        }
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use mq_common::batch::{Builder, BuilderOptions, Record};
    use mq_common::ids::{QueueNumber, Timestamp, TopicName};

    use super::*;

    fn batch(payload: &[u8]) -> Bytes {
        let mut builder = Builder::new(BuilderOptions::default());
        builder.push(&Record::new(payload, Timestamp(1))).unwrap();
        builder.finish().unwrap().into_bytes()
    }

    fn listed(batches: &[&[u8]]) -> Vec<TopicBatches> {
        let lengths = (0..).zip(batches);
        vec![TopicBatches {
            topic: TopicName::new("t").unwrap(),
            batches: lengths
                .map(|(queue, batch)| (QueueNumber(queue), u32::try_from(batch.len()).unwrap()))
                .collect(),
            id: None,
        }]
    }

    #[test]
    fn question_behind_an_unreadable_one_gets_its_own_messages() {
        let (mut bad, second, third) = (batch(b"first").to_vec(), batch(b"second"), batch(b"third"));
        let last = bad.len() - 1;
        bad[last] ^= 1;
        let mut batches = Bytes::from([&bad[..], &second, &third].concat());
        messages_of(&listed(&[&bad, &second]), &mut batches).unwrap_err();
        let messages = messages_of(&listed(&[&third]), &mut batches).unwrap();
        assert_eq!(messages[0].payload, "third");
        messages_of(&listed(&[&third]), &mut batches).unwrap_err();
    }
}
