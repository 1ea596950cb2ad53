//! Transactions: some are ended by who made them, others only when they are asked about.

use fastrand::Rng;
use mq_common::ErrorCode;
use mq_common::api::transaction::{
    Decision, EndTransactionRequest, EndTransactionResponse, PollChecksRequest, SendHalfRequest,
};
use mq_common::batch::Batch;
use mq_common::ids::{Durability, GroupName, MemberId, TransactionId};
use rpc_core::Attachment;

use super::ledger::{Known, Ledger, Transaction, now};
use super::load::{Answer, Load, expect};
use super::value::Made;
use crate::support::{batch, topic, topic_batches};

/// Those of one maker that stay open for a while.
const OPEN: usize = 8;

fn producers() -> GroupName {
    GroupName::new("producers").unwrap()
}

/// Makes transactions over a topic that keeps its messages and one that lets them go, and ends most of them.
pub(super) async fn make(load: Load, mut random: Rng) {
    let mut open = Vec::new();
    while load.goes_on() {
        let Some(made) = half(&load, &mut random).await else {
            return;
        };
        // One in four is left to the check-back.
        if let Some(made) = made
            && random.u8(..4) > 0
        {
            open.push(made);
        }
        if open.len() > OPEN {
            let number = open.swap_remove(random.usize(..open.len()));
            if !end(&load, number, None).await {
                return;
            }
        }
        load.pause(&mut random, 0..20).await;
    }
}

/// Stores the half messages of a transaction; outer `None` = the broker is gone, inner one = it has no room.
async fn half(load: &Load, random: &mut Rng) -> Option<Option<usize>> {
    let counts: [usize; 3] = [random.usize(1..4), random.usize(1..3), random.usize(0..2)];
    let (number, key, batches) = load.with(|ledger| enter(ledger, random, counts));
    let names = ["orders", "orders", "near"];
    let listed: Vec<(&str, u32, &Batch)> = batches
        .iter()
        .map(|(part, batch)| (names[*part], u32::try_from(*part % 2).unwrap(), batch))
        .collect();
    let mut topics = Vec::new();
    for name in ["orders", "near"] {
        let of = listed.iter().filter(|(topic, ..)| *topic == name);
        let of: Vec<(u32, &Batch)> = of.map(|(_, queue, batch)| (*queue, *batch)).collect();
        if !of.is_empty() {
            topics.push(topic_batches(&topic(name), &of));
        }
    }
    let request = SendHalfRequest {
        producer_group: producers(),
        key: Some(key),
        digest: None,
        topics,
        check_after_ms: Some(random.u32(20..400)),
    };
    let bytes: Vec<_> = batches.into_iter().map(|(_, batch)| batch.into_bytes()).collect();
    let call = load
        .client
        .transaction
        .send_half(request, Attachment::from(bytes));
    let answer = load.answer(call.into_future()).await;
    let (known, goes_on) = match answer {
        Answer::Done(sent) => (Known::There(now(), sent.transaction), Some(Some(number))),
        Answer::Refused(error) => {
            expect(&error, &[ErrorCode::Overloaded]);
            (Known::Nothing, Some(None))
        }
        Answer::NotSent => (Known::Nothing, None),
        Answer::Unknown => (Known::Unknown, None),
    };
    load.with(|ledger| ledger.transactions[number].id = known);
    goes_on
}

/// A transaction with so many messages in each part; its number, its key, and the batches of the parts there
/// are.
fn enter(ledger: &mut Ledger, random: &mut Rng, counts: [usize; 3]) -> (usize, String, Vec<(usize, Batch)>) {
    let number = ledger.transactions.len();
    let (mut parts, mut batches) = (Vec::new(), Vec::new());
    for (part, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
        let name = ["orders", "orders", "near"][part];
        let of = ledger.alive(name).expect("it is there all the time");
        let made = vec![Made::Plain(random.usize(10..3_000)); count];
        let queue = u32::try_from(part % 2).unwrap();
        let sent = ledger.send(of, queue, &made, Some(number));
        // Until its commit is asked for it must not be seen.
        let batch_of = ledger.sent.get_mut(&sent).expect("just entered");
        batch_of.asked = u64::MAX;
        batches.push((part, batch(&batch_of.values)));
        parts.push(sent);
    }
    let key = format!("key-{number}");
    ledger.transactions.push(Transaction {
        key: key.clone(),
        asked: now(),
        id: Known::Unknown,
        parts,
        commits: random.u8(..3) > 0,
        end: None,
    });
    (number, key, batches)
}

