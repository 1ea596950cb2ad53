//! kill -9 at random moments, again and again, under the real client's load: senders with batches queued
//! behind one another in every queue, transactions over all queues, and a consumer. Nothing acknowledged is
//! lost or changed, no sender's messages are reordered within a queue, nothing is invented, and a transaction
//! is there as a whole or not.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mq_client::producer::transaction::TransactionError;
use mq_client::{
    CheckedTransaction, Client, Consumer, Delivery, Message, NewTopic, Outcome, SendError, SendReceipt,
    TransactionListener, async_trait,
};
use mq_common::api::transaction::Decision;
use mq_common::ids::{QueueNumber, TransactionId};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::Broker;

const KILLS: usize = 20;
const QUEUES: u32 = 4;
const SENDERS: usize = 2;
/// Messages of one sender without an outcome at a time; with [`BATCH_RECORDS`] that is several batches for
/// each queue.
const IN_FLIGHT: usize = 64;
const BATCH_RECORDS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// Offset by queue.
type Place = (u32, u64);

/// What became of what was sent, and what was delivered.
#[derive(Default)]
struct Books {
    outcomes: Mutex<BTreeMap<String, Result<SendReceipt, SendError>>>,
    /// Payloads of each transaction with how it ended: `true` = committed, `None` = not known.
    transactions: Mutex<Vec<(Vec<String>, Option<bool>)>>,
    delivered: Mutex<BTreeMap<Place, String>>,
}

impl Books {
    fn acked(&self) -> BTreeMap<Place, String> {
        let outcomes = self.outcomes.lock().unwrap();
        let acked = outcomes.iter().filter_map(|(payload, outcome)| {
            let receipt = outcome.as_ref().ok()?;
            Some(((receipt.queue.0, receipt.base_offset.0), payload.clone()))
        });
        acked.collect()
    }

    /// How many have an outcome, and how many of them no receipt.
    fn counts(&self) -> (usize, usize) {
        let outcomes = self.outcomes.lock().unwrap();
        let failed = outcomes.values().filter(|outcome| outcome.is_err());
        (outcomes.len(), failed.count())
    }

    fn missing(&self) -> usize {
        let delivered = self.delivered.lock().unwrap();
        self.acked()
            .iter()
            .filter(|(place, _)| !delivered.contains_key(place))
            .count()
    }

    /// Everything that was delivered agrees with everything that was said.
    fn audit(&self) {
        let acked = self.acked();
        let delivered = self.delivered.lock().unwrap();
        let outcomes = self.outcomes.lock().unwrap();
        for (place, payload) in acked {
            assert_eq!(delivered.get(&place), Some(&payload), "at {place:?}");
        }
        let mut seen = BTreeSet::new();
        let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
        let mut last: BTreeMap<(u32, &str), u64> = BTreeMap::new();
        for ((queue, offset), payload) in delivered.iter() {
            let end = ends.entry(*queue).or_default();
            assert_eq!(offset, end, "a gap in queue {queue}");
            *end += 1;
            assert!(seen.insert(payload.as_str()), "`{payload}` is there twice");
            let Some((sender, number)) = payload.split_once('-') else {
                continue;
            };
            let number: u64 = number.parse().unwrap();
            assert_eq!(
                number % u64::from(QUEUES),
                u64::from(*queue),
                "`{payload}` was moved"
            );
            let before = last.insert((*queue, sender), number);
            assert!(
                before < Some(number),
                "`{payload}` stands behind {before:?} of {sender}"
            );
            let outcome = outcomes.get(payload);
            let outcome = outcome.unwrap_or_else(|| panic!("`{payload}` was never sent"));
            if let Err(error) = outcome {
                assert_eq!(error.outcome(), Outcome::Unknown, "`{payload}`: {error}");
            }
        }
        for (payloads, committed) in self.transactions.lock().unwrap().iter() {
            let there = payloads.iter().filter(|payload| seen.contains(payload.as_str()));
            let there = there.count();
            match committed {
                Some(true) => assert_eq!(there, payloads.len(), "{payloads:?}"),
                Some(false) => assert_eq!(there, 0, "{payloads:?}"),
                None => assert!(
                    there == 0 || there == payloads.len(),
                    "{payloads:?}: {there} are there"
                ),
            }
        }
    }
}

