//! `mq produce --mode transaction`: the whole input becomes visible at once, or none of it.

use async_trait::async_trait;
use mq_client::producer::transaction::{HalfReceipt, TransactionError};
use mq_client::{
    CheckedTransaction, Client, Message, Outcome as SendOutcome, TransactionListener, TransactionProducer,
};
use mq_common::api::transaction::Decision;
use mq_common::ids::TransactionId;
use mq_common::limits::BATCH_BYTES_MAX;

use super::tally::{self, Tally};
use super::{Arguments, Chunks};
use crate::fail::{Failure, Outcome};
use crate::output::Output;

/// The producer group of `mq produce --mode transaction`.
const PRODUCER_GROUP: &str = "mq-produce";
/// The least that a message takes in addition to its key, tag and body.
const MESSAGE_BYTES_MIN: usize = 3;

/// A transaction producer needs a listener; this command decides at once and never has to be asked.
#[derive(Debug)]
struct Undecided;

#[async_trait]
impl TransactionListener for Undecided {
    type Argument = ();

    async fn execute_local_transaction(&self, _: &TransactionId, _: &[Message], (): &()) -> Decision {
        Decision::Unknown
    }

    async fn check_local_transaction(&self, _: &CheckedTransaction) -> Decision {
        Decision::Unknown
    }
}

/// Runs it.
pub(super) async fn run(
    arguments: &Arguments,
    client: &Client,
    chunks: &mut Chunks,
    tally: &mut Tally,
    output: &mut Output,
) -> Outcome {
    // An error of the input occurs before anything is stored, so there is nothing to roll back.
    let messages = read(arguments, chunks).await?;
    let count = messages.len() as u64;
    tally.sent(count);
    if messages.is_empty() {
        return Ok(());
    }
    let producer = client.transaction_producer(PRODUCER_GROUP, Undecided)?.build();
    let half = producer.send_half(&messages, None).await.map_err(|error| {
        tally.not_visible(count, error.outcome());
        Failure::new(tally::words(&error))
    })?;
    match producer.end(&half, Decision::Commit).await {
        Ok(receipt) => tally.committed(count, &receipt.receipts, output),
        Err(TransactionError::End { error, .. }) => {
            tally.not_visible(count, error.outcome());
            let transaction = &half.transaction;
            Err(Failure::new(match error.outcome() {
                SendOutcome::Definite => {
                    let then = roll_back(&producer, &half).await;
                    format!(
                        "transaction `{transaction}` was not committed: {}; {then}",
                        tally::words(&error)
                    )
                }
                SendOutcome::Unknown => format!(
                    "it is unknown whether transaction `{transaction}` was committed: {}; if `mq txn list` shows it, end it \
                     with `mq txn commit {transaction}` or `mq txn rollback {transaction}`",
                    crate::fail::sending(&error)
                ),
            }))
        }
        Err(error) => {
            tally.not_visible(count, SendOutcome::Unknown);
            Err(Failure::new(error.to_string()))
        }
    }
}

/// Reads the whole input, up to the limit of a transaction.
async fn read(arguments: &Arguments, chunks: &mut Chunks) -> Outcome<Vec<Message>> {
    let mut messages = Vec::new();
    let mut bytes = 0;
    while let Some(chunk) = chunks.recv().await {
        for line in chunk.map_err(Failure::new)? {
            let message = arguments.message(line);
            let own = [
                message.key.as_ref().map_or(0, |key| key.len()),
                message.payload.len(),
            ];
            bytes += own.iter().sum::<usize>() + MESSAGE_BYTES_MIN;
            if bytes > BATCH_BYTES_MAX {
                return Err(Failure::new(format!(
                    "the input exceeds the limit of a transaction, {BATCH_BYTES_MAX} bytes of messages; nothing was \
                     sent. Split it, or send it in another mode"
                )));
            }
            messages.push(message);
        }
    }
    Ok(messages)
}

/// Rolls back a transaction whose commit was refused: no producer of this group would answer the broker's
/// questions.
async fn roll_back(producer: &TransactionProducer<Undecided>, half: &HalfReceipt) -> String {
    match producer.end(half, Decision::Rollback).await {
        Ok(_) => "it was rolled back".to_owned(),
        Err(_) => format!("roll it back with `mq txn rollback {}`", half.transaction),
    }
}
