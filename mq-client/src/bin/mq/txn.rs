//! `mq txn list | commit | rollback | resume`.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use mq_client::Client;
use mq_common::api::transaction::{Decision, TransactionDescription, TransactionState};
use mq_common::ids::TransactionId;

use crate::fail::{Outcome, all_answered};
use crate::output::{Output, Record};

/// What to do with transactions.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the undecided transactions, including parked ones.
    #[command(after_help = "Examples:\n  mq txn list\n  mq --output json txn list")]
    List,
    /// Make the messages of a transaction visible.
    #[command(after_help = "Example:\n  mq txn commit broker-a:1764245392000017")]
    Commit {
        /// The transaction, as `mq txn list` shows it.
        id: TransactionId,
    },
    /// Drop the messages of a transaction.
    #[command(after_help = "Example:\n  mq txn rollback broker-a:1764245392000017")]
    Rollback {
        /// The transaction, as `mq txn list` shows it.
        id: TransactionId,
    },
    /// Resume a parked transaction: the broker asks its producers again, starting from the first question.
    #[command(after_help = "Example:\n  mq txn resume broker-a:1764245392000017")]
    Resume {
        /// The transaction, as `mq txn list` shows it.
        id: TransactionId,
    },
}

/// Runs it.
pub(crate) async fn run(command: Command, client: &Client, output: &mut Output) -> Outcome {
    match command {
        Command::List => {
            let transactions = client.admin().transactions().await?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let records: Vec<Record> = transactions
                .items
                .iter()
                .map(|one| row(one, now.as_secs_f64()))
                .collect();
            output.list(&records, "no undecided transactions")?;
            all_answered(&transactions.silent)?;
        }
        Command::Commit { id } => end(&id, Decision::Commit, client, output).await?,
        Command::Rollback { id } => end(&id, Decision::Rollback, client, output).await?,
        Command::Resume { id } => {
            let resumed = client.admin().resume_transaction(&id).await?;
            let record = Record::new()
                .with("transaction", id.to_string())
                .with("state", state(TransactionState::Open))
                .with("already", resumed.already);
            output.list(&[record], "")?;
        }
    }
    Ok(())
}

async fn end(id: &TransactionId, decision: Decision, client: &Client, output: &mut Output) -> Outcome {
    let ended = client.admin().end_transaction(id, decision).await?;
    let record = Record::new()
        .with("transaction", id.to_string())
        .with("state", state(ended.state))
        .with("already", ended.already);
    output.list(&[record], "")?;
    Ok(())
}

const fn state(state: TransactionState) -> &'static str {
    match state {
        TransactionState::Open => "open",
        TransactionState::Parked => "parked",
        TransactionState::Committed => "committed",
        TransactionState::RolledBack => "rolled_back",
    }
}

fn row(one: &TransactionDescription, now_s: f64) -> Record {
    let age_s = (now_s - one.since.0 as f64 / 1e3).max(0.0).round();
    Record::new()
        .with("transaction", one.transaction.to_string())
        .with("state", state(one.state))
        .with("producer_group", one.producer_group.as_str())
        .with("key", one.key.as_deref())
        .with("messages", one.messages)
        .with(
            "topics",
            one.topics.iter().map(ToString::to_string).collect::<Vec<_>>(),
        )
        .with("asked", one.asked)
        .with("since_ms", one.since.0)
        .with("age_s", age_s)
}
