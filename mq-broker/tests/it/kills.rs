//! kill -9 at random moments under load: nothing acknowledged is lost, nothing is reordered, nothing is
//! invented.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mq_common::ids::{Durability, TopicName};
use tokio::task::JoinSet;

use crate::support::{BrokerProcess, Client, Options, eventually, topic};

const QUEUES: u32 = 4;
/// The senders of one queue: several, so that commands of one queue share groups.
const SENDERS_PER_QUEUE: u32 = 2;
/// Messages of 20 KB that fill several segments of 1 MiB, and exceed a journal's budget of 2 MiB.
const SEVERAL_SEGMENTS: usize = 300;

/// How many kills: this many, or the number in `KILLS`.
pub(crate) fn kills(usually: u32) -> u32 {
    std::env::var("KILLS").map_or(usually, |kills| kills.parse().unwrap())
}

/// What became of one message: `offset` is known when it was acknowledged.
#[derive(Debug)]
struct Sent {
    value: String,
    offset: Option<u64>,
}

/// Sends one message after the other until the broker is gone; answers what was sent, in order.
async fn send_until_gone(client: Client, topic: TopicName, queue: u32, name: String) -> Vec<Sent> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut sent = Vec::new();
    loop {
        let value = format!("{name}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let receipt = client.send(&topic, queue, &[&value], None).await;
        let gone = receipt.is_err();
        sent.push(Sent {
            value,
            offset: receipt.ok().map(|receipt| receipt.base_offset.0),
        });
        if gone {
            return sent;
        }
    }
}

/// Loads the broker, kills it after a while; answers what each sender sent, with its queue.
async fn load_and_kill(data: &Path, topic: &TopicName, life: Duration, name: &str) -> Vec<(u32, Vec<Sent>)> {
    let broker = BrokerProcess::start(data);
    let client = Client::connect(&broker).await;
    let mut senders = JoinSet::new();
    for sender in 0..QUEUES * SENDERS_PER_QUEUE {
        let queue = sender % QUEUES;
        let sending = send_until_gone(client.clone(), topic.clone(), queue, format!("{name}-{sender}"));
        senders.spawn(async move { (queue, sending.await) });
    }
    tokio::time::sleep(life).await;
    broker.kill();
    let sent = senders.join_all().await;
    client.invoker.shutdown().await;
    sent
}

/// Everything sent so far, and what of it must be there.
#[derive(Debug, Default)]
struct Books {
    /// For each queue, acknowledged values with their offsets, in order of acknowledgement of each sender.
    acknowledged: Vec<Vec<(u64, String)>>,
    /// For each queue, every value ever handed over.
    handed_over: Vec<HashSet<String>>,
}

impl Books {
    fn enter(&mut self, sent: Vec<(u32, Vec<Sent>)>) -> usize {
        let mut acknowledged = 0;
        for (queue, sent) in sent {
            let queue = queue as usize;
            let mut last = None;
            for Sent { value, offset } in sent {
                self.handed_over[queue].insert(value.clone());
                let Some(offset) = offset else { continue };
                assert!(
                    last.is_none_or(|last| last < offset),
                    "a sender's own messages are out of order"
                );
                last = Some(offset);
                acknowledged += 1;
                self.acknowledged[queue].push((offset, value));
            }
        }
        acknowledged
    }

