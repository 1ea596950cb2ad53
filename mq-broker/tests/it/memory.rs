//! A full load on a small budget of memory: producers of small and large messages, a compaction that cannot
//! rest, cold replays, consumers that ask for everything and read nothing, and senders that stop in the
//! middle of a large frame.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mq_common::api::FetchClient;
use mq_common::api::fetch::{FetchRequest, Want};
use mq_common::ids::{Durability, Offset, QueueNumber, TopicName};
use rpc_core::invoker::Invoker;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{BrokerProcess, Client, Options, is_busy, topic};

/// The budget unless `MEMORY_BUDGET_MIB` says another one, to which the load grows.
const BUDGET_MIB: u64 = 64;
/// What a broker is made of, what its allocator keeps, and what is small: SQLite, tasks, a round's buffers.
const BESIDE: u64 = 64 << 20;
const QUEUES: u32 = 4;
/// Producers, each of which sends to one queue.
const PRODUCERS: u32 = 8;
/// Of 60 kB, each; every 32nd is one of 4 MiB, but for the time when senders stop in large frames.
const SENDS: u32 = 160;
const LARGE_EVERY: u32 = 32;
/// Calls that bring 2,000 messages of 100 bytes each.
const SMALL_CALLS: u32 = 400;
/// Consumers that never read, and the fetches of each.
const STALLED: usize = 32;
const FETCHES: usize = 16;
/// Senders of half a frame.
const HALF_SENDERS: usize = 8;
const HALF_BYTES: usize = 4 << 20;

fn options(budget: u64) -> Options {
    Options::default()
        .variable("MQ__MEMORY__BUDGET_BYTES", budget.to_string())
        .variable("MQ__JOURNAL__SEGMENT_BYTES", (8_u64 << 20).to_string())
        .variable("MQ__JOURNAL__BUDGET_BYTES", (32_u64 << 20).to_string())
        .variable("MQ__JOURNAL__BYTES_MAX", (4_u64 << 30).to_string())
        // On many cores the allocator would keep a heap for each of many threads.
        .variable("TOKIO_WORKER_THREADS", "4")
        .variable("MALLOC_ARENA_MAX", "4")
}

/// Memory that is the broker's own: not what it has of its binary.
fn own_bytes(broker: &BrokerProcess) -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc").join(broker.id().to_string()).join("status"));
    let status = status.unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// Mebibytes of the budget, and how many times the usual one that is.
fn budget() -> (u64, u32) {
    let mib = std::env::var("MEMORY_BUDGET_MIB").map_or(BUDGET_MIB, |mib| mib.parse().unwrap());
    (mib << 20, u32::try_from(mib.div_ceil(BUDGET_MIB)).unwrap())
}

