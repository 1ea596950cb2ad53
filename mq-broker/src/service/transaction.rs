//! Transactions: half messages, their end, and the check-back questions to producers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mq_common::api::produce::{Receipt, TopicBatches};
use mq_common::api::transaction::{
    self as api, Check, Decision, EndTransactionRequest, EndTransactionResponse, Placed, PollChecksRequest,
    PollChecksResponse, ResumeTransactionResponse, SendHalfRequest, SendHalfResponse, TransactionDescription,
    TransactionState,
};
use mq_common::api::{Page, PageRequest};
use mq_common::ids::{GroupName, MemberId, Offset, TransactionId, TransactionNumber};
use mq_common::limits::{LONG_POLL_MS_MAX, TRANSACTION_KEY_BYTES_MAX};
use mq_common::{Error, ErrorCode};
use rpc_core::Attachment;

use super::batches::check;
use super::{Services, unexpected};
use crate::core::Holder;
use crate::ids::{BatchAt, QueueKey};
use crate::log::{self, Want};
use crate::state::command::{SendHalf, checksum_of};
use crate::state::effects::Ended;
use crate::state::{self, Command, Outcome, Refusal, State};
use crate::volatile::POLL_TICK;

/// Questions in one response.
const CHECKS_MAX: u32 = 64;
/// A response that has this many bytes of batches takes no further question.
const CHECK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest delay of a first question.
const CHECK_AFTER_MS_MAX: u32 = 24 * 60 * 60 * 1000;

/// The service `hc.mq.Transaction`.
#[derive(Debug, Clone)]
pub struct Transaction(pub Arc<Services>);

impl api::Transaction for Transaction {
    async fn send_half(
        &self,
        request: SendHalfRequest,
        batches: Attachment,
    ) -> Result<SendHalfResponse, Error> {
        self.0.count(self.store_half(request, batches).await)
    }

    async fn end(&self, request: EndTransactionRequest) -> Result<EndTransactionResponse, Error> {
        self.0.count(self.decide(request).await)
    }

    async fn resume(&self, transaction: TransactionId) -> Result<ResumeTransactionResponse, Error> {
        self.0.count(self.take_up_again(transaction).await)
    }

    async fn poll_checks(
        &self,
        request: PollChecksRequest,
    ) -> Result<(PollChecksResponse, Attachment), Error> {
        self.0.count(self.poll(request).await)
    }

    async fn list(
        &self,
        page: PageRequest<TransactionNumber>,
    ) -> Result<Page<TransactionDescription, TransactionNumber>, Error> {
        let shard = self.0.shard.clone();
        self.visit(move |holder| {
            let state = holder.state();
            let behind = state.transactions_after(page.after);
            Page::cut(
                behind.map(|transaction| describe(&shard, state, transaction)),
                page.max,
                |described| described.transaction.number,
                |described| described.topics.len(),
            )
        })
        .await
    }
}

impl Transaction {
    async fn store_half(
        &self,
        request: SendHalfRequest,
        attached: Attachment,
    ) -> Result<SendHalfResponse, Error> {
        let services = &self.0;
        services.check_alive()?;
        services.check_room()?;
        if request
            .key
            .as_ref()
            .is_some_and(|key| key.len() > TRANSACTION_KEY_BYTES_MAX)
        {
            return Err(Error::new(
                ErrorCode::TooLarge,
                format!("a transaction key has at most {TRANSACTION_KEY_BYTES_MAX} bytes"),
            ));
        }
        let checked: Result<Vec<_>, Error> =
            check(services, &request.topics, attached)?.into_iter().collect();
        let checked = checked?;
        let half = SendHalf {
            producer_group: request.producer_group,
            key: request.key,
            check_after_ms: request
                .check_after_ms
                .unwrap_or(services.check_first_ms)
                .min(CHECK_AFTER_MS_MAX),
            checksum: request.digest.unwrap_or_else(|| {
                let batches = checked.iter();
                checksum_of(batches.map(|batch| (batch.batch.checksum(), batch.part.bytes)))
            }),
            parts: checked.iter().map(|batch| batch.part).collect(),
        };
        let batches: Vec<_> = checked.into_iter().map(|batch| batch.batch).collect();
        let counted = batches.iter().map(|batch| (batch.record_count(), batch.len()));
        let counted: Vec<_> = counted.collect();
        let command = log::Command::new(Command::SendHalf(half).encode(), batches).with_own_lsn();
        // Synced, whatever the minimum of its topics: after a power loss, the id of one that is not could be
        // given to another transaction, and this producer's decision with it.
        let answer = services.core.propose_one(command, Want::Synced).await;
        let (outcome, _, durability) = services.outcome(answer)?;
        let Outcome::Half { number, state } = outcome else {
            return Err(unexpected(&outcome));
        };
        for (records, bytes) in counted {
            services.count_produced(records, bytes);
        }
        Ok(SendHalfResponse {
            transaction: self.id(number),
            durability,
            state,
        })
    }

