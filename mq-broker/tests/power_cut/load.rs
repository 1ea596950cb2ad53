//! Work of every kind at once: producers, transactions, topics that come and go with their messages.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mq_common::api::admin::DeleteTopicRequest;
use mq_common::api::transaction::{Decision, EndTransactionRequest, SendHalfRequest};
use mq_common::ids::{Durability, GroupName};
use rpc_core::Attachment;
use tokio::task::JoinSet;

use crate::ledger::{Ledger, Message, Topic, Transaction, now};
use crate::support::{Client, batch, topic, topic_batches};

/// The topic that is there all the time.
pub(crate) const ORDERS: &str = "orders";
pub(crate) const QUEUES: u32 = 4;
const PRODUCERS: u32 = 8;

type Shared = Arc<Mutex<Ledger>>;

/// Works for so long; what was acknowledged.
pub(crate) async fn work(client: &Client, time: Duration) -> Ledger {
    let until = Instant::now() + time;
    client
        .create_topic(&topic(ORDERS), QUEUES, Durability::Fsynced)
        .await;
    let ledger: Shared = Arc::default();
    ledger.lock().unwrap().begun = now();
    let mut tasks = JoinSet::new();
    for producer in 0..PRODUCERS {
        tasks.spawn(produce(client.clone(), Arc::clone(&ledger), producer, until));
    }
    tasks.spawn(transactions(client.clone(), Arc::clone(&ledger), until));
    tasks.spawn(topics(client.clone(), Arc::clone(&ledger), until));
    tasks.join_all().await;
    Arc::into_inner(ledger)
        .expect("all tasks ended")
        .into_inner()
        .unwrap()
}

/// Sends one message and enters it.
async fn send(client: &Client, ledger: &Shared, name: &str, queue: u32, value: String) {
    let hand_over = |ledger: &mut Ledger| {
        let values = ledger.handed_over.entry(name.to_owned()).or_default();
        assert!(values.insert(value.clone()), "each value once");
    };
    hand_over(&mut ledger.lock().unwrap());
    let receipt = client.send(&topic(name), queue, &[&value], None).await.unwrap();
    assert_eq!(receipt.durability, Durability::Fsynced);
    let message = Message {
        at: now(),
        topic: name.to_owned(),
        queue,
        offset: receipt.base_offset.0,
        value,
    };
    ledger.lock().unwrap().messages.push(message);
}

async fn produce(client: Client, ledger: Shared, producer: u32, until: Instant) {
    let mut number = 0;
    while Instant::now() < until {
        let bytes = if number % 10 == 0 {
            fastrand::usize(..20_000)
        } else {
            100
        };
        let value = format!("{producer}-{number}-{}", "x".repeat(bytes));
        send(&client, &ledger, ORDERS, producer % QUEUES, value).await;
        number += 1;
    }
}

async fn transactions(client: Client, ledger: Shared, until: Instant) {
    let mut open = Vec::new();
    let mut number = 0;
    while Instant::now() < until {
        open.push(half(&client, &ledger, number).await);
        number += 1;
        // Some stay open for a while, over checkpoints and segments.
        if open.len() > 20 {
            let which = open.swap_remove(fastrand::usize(..open.len()));
            end(&client, &ledger, which).await;
        }
    }
}

/// Stores two half messages; where they stand in the ledger.
async fn half(client: &Client, ledger: &Shared, number: u64) -> usize {
    let values = vec![format!("t-{number}-a"), format!("t-{number}-b")];
    let hand_over = |ledger: &mut Ledger| {
        let all = ledger.handed_over.entry(ORDERS.to_owned()).or_default();
        all.extend(values.iter().cloned());
    };
    hand_over(&mut ledger.lock().unwrap());
    let (a, b) = (batch(&values[..1]), batch(&values[1..]));
    let request = SendHalfRequest {
        producer_group: GroupName::new("producers").unwrap(),
        key: None,
        digest: None,
        topics: vec![topic_batches(&topic(ORDERS), &[(0, &a), (1, &b)])],
        check_after_ms: None,
    };
    let attachment = Attachment::from(vec![a.into_bytes(), b.into_bytes()]);
    let sent = client.transaction.send_half(request, attachment).await.unwrap();
    let entered = Transaction {
        at: now(),
        id: sent.transaction,
        values,
        asked: None,
        ended: None,
    };
    let mut ledger = ledger.lock().unwrap();
    ledger.transactions.push(entered);
    ledger.transactions.len() - 1
}

async fn end(client: &Client, ledger: &Shared, which: usize) {
    let commit = fastrand::u8(..3) > 0;
    let ask = |ledger: &mut Ledger| {
        let transaction = &mut ledger.transactions[which];
        transaction.asked = Some((now(), commit));
        transaction.id.clone()
    };
    let transaction = ask(&mut ledger.lock().unwrap());
    let decision = if commit {
        Decision::Commit
    } else {
        Decision::Rollback
    };
    let request = EndTransactionRequest {
        transaction,
        decision,
        answers: None,
    };
    let ended = client.transaction.end(request).await.unwrap();
    let placed = ended
        .placed
        .iter()
        .map(|placed| (placed.queue.0, placed.base_offset.0));
    let ended = (now(), placed.collect());
    ledger.lock().unwrap().transactions[which].ended = Some(ended);
}

/// Makes topics, fills them, and deletes each a while later.
async fn topics(client: Client, ledger: Shared, until: Instant) {
    let mut alive: Vec<String> = Vec::new();
    let mut number = 0;
    while Instant::now() < until {
        let name = format!("topic-{number}");
        client.create_topic(&topic(&name), 1, Durability::Fsynced).await;
        let made = Topic {
            at: now(),
            deletion_asked: None,
            deleted: None,
        };
        ledger.lock().unwrap().topics.insert(name.clone(), made);
        for message in 0..30 {
            let value = format!("{message}-{}", "y".repeat(20_000));
            send(&client, &ledger, &name, 0, value).await;
        }
        alive.push(name);
        number += 1;
        if alive.len() > 2 {
            let name = alive.remove(0);
            let change = |with: &dyn Fn(&mut Topic)| {
                with(ledger.lock().unwrap().topics.get_mut(&name).unwrap());
            };
            change(&|topic| topic.deletion_asked = Some(now()));
            let request = DeleteTopicRequest {
                name: topic(&name),
                identity: None,
                drop_transactions: false,
            };
            client.admin.delete_topic(request).await.unwrap();
            change(&|topic| topic.deleted = Some(now()));
        }
    }
}