/// Ends it as it is to be ended; `false` = the broker is gone.
async fn end(load: &Load, number: usize, answers: Option<(GroupName, MemberId)>) -> bool {
    let asked = load.with(|ledger| {
        let transaction = &mut ledger.transactions[number];
        let id = transaction.id.there().cloned()?;
        let asked = now();
        if transaction.end.is_none() {
            transaction.end = Some((asked, None));
            for part in &transaction.parts {
                if let Some(sent) = ledger.sent.get_mut(part) {
                    sent.asked = asked;
                }
            }
        }
        Some((id, transaction.commits))
    });
    let Some((transaction, commits)) = asked else {
        return true;
    };
    let decision = if commits {
        Decision::Commit
    } else {
        Decision::Rollback
    };
    let request = EndTransactionRequest {
        transaction,
        decision,
        answers,
    };
    let call = load.client.transaction.end(request);
    match load.answer(call.into_future()).await {
        Answer::Done(ended) => load.with(|ledger| ended_as(ledger, number, &ended)),
        // Whoever is asked answers as its maker would have.
        Answer::Refused(error) => panic!("transaction {number} cannot be ended: {error}"),
        Answer::NotSent | Answer::Unknown => return false,
    }
    true
}

/// Enters where its messages went.
fn ended_as(ledger: &mut Ledger, number: usize, ended: &EndTransactionResponse) {
    let transaction = &mut ledger.transactions[number];
    let Some((_, answered)) = &mut transaction.end else {
        panic!("transaction {number} was not to be ended");
    };
    answered.get_or_insert_with(now);
    for part in transaction.parts.clone() {
        let Some(sent) = ledger.sent.get(&part) else {
            continue;
        };
        let name = ledger.topics[sent.topic].name.as_str();
        let is_it = |placed: &&mq_common::api::transaction::Placed| {
            placed.topic.as_str() == name && placed.queue.0 == sent.queue
        };
        let placed = ended.placed.iter().find(is_it).map(|placed| placed.base_offset.0);
        if let Some(offset) = placed
            && sent.placed.there().is_none()
        {
            ledger.acknowledge(part, offset, Durability::Fsynced);
        }
    }
}

/// Answers what the broker asks about transactions.
pub(super) async fn answer(load: Load) {
    let member = MemberId("who-knows".to_owned());
    let mut received: Vec<TransactionId> = Vec::new();
    while load.goes_on() {
        let asked_at = now();
        let request = PollChecksRequest {
            producer_group: producers(),
            member: member.clone(),
            received: std::mem::take(&mut received),
            max: 10,
            wait_ms: 50,
        };
        let call = load.client.transaction.poll_checks(request);
        let checks = match load.answer(call.into_future()).await {
            Answer::Done((response, _)) => response.checks,
            Answer::Refused(error) => panic!("nobody can be asked: {error}"),
            Answer::NotSent | Answer::Unknown => return,
        };
        for check in checks {
            let number = load.with(|ledger| {
                let is_it = |known: &Transaction| Some(&known.key) == check.key.as_ref();
                let number = ledger.transactions.iter().position(is_it);
                let number = number.unwrap_or_else(|| panic!("asked about what nobody made: {check:?}"));
                let transaction = &mut ledger.transactions[number];
                let decided = transaction.end.and_then(|(_, answered)| answered);
                assert!(
                    decided.is_none_or(|at| at > asked_at),
                    "asked about transaction {number}, which was decided"
                );
                if transaction.id == Known::Unknown {
                    transaction.id = Known::There(now(), check.transaction.clone());
                }
                number
            });
            // Every other time it does not know yet.
            if check.asked == 0 && number.is_multiple_of(2) {
                received.push(check.transaction);
            } else if !end(&load, number, Some((producers(), member.clone()))).await {
                return;
            }
        }
    }
}

/// Ends all that are open.
pub(crate) async fn end_all(load: &Load) {
    let open: Vec<usize> = load.with(|ledger| {
        let all = ledger.transactions.iter().enumerate();
        let open = all.filter(|(_, transaction)| transaction.end.is_none());
        open.map(|(number, _)| number).collect()
    });
    for number in open {
        assert!(end(load, number, None).await, "the broker is gone");
    }
}
