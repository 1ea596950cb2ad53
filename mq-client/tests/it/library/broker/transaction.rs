//! Its transactions: each is decided once, and asked for at once.

use std::time::Duration;

use mq_common::api::transaction::{
    Check, Decision, EndTransactionRequest, EndTransactionResponse, Placed, PollChecksRequest,
    PollChecksResponse, ResumeTransactionResponse, SendHalfRequest, SendHalfResponse, Transaction,
    TransactionDescription, TransactionState,
};
use mq_common::api::{Page, PageRequest};
use mq_common::batch::Stamp;
use mq_common::ids::{Durability, GroupName, Timestamp, TransactionId, TransactionNumber};
use mq_common::{Error, ErrorCode};
use rpc_core::Attachment;

use super::{Half, HalfSend, Services, split};

impl Transaction for Services {
    async fn send_half(
        &self,
        request: SendHalfRequest,
        batches: Attachment,
    ) -> Result<SendHalfResponse, Error> {
        let bytes = batches.clone().into_bytes();
        let batches = split(&request.topics, batches)
            .into_iter()
            .map(|(_, _, batch)| batch)
            .collect();
        let mut state = self.0.lock();
        state.half_sends.push(HalfSend {
            key: request.key,
            digest: request.digest,
            bytes,
        });
        let code = state.half_codes.pop_front();
        if let Some(code) = code.filter(|code| *code != ErrorCode::OutcomeUnknown) {
            return Err(Error::new(code, "told to refuse"));
        }
        state.lsn += 1;
        let transaction = TransactionId {
            shard: self.0.name.clone(),
            number: TransactionNumber(state.lsn),
        };
        let half = Half {
            state: TransactionState::Open,
            topics: request.topics,
            batches,
            asked: 0,
        };
        state.halves.insert(transaction.clone(), half);
        self.0.changed.notify_waiters();
        if let Some(code) = code {
            return Err(Error::new(code, "told to refuse"));
        }
        Ok(SendHalfResponse {
            transaction,
            durability: Durability::Fsynced,
            state: TransactionState::Open,
        })
    }

    async fn end(&self, request: EndTransactionRequest) -> Result<EndTransactionResponse, Error> {
        let mut state = self.0.lock();
        // Not those that answer a question.
        if request.answers.is_none()
            && let Some(code) = state.end_codes.pop_front()
        {
            return Err(Error::new(code, "told to refuse"));
        }
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
        let mut all_placed = Vec::new();
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
                all_placed.push(Placed {
                    topic,
                    queue,
                    base_offset: placed.base_offset,
                });
            }
        }
        self.0.changed.notify_waiters();
        Ok(EndTransactionResponse {
            state: wished,
            already,
            receipt,
            placed: all_placed,
        })
    }

    async fn resume(&self, _: TransactionId) -> Result<ResumeTransactionResponse, Error> {
        Ok(ResumeTransactionResponse { already: true })
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

    /// Two transactions a page.
    async fn list(
        &self,
        page: PageRequest<TransactionNumber>,
    ) -> Result<Page<TransactionDescription, TransactionNumber>, Error> {
        let state = self.0.lock();
        let behind = state.halves.iter().filter(|(id, _)| Some(id.number) > page.after);
        let described = behind.map(|(id, half)| TransactionDescription {
            transaction: id.clone(),
            state: half.state,
            producer_group: GroupName::new("g").unwrap(),
            key: None,
            since: Timestamp(id.number.0),
            asked: half.asked,
            messages: 1,
            topics: half.topics.iter().map(|topic| topic.topic.clone()).collect(),
        });
        Ok(Page::cut(described, Some(2), |one| one.transaction.number, |_| 0))
    }
}
