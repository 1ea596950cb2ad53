//! A million frames of nonsense at the port: no end of the process, no growth of its memory, and a good client is
//! served all the while.

use std::time::{Duration, Instant};

use mq_common::ids::Durability;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{BrokerProcess, Client, Options, is_busy, topic, values};

const FRAMES: usize = 1_000_000;
const ATTACKERS: usize = 4;
/// Frames of one connection; the last one is such that the broker ends it.
const FRAMES_PER_CONNECTION: usize = 1_000;
/// More than this above where it began is a leak or an allocation on a stranger's word. What is allowed: four
/// connections with a thousand requests each on their way, a few hundred bytes a request, the read buffers that
/// they pin, and what the allocator keeps of it. 22 and 24 MB were measured (2026-11-27, two whole runs of a
/// debug build on a busy machine).
const GROWTH_MAX: u64 = 64 << 20;

fn bytes(random: &mut fastrand::Rng, max: usize) -> Vec<u8> {
    let count = random.usize(..max);
    std::iter::repeat_with(|| random.u8(..)).take(count).collect()
}

/// A frame that is a request, with nonsense in it: the connection lives on.
fn push_request(out: &mut Vec<u8>, random: &mut fastrand::Rng) {
    let status = *random.choice(&[1_u8, 1, 1, 3, 5, 9]).unwrap();
    push_frame(out, random, 0x0010, 0, status);
}

/// A frame of any kind, with which the connection ends as a rule.
fn push_nonsense(out: &mut Vec<u8>, random: &mut fastrand::Rng) {
    let magic = *random.choice(&[0x0010_u16, 0x0010, 0x0010, 0xdead]).unwrap();
    let kind = *random.choice(&[0_u8, 1, 2, 16, 17, 18, 99]).unwrap();
    let status = random.u8(..);
    push_frame(out, random, magic, kind, status);
    if random.u8(..32) == 0 {
        // Promises bytes that never come.
        let promised = out.len().saturating_sub(4);
        out.truncate(promised);
        out.extend_from_slice(&random.u32(..).to_be_bytes());
    }
}

fn push_frame(out: &mut Vec<u8>, random: &mut fastrand::Rng, magic: u16, kind: u8, status: u8) {
    out.extend_from_slice(&magic.to_be_bytes());
    out.extend_from_slice(&[1, kind, status]);
    out.extend_from_slice(&random.i64(0..1_000_000).to_be_bytes());
    let names: [&[u8]; 5] = [b"msgpack", b"msgpack", b"msgpack", b"json", b"raw"];
    push_long(out, random.choice(&names).unwrap());
    let body = match random.u8(..5) {
        0 => bytes(random, 64),
        1 => vec![0x91; random.usize(..200)],
        2 => b"{\"clazzName\":[[[[[[[[[[".to_vec(),
        3 => [&0xffff_ffff_u32.to_be_bytes()[..], &bytes(random, 64)].concat(),
        _ => produce(random),
    };
    push_long(out, &body);
}

fn push_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend_from_slice(bytes);
}

/// The envelope of a real method, with nonsense for parameters.
fn produce(random: &mut fastrand::Rng) -> Vec<u8> {
    let text = |text: &str| [&[0xa0 | u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
    let (service, method) = *random
        .choice(&[
            ("hc.mq.Produce", "produce"),
            ("hc.mq.Fetch", "fetch"),
            ("hc.mq.Group", "heartbeat"),
            ("hc.mq.Admin", "create_topic"),
            ("hc.mq.Transaction", "send_half"),
        ])
        .unwrap();
    let nothing = 0xc0;
    let deadline_us = [0xce, 0, 0x0f, 0x42, 0x40];
    let head = [
        &[0x97][..],
        &text(service),
        &text("1.0"),
        &text("default"),
        &text(method),
        &deadline_us,
    ]
    .concat();
    [&head[..], &[nothing], &bytes(random, 60)].concat()
}

async fn attack(address: String, mut random: fastrand::Rng, frames: usize) {
    let mut left = frames;
    while left > 0 {
        let count = left.min(random.usize(1..FRAMES_PER_CONNECTION));
        left -= count;
        let mut nonsense = Vec::new();
        (1..count).for_each(|_| push_request(&mut nonsense, &mut random));
        push_nonsense(&mut nonsense, &mut random);
        let (mut reader, mut writer) = TcpStream::connect(&address).await.unwrap().into_split();
        let reading = async {
            let mut answers = vec![0; 64 * 1024];
            // The end of the connection, in whatever way, is fine.
            while reader.read(&mut answers).await.is_ok_and(|count| count > 0) {}
        };
        let writing = async {
            // The broker may close a connection that breaks the protocol.
            drop(writer.write_all(&nonsense).await);
            drop(writer.shutdown().await);
        };
        // A frame that promises more than comes, or an oneway flood, keeps the connection open: we are the ones
        // who leave.
        let both = async { tokio::join!(writing, reading) };
        drop(tokio::time::timeout(Duration::from_secs(2), both).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn million_nonsense_frames_change_nothing_for_a_good_client() {
    let seed = fastrand::u64(..);
    eprintln!("seed: {seed}");
    let folder = tempfile::tempdir().unwrap();
    // A good client on a fast machine may send much meanwhile, and the newest 64 MiB of it would stay in memory.
    // On many cores the allocator would keep a heap for each of many threads. Neither is what is measured here.
    let options = Options::default()
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
        .variable("TOKIO_WORKER_THREADS", "4")
        .variable("MALLOC_ARENA_MAX", "4");
    let broker = BrokerProcess::start_with(&folder.path().join("data"), &options);
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    let before = broker.resident_bytes();
    let started = Instant::now();
    let mut attackers = JoinSet::new();
    for attacker in 0..ATTACKERS {
        let random = fastrand::Rng::with_seed(seed + attacker as u64);
        attackers.spawn(attack(broker.listen.clone(), random, FRAMES / ATTACKERS));
    }
    let over = CancellationToken::new();
    let mut good = JoinSet::new();
    good.spawn({
        let (client, orders, over) = (client.clone(), orders.clone(), over.clone());
        async move {
            let (mut sent, mut slowest) = (0_u64, Duration::ZERO);
            while !over.is_cancelled() {
                let started = Instant::now();
                // Frames that promise much have their part of the memory for requests until they are found to be
                // nonsense.
                while let Err(error) = client.send(&orders, 0, &["good"], None).await {
                    assert!(is_busy(&error), "{error}");
                    tokio::task::yield_now().await;
                }
                slowest = slowest.max(started.elapsed());
                sent += 1;
            }
            (sent, slowest)
        }
    });
    let mut highest = before;
    while !attackers.is_empty() {
        let ended = tokio::time::timeout(Duration::from_millis(100), attackers.join_next()).await;
        if let Ok(Some(ended)) = ended {
            ended.unwrap();
        }
        highest = highest.max(broker.resident_bytes());
    }
    over.cancel();
    let (sent, slowest) = good.join_next().await.unwrap().unwrap();
    let grown = highest - before;
    eprintln!(
        "{FRAMES} frames in {:?}; good client: {sent} sends, slowest {slowest:?}; grown {grown} bytes",
        started.elapsed()
    );
    assert!(sent > 10 && slowest < Duration::from_secs(20));
    assert!(grown < GROWTH_MAX, "{grown} bytes more than before");
    let read = client.read(&orders, 0, 0).await;
    assert_eq!(read.len() as u64, sent);
    assert!(values(&read).iter().all(|value| *value == "good"));
    assert!(broker.stop().success());
}