/// Sends numbered messages, each to the queue of its number, until it is stopped.
async fn send(client: Client, books: Arc<Books>, sender: usize, stop: Arc<AtomicBool>) {
    let producer = client.producer().batch_records(BATCH_RECORDS).build();
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    for number in 0_u32.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        let payload = format!("s{sender}-{number}");
        let message = Message::new("t", payload.clone()).unwrap();
        let message = message.queue(QueueNumber(number % QUEUES));
        let books = Arc::clone(&books);
        let note = move |outcome| {
            books.outcomes.lock().unwrap().insert(payload, outcome);
            drop(place);
        };
        producer.send_callback(message, note).await.unwrap();
    }
    // Every outcome has come.
    let all = u32::try_from(IN_FLIGHT).unwrap();
    drop(places.acquire_many(all).await.unwrap());
}

/// Commits and rolls back in turn, and says the same when it is asked.
struct InTurn;

fn decision(messages: &[Message]) -> Decision {
    let first = String::from_utf8_lossy(&messages[0].payload).into_owned();
    let number = first.trim_start_matches("tx").split('.').next().unwrap();
    match number.parse::<u32>().unwrap() % 2 {
        0 => Decision::Commit,
        _ => Decision::Rollback,
    }
}

#[async_trait]
impl TransactionListener for InTurn {
    type Argument = ();

    async fn execute_local_transaction(&self, _: &TransactionId, messages: &[Message], (): &()) -> Decision {
        decision(messages)
    }

    async fn check_local_transaction(&self, checked: &CheckedTransaction) -> Decision {
        decision(&checked.messages)
    }
}

async fn transact(client: Client, books: Arc<Books>, stop: Arc<AtomicBool>) {
    let producer = client.transaction_producer("shop", InTurn).unwrap();
    let producer = producer.timeout(Duration::from_secs(2)).build();
    for number in 0_u32.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let payloads: Vec<String> = (0..QUEUES).map(|queue| format!("tx{number}.{queue}")).collect();
        let messages = payloads.iter().zip(0..).map(|(payload, queue)| {
            let message = Message::new("t", payload.clone()).unwrap();
            message.queue(QueueNumber(queue))
        });
        let ended = producer
            .send_messages_in_transaction(messages.collect(), &())
            .await;
        let committed = match &ended {
            Ok(receipt) => Some(receipt.decision == Decision::Commit),
            Err(TransactionError::Half(error)) if error.outcome() == Outcome::Definite => Some(false),
            // It will be asked about, or was ended by an attempt whose answer was lost.
            Err(_) => None,
        };
        if let Ok(receipt) = ended {
            let mut outcomes = books.outcomes.lock().unwrap();
            let receipts = payloads.iter().cloned().zip(receipt.receipts.into_iter().map(Ok));
            outcomes.extend(receipts);
        }
        books.transactions.lock().unwrap().push((payloads, committed));
    }
}

async fn consume(client: &Client, books: &Arc<Books>) -> Consumer {
    let books = Arc::clone(books);
    let note = move |delivery: Delivery| {
        let place = (delivery.queue.0, delivery.offset.0);
        let payload = String::from_utf8(delivery.payload.to_vec()).unwrap();
        let mut delivered = books.delivered.lock().unwrap();
        let before = delivered.insert(place, payload.clone());
        assert!(
            before.as_ref().is_none_or(|before| *before == payload),
            "{place:?} was `{before:?}` and is `{payload}`"
        );
        std::future::ready(Ok::<(), Infallible>(()))
    };
    client.consumer("t", "g").unwrap().run(note).await.unwrap()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_under_load_lose_reorder_and_invent_nothing() {
    let seed = fastrand::u64(..);
    eprintln!("seed: {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut broker = Broker::start();
    let client = Client::builder().brokers([&broker.listen]).build().await.unwrap();
    client
        .admin()
        .create_topic(NewTopic::new("t").queues(QUEUES))
        .await
        .unwrap();
    let books = Arc::<Books>::default();
    let consumer = consume(&client, &books).await;
    let stop = Arc::<AtomicBool>::default();
    let mut load = JoinSet::new();
    for sender in 0..SENDERS {
        load.spawn(send(
            client.clone(),
            Arc::clone(&books),
            sender,
            Arc::clone(&stop),
        ));
    }
    load.spawn(transact(client.clone(), Arc::clone(&books), Arc::clone(&stop)));
    for _ in 0..KILLS {
        let before = books.acked().len();
        until("messages are acknowledged", || books.acked().len() > before + 50).await;
        // The moment of the kill is chance.
        tokio::time::sleep(Duration::from_micros(random.u64(..50_000))).await;
        broker.restart();
    }
    stop.store(true, Ordering::Relaxed);
    load.join_all().await;
    until("all that was acknowledged is delivered", || books.missing() == 0).await;
    consumer.stop().await.unwrap();
    books.audit();
    let (sent, unknown) = books.counts();
    eprintln!("{sent} messages, {unknown} without a receipt");
    assert!(unknown > 0, "no kill hit a send");
    client.shutdown().await;
}