    /// Compares the books with what the broker serves.
    async fn audit(&self, client: &Client, topic: &TopicName) -> usize {
        let mut total = 0;
        for queue in 0..QUEUES {
            let read = client.read(topic, queue, 0).await;
            total += read.len();
            let queue = queue as usize;
            for (expected, message) in (0..).zip(&read) {
                assert_eq!(message.offset, expected, "offsets of queue {queue} are not dense");
            }
            let mut seen = HashSet::new();
            for message in &read {
                assert!(
                    self.handed_over[queue].contains(&message.value),
                    "invented: {message:?}"
                );
                assert!(seen.insert(&message.value), "twice: {message:?}");
            }
            for (offset, value) in &self.acknowledged[queue] {
                let there = read.get(usize::try_from(*offset).unwrap());
                let there = there.unwrap_or_else(|| panic!("lost: {value} at {offset} of queue {queue}"));
                assert_eq!(
                    there.value, *value,
                    "another message at the offset of the receipt"
                );
            }
        }
        total
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the seed of a failed run, and what a good one did"
)]
async fn kill_again_and_again(durability: Durability, kills: u32) {
    let seed = fastrand::u64(..);
    eprintln!("kills: {kills}, durability: {durability}, seed: {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let topic = topic("orders");
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    client.create_topic(&topic, QUEUES, durability).await;
    broker.kill();
    let mut books = Books {
        acknowledged: vec![Vec::new(); QUEUES as usize],
        handed_over: vec![HashSet::new(); QUEUES as usize],
    };
    let (started, mut acknowledged) = (Instant::now(), 0);
    let enough = usize::try_from(kills).unwrap();
    // On a busy machine little may be acknowledged in such short lives: then there are more of them.
    let more = |round, acknowledged| round < kills || (acknowledged <= enough && round < 20 * kills);
    let mut round = 0;
    while more(round, acknowledged) {
        // Some die while they still start their work, some deep in it.
        let life = Duration::from_micros(random.u64(1_000..120_000));
        acknowledged += books.enter(load_and_kill(&data, &topic, life, &format!("r{round}")).await);
        if round % 10 == 9 {
            let broker = BrokerProcess::start(&data);
            let client = Client::connect(&broker).await;
            books.audit(&client, &topic).await;
            broker.kill();
        }
        round += 1;
    }
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    let served = books.audit(&client, &topic).await;
    eprintln!(
        "{acknowledged} acknowledged, {served} served, {:?}",
        started.elapsed()
    );
    assert!(acknowledged > enough, "the load was no load");
    assert!(broker.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_lose_reorder_and_invent_nothing() {
    kill_again_and_again(Durability::Fsynced, kills(50)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_floor_survives_kills_too() {
    kill_again_and_again(Durability::Memory, kills(10)).await;
}

/// Checkpoints every 50 ms and small segments: kills hit checkpoints, sealing and the first entries of
/// segments.
#[tokio::test(flavor = "multi_thread")]
async fn kills_among_checkpoints_and_new_segments() {
    kill_while_segments_fill(&small_segments(), 10, |_| true).await;
}

/// Hardly any journal is kept: kills hit rounds of compaction, and what they leave behind.
#[tokio::test(flavor = "multi_thread")]
async fn s18_kills_among_rounds_of_compaction() {
    let options = small_segments()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
        .variable("MQ__JOURNAL__BUDGET_BYTES", "2097152")
        .variable("MQ__JOURNAL__BYTES_MAX", "1000000000")
        .variable("MQ__STORE__COMPACTION_DISK_PERCENT", "100");
    kill_while_segments_fill(&options, 15, |data| {
        let topics = std::fs::read_dir(data.join("queues"));
        let topic = topics.into_iter().flatten().next();
        let files = topic.and_then(|topic| std::fs::read_dir(topic.ok()?.path().join("0")).ok());
        files.is_some_and(|files| files.count() >= 2)
    })
    .await;
}

fn small_segments() -> Options {
    Options::default()
        .variable("MQ__CHECKPOINT__EVERY_MS", "50")
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576")
}

#[expect(
    clippy::print_stderr,
    reason = "the seed of a failed run, and what a good one did"
)]
async fn kill_while_segments_fill(options: &Options, rounds: u32, are_moved: impl Fn(&Path) -> bool) {
    let seed = fastrand::u64(..);
    eprintln!("seed: {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let topic = topic("orders");
    let broker = BrokerProcess::start_with(&data, options);
    let client = Client::connect(&broker).await;
    client.create_topic(&topic, 1, Durability::Memory).await;
    drop(broker);
    let filler = Arc::new("x".repeat(20_000));
    let mut acknowledged: Vec<(u64, String)> = Vec::new();
    let mut round = 0;
    while round < rounds || (acknowledged.len() < SEVERAL_SEGMENTS && round < 20 * rounds) {
        let broker = BrokerProcess::start_with(&data, options);
        let client = Client::connect(&broker).await;
        let (topic, filler) = (topic.clone(), Arc::clone(&filler));
        let mut sending = JoinSet::new();
        sending.spawn(async move {
            let mut sent = Vec::new();
            for number in 0.. {
                let value = format!("{round}-{number}-{filler}");
                let Ok(receipt) = client.send(&topic, 0, &[&value], None).await else {
                    break;
                };
                sent.push((receipt.base_offset.0, value));
            }
            sent
        });
        tokio::time::sleep(Duration::from_millis(random.u64(50..400))).await;
        broker.kill();
        acknowledged.extend(sending.join_next().await.unwrap().unwrap());
        round += 1;
    }
    let broker = BrokerProcess::start_with(&data, options);
    let client = Client::connect(&broker).await;
    let read = client.read(&topic, 0, 0).await;
    eprintln!("{} acknowledged, {} served", acknowledged.len(), read.len());
    assert!(read.len() >= SEVERAL_SEGMENTS, "not enough for several segments");
    for (offset, value) in &acknowledged {
        assert_eq!(read[usize::try_from(*offset).unwrap()].value, *value);
    }
    for (offset, message) in (0..).zip(&read) {
        assert_eq!(message.offset, offset, "offsets are dense");
    }
    eventually("messages are moved into queue files", async || are_moved(&data)).await;
}
