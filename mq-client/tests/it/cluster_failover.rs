//! Two brokers share a topic and one of them is killed: messages without a key go on at the other, those
//! whose key belongs to the dead one wait or fail, and with its return everything that was acknowledged is
//! there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mq_client::{Client, NewTopic, Outcome};
use mq_common::ids::QueueNumber;
use mq_common::partition::queue_index_of_key;
use tokio::task::JoinSet;

use crate::cluster_ledger::{Keyed, Ledger, Load};
use crate::cluster_pair::{PATIENCE, Pair, names, tell, until};

const QUEUES: u32 = 8;
/// What the brokers register with.
const LEASE: Duration = Duration::from_secs(10);
/// Messages without a key must go on by then.
const FAILOVER_WITHIN: Duration = Duration::from_secs(10);
/// A broker with nothing to do stops by then, whoever waits for news from it.
const STOP_WITHIN: Duration = Duration::from_secs(4);
/// For sends with the dead broker's key that do not wait for its return.
const IMPATIENT: Duration = Duration::from_secs(2);
/// A send that began while the broker died may have reached it.
const DYING: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_broker_in_etcd_is_replaced_and_comes_back_whole() {
    fail_over("etcd", Pair::in_etcd().await, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_broker_of_two_that_carry_the_registry_is_replaced_and_comes_back_whole() {
    fail_over("embedded", Pair::embedded(), 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_broker_costs_no_message_without_a_key() {
    let mut pair = Pair::embedded();
    let client = pair.client().await;
    client
        .admin()
        .create_topic(NewTopic::new("t").queues(QUEUES))
        .await
        .unwrap();
    let ledger = Arc::new(Ledger::default());
    let consumer = ledger.consumer(&client, "g").await;
    let load = Load::start(&ledger, &client.producer().build(), None);
    until("load", PATIENCE, async || ledger.acked().len() > 200).await;

    let stopping = Instant::now();
    assert!(pair.brokers[1].stop().success());
    let stopped = Instant::now();
    tell(&format!("graceful stop under load took {:?}", stopped - stopping));
    assert!(
        stopped - stopping < STOP_WITHIN,
        "its long polls are not waited for"
    );
    until("more load", PATIENCE, async || ledger.acked_since(stopped) > 200).await;
    // In the first lease of a registry's life nobody is removed from its lists.
    until("its registration taken back", LEASE + LEASE / 2, async || {
        names(&pair.status().0) == ["a"]
    })
    .await;
    load.stop().await;
    ledger.none_failed();

    pair.brokers[1].restart();
    until("everything received", PATIENCE, async || ledger.missing("g") == 0).await;
    ledger.prove("g");
    consumer.stop().await.unwrap();
    client.shutdown().await;
}

async fn fail_over(form: &str, mut pair: Pair, victim: usize) {
    let client = pair.client().await;
    spreads(&pair, &client).await;

    let ledger = Arc::new(Ledger::default());
    let consumer = ledger.consumer(&client, "g").await;
    let theirs = pair.queues_of(&client, victim).await;
    let (key, queue) = key_of(&theirs);
    let keyed = |timeout| Keyed {
        producer: client.producer().timeout(timeout).build(),
        key: key.clone(),
        queue,
    };
    let load = Load::start(&ledger, &client.producer().build(), Some(keyed(IMPATIENT)));
    let begun = Instant::now();
    until("load", PATIENCE, async || ledger.acked_since(begun) > 500).await;

    pair.brokers[victim].kill();
    let killed = Instant::now();
    let patient = keyed(2 * PATIENCE);
    let mut waiting = JoinSet::new();
    let patient_ledger = Arc::clone(&ledger);
    waiting.spawn(async move {
        let key = Some((patient.key.as_str(), patient.queue));
        patient_ledger
            .send(&patient.producer, "patient".to_owned(), key)
            .await;
    });
    until("messages without a key going on", FAILOVER_WITHIN, async || {
        ledger.acked_since(killed) > 100
    })
    .await;
    is_shown_until_its_lease_ends(form, &pair, &client, victim, killed).await;

    assert!(
        waiting.try_join_next().is_none(),
        "it waits for the broker of its key"
    );
    let restarted = Instant::now();
    pair.brokers[victim].restart();
    tell(&format!("{form}: restart to `ready` {:?}", restarted.elapsed()));
    waiting.join_all().await;
    let back = until("messages without a key at both again", PATIENCE, async || {
        let sent = ledger.sent();
        let later = sent
            .iter()
            .filter(|sent| sent.started > restarted && sent.pinned.is_none());
        later
            .filter_map(|sent| sent.outcome.as_ref().ok())
            .any(|receipt| theirs.contains(&receipt.queue))
    });
    tell(&format!(
        "{form}: `ready` to first message at it {:?}",
        back.await
    ));
    load.stop().await;
    assert_eq!(names(&pair.status().0), ["a", "b"]);
    assert_eq!(pair.status().1, 0);

    judge(form, &ledger, killed, restarted);
    // Also for those who never saw it die.
    let late = ledger.consumer(&client, "late").await;
    for group in ["g", "late"] {
        until("everything received", PATIENCE, async || {
            ledger.missing(group) == 0
        })
        .await;
        ledger.prove(group);
    }
    consumer.stop().await.unwrap();
    late.stop().await.unwrap();
    client.shutdown().await;
}

/// Topic `t` lies on both, and what is sent goes to both as the balancer says.
async fn spreads(pair: &Pair, client: &Client) {
    pair.mq(&["topic", "create", "t", "--queues", &QUEUES.to_string()], b"")
        .ok();
    let (status, code) = pair.status();
    assert_eq!((names(&status), code), (vec!["a", "b"], 0), "{status:?}");
    for (broker, row) in pair.brokers.iter().zip(&status) {
        assert_eq!(row["address"], broker.listen.as_str());
        assert_eq!(
            (&row["state"], &row["registration"]),
            (&"leader".into(), &"registered".into())
        );
        assert_eq!(row["queues"], QUEUES / 2, "dealt over both: {status:?}");
    }

    pair.mq(&["topic", "create", "x", "--queues", &QUEUES.to_string()], b"")
        .ok();
    let theirs = pair.queues_of(client, 0).await;
    let is_first = |queue: QueueNumber| usize::from(theirs.contains(&queue));
    // The balancer deals batches: enough of them to see it.
    let line = "x".repeat(1023) + "\n";
    let produced = pair
        .mq(&["produce", "x", "-v"], line.repeat(8000).as_bytes())
        .ok();
    let rows = produced.rows();
    let first: usize = rows
        .iter()
        .map(|row| is_first(QueueNumber(row[1].parse().unwrap())))
        .sum();
    tell(&format!(
        "of 8000 lines of `mq produce` {first} went to the first broker"
    ));
    assert!((2000..=6000).contains(&first), "{first}");

    let shares = [
        ("round_robin", 50..=50),
        ("weighted", 50..=50),
        ("random", 25..=75),
        ("least_active", 25..=75),
        // It may take one of them for the quicker one.
        ("p2c?tau_ms=1000&eject_after=5&slow_start_ms=1000", 0..=100),
    ];
    for (balancer, share) in shares {
        let client = Client::builder()
            .registry(pair.url.as_str())
            .load_balancer(balancer)
            .build()
            .await
            .unwrap();
        let producer = client.producer().build();
        let mut first = 0;
        for _ in 0..100 {
            let message = mq_client::Message::new("x", "").unwrap();
            let receipt = producer.send(message).await.unwrap();
            first += is_first(receipt.queue);
        }
        assert!(share.contains(&first), "{balancer}: {first} of 100");
        client.shutdown().await;
    }
}

/// A key whose queue is one of these.
fn key_of(queues: &BTreeSet<QueueNumber>) -> (String, QueueNumber) {
    let keys = (0..).map(|number| format!("key-{number}"));
    let mut places = keys.filter_map(|key| {
        let index = queue_index_of_key(key.as_bytes(), QUEUES as usize)?;
        let queue = QueueNumber(u32::try_from(index).ok()?);
        queues.contains(&queue).then_some((key, queue))
    });
    places.next().unwrap()
}

async fn is_shown_until_its_lease_ends(
    form: &str,
    pair: &Pair,
    client: &Client,
    victim: usize,
    killed: Instant,
) {
    let (status, code) = pair.status();
    assert_eq!(code, 1, "{status:?}");
    // On a slow machine its lease may have ended by now.
    if let Some(row) = status
        .iter()
        .find(|row| row["broker"] == pair.brokers[victim].name)
    {
        assert_eq!(row["state"], "unreachable");
    }
    let other = pair.brokers[1 - victim].name.clone();
    until("its registration to end", LEASE + LEASE / 2, async || {
        let members = client.admin().cluster_status().await.unwrap();
        members
            .iter()
            .map(|member| member.shard.as_str())
            .eq([other.as_str()])
    })
    .await;
    tell(&format!(
        "{form}: dead broker gone from the registry after {:?}",
        killed.elapsed()
    ));
    assert!(killed.elapsed() > LEASE / 2, "not before its lease ended");
    let (status, code) = pair.status();
    assert_eq!((names(&status), code), (vec![other.as_str()], 1), "{status:?}");
    is_missed_by_every_list(pair, victim);
}

/// Nobody may take a list for complete that lacks what lies on the dead broker.
fn is_missed_by_every_list(pair: &Pair, victim: usize) {
    let words = format!("`{}`: not registered now; it has ", pair.brokers[victim].name);
    for command in [
        &["cluster", "status"][..],
        &["topic", "list"],
        &["topic", "describe", "t"],
        &["group", "list"],
        &["group", "describe", "g"],
        &["txn", "list"],
    ] {
        pair.mq(command, b"").fails(1, &words);
    }
    let unregistered = format!("broker `{}` is not registered", pair.brokers[victim].name);
    let transaction = format!("{}:5", pair.brokers[victim].name);
    pair.mq(&["txn", "commit", &transaction], b"")
        .fails(1, &unregistered);
    let silent = format!("broker `{}` is silent", pair.brokers[victim].name);
    let consume = [
        "consume",
        "x",
        "--group",
        "shortly",
        "--count",
        "1",
        "--timeout",
        "20s",
    ];
    let consumed = pair.mq(&consume, b"").ok();
    assert!(consumed.stderr.contains(&silent), "{consumed:?}");
}

/// What was said of every message fits to when it was sent.
fn judge(form: &str, ledger: &Ledger, killed: Instant, restarted: Instant) {
    let sent = ledger.sent();
    let (keyed, free): (Vec<_>, Vec<_>) = sent.iter().partition(|sent| sent.pinned.is_some());
    for sent in free.iter().filter(|sent| sent.outcome.is_err()) {
        let error = sent.outcome.as_ref().unwrap_err();
        assert_eq!(
            error.outcome(),
            Outcome::Unknown,
            "another broker could have had it: {sent:?}"
        );
        assert!(sent.started < killed + DYING, "{sent:?}");
    }
    let unknown = free.iter().filter(|sent| sent.outcome.is_err()).count();
    let after = || {
        free.iter()
            .filter(|sent| sent.started >= killed && sent.outcome.is_ok())
    };
    let slowest = after().map(|sent| sent.ended - sent.started).max().unwrap();
    let first = after().map(|sent| sent.ended).min().unwrap() - killed;
    tell(&format!(
        "{form}: kill -9 to first ack without a key {first:?}, slowest send after it {slowest:?}, of unknown outcome {unknown}"
    ));
    assert!(slowest < FAILOVER_WITHIN, "{slowest:?}");

    let down = keyed
        .iter()
        .filter(|sent| sent.started > killed + DYING && sent.ended < restarted);
    let (mut refused, mut longest) = (0, Duration::ZERO);
    for sent in down {
        let error = sent.outcome.as_ref().expect_err("nobody was there to take it");
        assert_eq!(error.outcome(), Outcome::Definite, "{sent:?}");
        refused += 1;
        longest = longest.max(sent.ended - sent.started);
    }
    tell(&format!(
        "{form}: {refused} keyed sends definitely failed while it was dead, after {longest:?} at most"
    ));
    assert!(refused > 0);
    assert!(longest < IMPATIENT + DYING, "{longest:?}");
    for sent in keyed.iter().filter(|sent| sent.outcome.is_err()) {
        assert!(sent.started > killed - IMPATIENT, "{sent:?}");
    }
    let patient = sent.iter().find(|sent| sent.payload == "patient").unwrap();
    assert!(patient.outcome.is_ok(), "{patient:?}");
}
