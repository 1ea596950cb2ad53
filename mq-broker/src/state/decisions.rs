//! The memory of decisions: repeating one is harmless, contradicting it is an error. Pure.
//!
//! A decision is kept for 24 hours of entry time. If there are too many, the oldest are forgotten earlier,
//! but none younger than 10 minutes: new half messages are refused instead.

use std::collections::{BTreeMap, BTreeSet};

use mq_common::api::transaction::TransactionState;
use mq_common::ids::{GroupName, Lsn, Offset, Timestamp, TransactionNumber};

use super::Limits;
use crate::ids::QueueKey;

/// A decided transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Its number.
    pub number: TransactionNumber,
    /// Its position in the order of all decisions of this shard.
    pub order: u64,
    /// How it was decided.
    pub committed: bool,
    /// The entry that decided it.
    pub lsn: Lsn,
    /// That entry's time.
    pub time: Timestamp,
    /// The producer group that sent it.
    pub producer_group: GroupName,
    /// The application's key.
    pub key: Option<String>,
    /// Checksum of its messages.
    pub checksum: u64,
    /// Queue and base offset of each of its batches, in order; empty unless committed.
    pub placed: Vec<(QueueKey, Offset)>,
}

impl Decided {
    /// The transaction's state.
    #[must_use]
    pub const fn state(&self) -> TransactionState {
        if self.committed {
            TransactionState::Committed
        } else {
            TransactionState::RolledBack
        }
    }
}

/// Decisions by transaction, and in the order they were taken.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    pub(super) by_number: BTreeMap<TransactionNumber, Decided>,
    order: BTreeMap<u64, TransactionNumber>,
    pub(super) next_order: u64,
    dirty: BTreeSet<TransactionNumber>,
    gone: Vec<TransactionNumber>,
}

impl Decisions {
    pub(super) fn insert(&mut self, mut decided: Decided) {
        decided.order = self.next_order;
        self.next_order += 1;
        self.dirty.insert(decided.number);
        self.load(decided);
    }

    pub(super) fn load(&mut self, decided: Decided) {
        self.order.insert(decided.order, decided.number);
        self.by_number.insert(decided.number, decided);
    }

    /// Forgets what is too old, and what is too much and old enough. Answers with what was forgotten.
    pub(super) fn forget(&mut self, now: Timestamp, limits: &Limits) -> Vec<Decided> {
        let mut forgotten = Vec::new();
        while let Some((order, number)) = self.order.first_key_value() {
            let (order, number) = (*order, *number);
            let age_ms = self
                .by_number
                .get(&number)
                .map_or(u64::MAX, |decided| now.0.saturating_sub(decided.time.0));
            let too_many =
                self.by_number.len() > limits.decisions_max && age_ms >= limits.decision_age_ms_min;
            if age_ms < limits.decision_age_ms_max && !too_many {
                break;
            }
            self.order.remove(&order);
            if let Some(decided) = self.by_number.remove(&number) {
                if !self.dirty.remove(&number) {
                    self.gone.push(number);
                }
                forgotten.push(decided);
            }
        }
        forgotten
    }

    pub(super) fn take_dirty(&mut self) -> (Vec<Decided>, Vec<TransactionNumber>) {
        let mut rows: Vec<Decided> = std::mem::take(&mut self.dirty)
            .into_iter()
            .filter_map(|number| self.by_number.get(&number).cloned())
            .collect();
        rows.sort_unstable_by_key(|decided| decided.order);
        (rows, std::mem::take(&mut self.gone))
    }

    pub(super) fn rows(&self) -> Vec<Decided> {
        self.order
            .values()
            .filter_map(|number| self.by_number.get(number).cloned())
            .collect()
    }
}