    async fn decide(&self, request: EndTransactionRequest) -> Result<EndTransactionResponse, Error> {
        let EndTransactionRequest {
            transaction,
            decision,
            answers,
        } = request;
        self.0.check_alive()?;
        let number = self.number(&transaction)?;
        if decision == Decision::Unknown {
            if let Some((group, member)) = answers {
                self.count_checks(&group, &member, &[number]).await?;
            }
            return self.standing(number).await;
        }
        let command = Command::EndTransaction { number, decision };
        let command = log::Command::new(command.encode(), Vec::new()).that_frees();
        let answer = self.0.core.propose_one(command, Want::Synced).await;
        let (outcome, lsn, durability) = self.0.outcome(answer)?;
        let Outcome::Ended(ended) = outcome else {
            return Err(unexpected(&outcome));
        };
        let receipt = ended
            .placed
            .first()
            .filter(|_| !ended.already)
            .map(|(_, base_offset)| Receipt {
                base_offset: *base_offset,
                lsn,
                durability,
            });
        Ok(self.ended(ended, receipt).await)
    }

    async fn take_up_again(&self, transaction: TransactionId) -> Result<ResumeTransactionResponse, Error> {
        self.0.check_alive()?;
        let number = self.number(&transaction)?;
        let command = Command::ResumeTransaction { number };
        let command = log::Command::new(command.encode(), Vec::new());
        let answer = self.0.core.propose_one(command, Want::Synced).await;
        match self.0.outcome(answer)? {
            (Outcome::Resumed { already }, ..) => Ok(ResumeTransactionResponse { already }),
            (outcome, ..) => Err(unexpected(&outcome)),
        }
    }

    async fn ended(&self, ended: Ended, receipt: Option<Receipt>) -> EndTransactionResponse {
        let Ended {
            state,
            already,
            placed,
            ..
        } = ended;
        let placed = if placed.is_empty() {
            Vec::new()
        } else {
            // It is decided: that the offsets can no longer be named must not look like a refusal.
            let named = self.visit(move |holder| named(holder.state(), &placed)).await;
            named.unwrap_or_default()
        };
        EndTransactionResponse {
            state,
            already,
            receipt,
            placed,
        }
    }

    /// The status of a transaction, for an answer that decides nothing.
    async fn standing(&self, number: TransactionNumber) -> Result<EndTransactionResponse, Error> {
        let standing = self
            .visit(move |holder| {
                let state = holder.state();
                if let Some(open) = state.transaction(number) {
                    return Ok((open.state(), Vec::new()));
                }
                let decided = state.decided(number).ok_or(Refusal::UnknownTransaction(number))?;
                let word = if decided.committed {
                    TransactionState::Committed
                } else {
                    TransactionState::RolledBack
                };
                Ok((word, named(state, &decided.placed)))
            })
            .await?;
        let (state, placed) = standing.map_err(|refusal: Refusal| self.0.refusal(&refusal))?;
        Ok(EndTransactionResponse {
            state,
            already: true,
            receipt: None,
            placed,
        })
    }