/// Sends all of one producer's messages, again while the broker is busy.
async fn produce(client: Client, name: TopicName, producer: u32, sends: u32, large: bool) {
    for send in 0..sends {
        let is_large = large && send % LARGE_EVERY == 0;
        let bytes = if is_large { 4 << 20 } else { 60_000 };
        let value = [format!("{producer} {send} ").into_bytes(), vec![b'x'; bytes - 64]].concat();
        loop {
            let floor = Some(Durability::Memory);
            match client.send(&name, producer % QUEUES, &[&value], floor).await {
                Ok(_) => break,
                Err(error) if is_busy(&error) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Reads what one queue has by then, starting with what was sent to it first.
async fn replay(client: Client, name: TopicName, queue: u32, sends: u32) {
    let (mut next, end) = (Offset(0), u64::from(PRODUCERS / QUEUES * sends));
    while next.0 < end {
        match client.fetch_once(&name, queue, next, Duration::ZERO).await {
            Ok((found, after, _)) => {
                assert_eq!(found.first().map(|message| message.offset), Some(next.0));
                next = after;
            }
            Err(error) if is_busy(&error) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Forwards everything from the invoker, and only this many bytes back; then it stops reading.
async fn stall_behind(broker: &str, back: u64) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let broker = broker.to_owned();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let (mut near_read, mut near_write) = near.into_split();
        let (far_read, mut far_write) = TcpStream::connect(broker).await.unwrap().into_split();
        let mut answers = far_read.take(back);
        let there = async {
            drop(tokio::io::copy(&mut near_read, &mut far_write).await);
        };
        let and_back = async {
            drop(tokio::io::copy(&mut answers, &mut near_write).await);
            std::future::pending::<()>().await;
        };
        tokio::join!(there, and_back);
    });
    (address, tasks)
}

/// Asks for everything many times, and reads nothing of it.
async fn stalled(broker: String, name: TopicName, number: usize) {
    // Enough for the broker's HELLO.
    let (address, _proxy) = stall_behind(&broker, 256).await;
    let invoker = Invoker::builder()
        .direct([address.as_str()])
        .timeout(Duration::from_secs(60));
    let fetch = FetchClient::refer(&invoker.build().await.unwrap());
    let fetches = (0..FETCHES).map(|turn| {
        let queue = u32::try_from((number + turn) % 4).unwrap();
        let request = FetchRequest {
            member: None,
            wants: vec![Want {
                topic: name.clone(),
                queue: QueueNumber(queue),
                offset: Offset(0),
                epoch: None,
            }],
            bytes_max: u32::MAX,
            wait_ms: 0,
        };
        fetch.fetch(request).future()
    });
    let mut all = JoinSet::new();
    fetches.for_each(|fetch| drop(all.spawn(fetch)));
    // The broker closes the connection at last.
    all.join_all().await;
}

/// Begins a frame of many bytes, and sends half of it.
async fn half_a_frame(broker: String) -> TcpStream {
    let mut socket = TcpStream::connect(broker).await.unwrap();
    let mut frame = vec![0x00, 0x10, 1, 0, 1];
    frame.extend_from_slice(&7_i64.to_be_bytes());
    frame.extend_from_slice(&7_u32.to_be_bytes());
    frame.extend_from_slice(b"msgpack");
    frame.extend_from_slice(&u32::try_from(2 * HALF_BYTES).unwrap().to_be_bytes());
    frame.resize(frame.len() + HALF_BYTES, 0x91);
    // What the broker does not read stays in the system's buffers, and the rest here.
    let write = socket.write_all(&frame);
    drop(tokio::time::timeout(Duration::from_secs(2), write).await);
    socket
}

/// The most memory that the broker has of its own until `stop`.
async fn watch(broker: Arc<BrokerProcess>, most: Arc<AtomicU64>, stop: CancellationToken) {
    let step = Duration::from_millis(10);
    while stop.run_until_cancelled(tokio::time::sleep(step)).await.is_some() {
        most.fetch_max(own_bytes(&broker), Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_to_its_budget_under_full_load_and_everybody_who_reads_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let (budget, times) = budget();
    let sends = SENDS * times;
    let data = folder.path().join("data");
    let broker = Arc::new(BrokerProcess::start_with(&data, &options(budget)));
    let client = Client::connect(&broker).await;
    let name = topic("orders");
    client
        .create_topic(&topic("many"), 10_000, Durability::Memory)
        .await;
    client.create_topic(&name, QUEUES, Durability::Memory).await;
    let (most, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
    let mut watching = JoinSet::new();
    watching.spawn(watch(Arc::clone(&broker), Arc::clone(&most), stop.clone()));

    let mut producing = JoinSet::new();
    for producer in 0..PRODUCERS {
        // A connection each.
        producing.spawn(produce(
            Client::connect(&broker).await,
            name.clone(),
            producer,
            sends,
            true,
        ));
    }
    producing.join_all().await;
    let mut hostile = JoinSet::new();
    for number in 0..STALLED * times as usize {
        hostile.spawn(stalled(broker.listen.clone(), name.clone(), number));
    }
    let mut halves = JoinSet::new();
    for _ in 0..HALF_SENDERS * times as usize {
        halves.spawn(half_a_frame(broker.listen.clone()));
    }
    let mut more = JoinSet::new();
    for producer in 0..PRODUCERS {
        more.spawn(produce(
            Client::connect(&broker).await,
            name.clone(),
            producer,
            sends,
            false,
        ));
    }
    let mut reading = JoinSet::new();
    for queue in 0..QUEUES {
        reading.spawn(replay(client.clone(), name.clone(), queue, sends));
    }
    reading.join_all().await;
    more.join_all().await;
    drop(halves);
    drop(hostile);
    stop.cancel();
    watching.join_all().await;
    let most = most.load(Ordering::Relaxed);
    eprintln!("at most {most} bytes with a budget of {budget}");
    assert!(most <= budget + BESIDE, "{most} bytes with a budget of {budget}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_to_its_budget_however_many_small_messages_a_segment_could_hold() {
    let folder = tempfile::tempdir().unwrap();
    let (budget, times) = budget();
    let options = Options::default()
        .variable("MQ__MEMORY__BUDGET_BYTES", budget.to_string())
        .variable("MQ__JOURNAL__SEGMENT_BYTES", (256_u64 << 20).to_string());
    let broker = Arc::new(BrokerProcess::start_with(&folder.path().join("data"), &options));
    let client = Client::connect(&broker).await;
    let name = topic("small");
    client.create_topic(&name, QUEUES, Durability::Memory).await;
    let (most, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
    let mut watching = JoinSet::new();
    watching.spawn(watch(Arc::clone(&broker), Arc::clone(&most), stop.clone()));
    for call in 0..SMALL_CALLS * times {
        // Each batch is a row of its own, as if it had been sent by itself.
        let send = || {
            client.send_each(
                &name,
                call % QUEUES,
                &[b'x'; 100],
                2_000,
                Some(Durability::Memory),
            )
        };
        while let Err(error) = send().await {
            assert!(is_busy(&error), "{error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    stop.cancel();
    watching.join_all().await;
    let most = most.load(Ordering::Relaxed);
    eprintln!("at most {most} bytes with a budget of {budget}");
    assert!(most <= budget + BESIDE, "{most} bytes with a budget of {budget}");
}
