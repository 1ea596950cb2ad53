//! What the broker acknowledged and when, on the clock that the disk's log uses too.

use std::collections::{BTreeMap, BTreeSet};

use mq_common::ids::TransactionId;
use rustix::time::{ClockId, clock_gettime};

/// Now, as the disk's log says it: nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// A message that was acknowledged as fsynced.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) at: u64,
    pub(crate) topic: String,
    pub(crate) queue: u32,
    pub(crate) offset: u64,
    pub(crate) value: String,
}

/// A transaction whose half messages were acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    pub(crate) at: u64,
    pub(crate) id: TransactionId,
    /// What becomes visible with it.
    pub(crate) values: Vec<String>,
    /// When its end was asked for, and whether it is a commit.
    pub(crate) asked: Option<(u64, bool)>,
    /// When that was acknowledged, and where its messages went: queue and base offset.
    pub(crate) ended: Option<(u64, Vec<(u32, u64)>)>,
}

/// A topic that was made, and perhaps deleted.
#[derive(Debug, Clone)]
pub(crate) struct Topic {
    pub(crate) at: u64,
    pub(crate) deletion_asked: Option<u64>,
    pub(crate) deleted: Option<u64>,
}

/// Everything that happened.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// When the work began, with its topic acknowledged.
    pub(crate) begun: u64,
    pub(crate) messages: Vec<Message>,
    pub(crate) transactions: Vec<Transaction>,
    pub(crate) topics: BTreeMap<String, Topic>,
    /// Every value that was ever handed over, by topic.
    pub(crate) handed_over: BTreeMap<String, BTreeSet<String>>,
}