    /// Questions that their poller names: those it really has are counted, in one command without a sync.
    async fn count_checks(
        &self,
        group: &GroupName,
        member: &MemberId,
        numbers: &[TransactionNumber],
    ) -> Result<(), Error> {
        let numbers: Vec<TransactionNumber> = {
            let mut volatile = self.0.core.published().volatile();
            let crate::core::Volatile { checks, rng, .. } = &mut *volatile;
            let now = Instant::now();
            let named = |number: &&TransactionNumber| checks.named(now, group, member, **number, rng);
            numbers.iter().filter(named).copied().collect()
        };
        if numbers.is_empty() {
            return Ok(());
        }
        let command = log::Command::new(Command::CountChecks { numbers }.encode(), Vec::new());
        let answer = self.0.core.propose_one(command, Want::Flushed).await;
        self.0.outcome(answer).map(|_| ())
    }

    async fn poll(&self, request: PollChecksRequest) -> Result<(PollChecksResponse, Attachment), Error> {
        let services = &self.0;
        services.check_alive()?;
        let PollChecksRequest {
            producer_group,
            member,
            received,
            max,
            wait_ms,
        } = request;
        let received: Vec<TransactionNumber> = received
            .into_iter()
            .filter(|transaction| transaction.shard == services.shard)
            .map(|transaction| transaction.number)
            .collect();
        self.count_checks(&producer_group, &member, &received).await?;
        let deadline = Instant::now() + Duration::from_millis(u64::from(wait_ms.min(LONG_POLL_MS_MAX)));
        loop {
            let changed = services.core.published().checks_changed.notified();
            tokio::pin!(changed);
            // Joined before checking: a question that arrives in between wakes it.
            changed.as_mut().enable();
            let (checks, attachment) = self
                .take(&producer_group, &member, max.clamp(1, CHECKS_MAX))
                .await?;
            let now = Instant::now();
            if !checks.is_empty() || services.stopping.is_cancelled() || now >= deadline {
                return Ok((PollChecksResponse { checks }, attachment));
            }
            let due = services
                .core
                .published()
                .volatile()
                .checks
                .next_due(&producer_group);
            let until = due.unwrap_or(deadline).clamp(now, deadline).min(now + POLL_TICK);
            tokio::select! {
                () = changed => {}
                () = services.stopping.cancelled() => {}
                () = services.core.failed().cancelled() => services.check_alive()?,
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }

    /// The due questions with their messages, up to a number and about this many bytes.
    async fn take(
        &self,
        group: &GroupName,
        member: &MemberId,
        max: u32,
    ) -> Result<(Vec<Check>, Attachment), Error> {
        let mut checks = Vec::new();
        let mut attachment = Attachment::new();
        for _ in 0..max {
            if attachment.len() >= CHECK_BYTES_MAX {
                break;
            }
            let taken = self
                .0
                .core
                .published()
                .volatile()
                .checks
                .poll(Instant::now(), group, member, 1);
            let Some(number) = taken.first().copied() else {
                break;
            };
            match self.question(number).await {
                Ok(Some((check, batches))) => {
                    checks.push(check);
                    batches.into_iter().for_each(|batch| attachment.push(batch));
                }
                Ok(None) => {}
                // Questions taken before belong to this poller: no other producer is asked for a while.
                Err(_) if !checks.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok((checks, attachment))
    }

    /// `None` if it was decided a moment ago.
    async fn question(&self, number: TransactionNumber) -> Result<Option<(Check, Vec<Bytes>)>, Error> {
        let id = self.id(number);
        let found = self
            .visit(move |holder| {
                let state = holder.state();
                let open = state.transaction(number)?;
                let check = Check {
                    transaction: id,
                    key: open.key.clone(),
                    asked: open.asked,
                    topics: targets(state, open)?,
                };
                let batches = 0..open.half().batches;
                let batches = batches.map(|index| BatchAt {
                    lsn: open.first.lsn,
                    index: open.first.index + index,
                });
                Some((check, batches.collect::<Vec<_>>()))
            })
            .await?;
        let Some((check, places)) = found else {
            return Ok(None);
        };
        let store = Arc::clone(&self.0.core.published().store);
        let reading = self.0.tasks.spawn_blocking(move || {
            places
                .into_iter()
                .map(|at| store.half(at))
                .collect::<Result<Vec<_>, _>>()
        });
        let read = reading
            .await
            .map_err(|_| Error::new(ErrorCode::Internal, "reading failed; see the broker's log"))?;
        let halves = read.unwrap_or_else(|error| {
            // This question cannot be asked now; the others can.
            tracing::error!(transaction = %number, %error, "a half message cannot be read");
            vec![None]
        });
        let batches: Option<Vec<Bytes>> = halves.into_iter().map(|half| Some(half?.1)).collect();
        // Damaged, or decided meanwhile: no question is possible. If it is still open, the question comes
        // again.
        Ok(batches.map(|batches| (check, batches)))
    }

    async fn visit<R: Send + 'static>(
        &self,
        visit: impl FnOnce(&Holder) -> R + Send + 'static,
    ) -> Result<R, Error> {
        let visited = self.0.core.visit(move |holder, _| visit(holder)).await;
        visited.map_err(|refused| self.0.refused(&refused))
    }

    fn number(&self, transaction: &TransactionId) -> Result<TransactionNumber, Error> {
        if transaction.shard == self.0.shard {
            return Ok(transaction.number);
        }
        Err(Error::new(
            ErrorCode::UnknownTransaction,
            format!(
                "transaction `{transaction}` lives on shard `{}`, this is `{}`",
                transaction.shard, self.0.shard
            ),
        ))
    }

    fn id(&self, number: TransactionNumber) -> TransactionId {
        TransactionId {
            shard: self.0.shard.clone(),
            number,
        }
    }
}

fn named(state: &State, placed: &[(QueueKey, Offset)]) -> Vec<Placed> {
    let placed = placed.iter().filter_map(|(key, base_offset)| {
        let queue = state.queue(*key)?;
        Some(Placed {
            topic: queue.topic.as_ref().clone(),
            queue: queue.number,
            base_offset: *base_offset,
        })
    });
    placed.collect()
}

/// The queues of the batches, in their order. `None` when one of the topics is gone: then there is no
/// question, because a commit is no longer possible; the transaction remains until it is rolled back.
fn targets(state: &State, open: &state::Transaction) -> Option<Vec<TopicBatches>> {
    let mut topics: Vec<TopicBatches> = Vec::new();
    for part in &open.parts {
        let queue = state.queue(part.queue)?;
        match topics.last_mut() {
            Some(last) if last.topic == *queue.topic => last.batches.push((queue.number, part.bytes)),
            _ => topics.push(TopicBatches {
                topic: queue.topic.as_ref().clone(),
                batches: vec![(queue.number, part.bytes)],
                id: state.topic(&queue.topic).map(|topic| topic.declaration.id),
            }),
        }
    }
    Some(topics)
}

fn describe(
    shard: &mq_common::ids::ShardName,
    state: &State,
    transaction: &state::Transaction,
) -> TransactionDescription {
    let mut topics: Vec<_> = transaction
        .parts
        .iter()
        .filter_map(|part| Some(state.queue(part.queue)?.topic.as_ref().clone()))
        .collect();
    topics.sort();
    topics.dedup();
    TransactionDescription {
        transaction: TransactionId {
            shard: shard.clone(),
            number: transaction.number,
        },
        state: transaction.state(),
        producer_group: transaction.producer_group.clone(),
        key: transaction.key.clone(),
        since: transaction.since,
        asked: transaction.asked,
        messages: transaction.parts.iter().map(|part| u64::from(part.records)).sum(),
        topics,
    }
}
