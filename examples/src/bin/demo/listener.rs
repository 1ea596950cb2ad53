//! The listener of the transactions: decides each, records the decision, and answers when the broker asks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mq_client::{CheckedTransaction, Message, TransactionListener, async_trait};
use mq_common::api::transaction::Decision;
use mq_common::ids::TransactionId;

use crate::ledger::{Fate, Ledger};
use crate::publish::LINE;

/// Counts of what happened.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Committed at once.
    pub(crate) committed: AtomicUsize,
    /// Rolled back at once.
    pub(crate) rolled_back: AtomicUsize,
    /// Left to the check-back.
    pub(crate) left: AtomicUsize,
    /// Questions of the broker that were answered.
    pub(crate) asked: AtomicUsize,
}

/// The listener.
#[derive(Debug)]
pub(crate) struct Listener {
    /// The application's own data: which transactions it has run, and how they ended.
    decided: Mutex<HashMap<TransactionId, Decision>>,
    ledger: Arc<Ledger>,
    counts: Arc<Counts>,
}

impl Listener {
    /// A listener that has decided nothing yet.
    pub(crate) fn new(ledger: Arc<Ledger>, counts: Arc<Counts>) -> Self {
        Self {
            decided: Mutex::default(),
            ledger,
            counts,
        }
    }
}

#[async_trait]
impl TransactionListener for Listener {
    /// The section's number.
    type Argument = u32;

    async fn execute_local_transaction(
        &self,
        transaction: &TransactionId,
        messages: &[Message],
        section: &u32,
    ) -> Decision {
        // Of ten transactions six are committed, two rolled back, and two left to the check-back, one to each
        // end.
        let (decision, left) = match (section / 4) % 10 {
            0..6 => (Decision::Commit, false),
            6 | 7 => (Decision::Rollback, false),
            8 => (Decision::Commit, true),
            _ => (Decision::Rollback, true),
        };
        let fate = if decision == Decision::Commit {
            Fate::Committed
        } else {
            Fate::RolledBack
        };
        for line in messages.iter().filter_map(line_of) {
            self.ledger.settle(line, fate);
        }
        self.decided
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(transaction.clone(), decision);
        let count = match (left, decision) {
            (true, _) => &self.counts.left,
            (false, Decision::Commit) => &self.counts.committed,
            (false, _) => &self.counts.rolled_back,
        };
        count.fetch_add(1, Ordering::Relaxed);
        if left { Decision::Unknown } else { decision }
    }

    async fn check_local_transaction(&self, checked: &CheckedTransaction) -> Decision {
        self.counts.asked.fetch_add(1, Ordering::Relaxed);
        let decided = self.decided.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was never run here has changed nothing, so it is rolled back.
        decided
            .get(&checked.transaction)
            .copied()
            .unwrap_or(Decision::Rollback)
    }
}

fn line_of(message: &Message) -> Option<u32> {
    let (_, line) = message.properties.iter().find(|(name, _)| name == LINE)?;
    line.parse().ok()
}
