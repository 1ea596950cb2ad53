//! Everything that was sent to topic `t` with what was said of it, and everything that was received: what
//! must agree, in spite of whatever happened to the cluster meanwhile.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mq_client::{Client, Consumer, Delivery, Message, Outcome, Producer, SendError, SendReceipt};
use mq_common::ids::QueueNumber;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Tasks that send messages without a key.
const SENDERS: usize = 4;
/// Between two messages of one sender.
const PACE: Duration = Duration::from_millis(5);

/// One message and its fate.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) payload: String,
    /// The queue that its key demands.
    pub(crate) pinned: Option<QueueNumber>,
    pub(crate) started: Instant,
    pub(crate) ended: Instant,
    pub(crate) outcome: Result<SendReceipt, SendError>,
}

/// Where a message lies.
pub(crate) type Place = (u32, u64);

/// The load and its ledger.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    sent: Mutex<Vec<Sent>>,
    received: Mutex<BTreeMap<&'static str, Vec<(Place, String)>>>,
}

impl Ledger {
    /// Sends one message, to be found under `payload` afterwards.
    pub(crate) async fn send(&self, producer: &Producer, payload: String, key: Option<(&str, QueueNumber)>) {
        let mut message = Message::new("t", payload.clone()).unwrap();
        if let Some((key, _)) = key {
            message = message.key(key.to_owned());
        }
        let started = Instant::now();
        let outcome = producer.send(message).await;
        let sent = Sent {
            payload,
            pinned: key.map(|(_, queue)| queue),
            started,
            ended: Instant::now(),
            outcome,
        };
        self.sent.lock().unwrap().push(sent);
    }

    /// A consumer of this group that writes down what it gets.
    pub(crate) async fn consumer(self: &Arc<Self>, client: &Client, group: &'static str) -> Consumer {
        let ledger = Arc::clone(self);
        let consumer = client.consumer("t", group).unwrap();
        let note = move |delivery: Delivery| {
            let place = (delivery.queue.0, delivery.offset.0);
            let payload = String::from_utf8(delivery.payload.to_vec()).unwrap();
            let mut received = ledger.received.lock().unwrap();
            received.entry(group).or_default().push((place, payload));
            std::future::ready(Ok::<(), Infallible>(()))
        };
        consumer.run(note).await.unwrap()
    }

    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }

    /// Messages that were acknowledged and began at `since` or later.
    pub(crate) fn acked_since(&self, since: Instant) -> usize {
        let sent = self.sent.lock().unwrap();
        let later = sent.iter().rev().filter(|sent| sent.started >= since);
        later.filter(|sent| sent.outcome.is_ok()).count()
    }

    /// Acknowledged messages by their places.
    pub(crate) fn acked(&self) -> BTreeMap<Place, String> {
        let mut acked = BTreeMap::new();
        for sent in self.sent.lock().unwrap().iter() {
            let Ok(receipt) = &sent.outcome else { continue };
            let place = (receipt.queue.0, receipt.base_offset.0);
            let other = acked.insert(place, sent.payload.clone());
            assert_eq!(other, None, "two receipts for {place:?}: {sent:?}");
        }
        acked
    }

    /// Acknowledged messages that the group has not received.
    pub(crate) fn missing(&self, group: &str) -> usize {
        self.missing_of(group, &self.acked())
    }

    /// Those of them that the group has not received.
    pub(crate) fn missing_of(&self, group: &str, acked: &BTreeMap<Place, String>) -> usize {
        let received = self.received.lock().unwrap();
        let received = received.get(group).map_or(&[][..], Vec::as_slice);
        let received: BTreeMap<_, _> = received.iter().map(|(place, payload)| (place, payload)).collect();
        let is_missing = |(place, payload): &(&Place, &String)| received.get(place) != Some(payload);
        acked.iter().filter(is_missing).count()
    }

    /// Every send so far was acknowledged.
    pub(crate) fn none_failed(&self) {
        let sent = self.sent.lock().unwrap();
        let failed: Vec<_> = sent.iter().filter(|sent| sent.outcome.is_err()).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }

    /// Everything acknowledged was received, unchanged and in order; nothing was invented, doubled or moved
    /// to another queue, and of what definitely failed nothing came.
    pub(crate) fn prove(&self, group: &str) {
        assert_eq!(
            self.missing(group),
            0,
            "acknowledged and not received by `{group}`"
        );
        let sent = self.sent();
        let sent: BTreeMap<_, _> = sent.iter().map(|sent| (sent.payload.as_str(), sent)).collect();
        let received = self.received.lock().unwrap();
        let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
        let mut places: BTreeMap<&str, Place> = BTreeMap::new();
        for (place, payload) in &received[group] {
            let end = ends.entry(place.0).or_default();
            // Below the end it is a redelivery.
            assert!(
                place.1 <= *end,
                "queue {} went on at {} after {end}",
                place.0,
                place.1
            );
            *end = (*end).max(place.1 + 1);
            let first = *places.entry(payload).or_insert(*place);
            assert_eq!(first, *place, "`{payload}` lies at two places");
            let sent = sent.get(payload.as_str());
            let sent = sent.unwrap_or_else(|| panic!("`{payload}` at {place:?} was never sent"));
            assert!(
                sent.pinned.is_none_or(|queue| queue.0 == place.0),
                "moved to {place:?}: {sent:?}"
            );
            match &sent.outcome {
                Ok(receipt) => assert_eq!((receipt.queue.0, receipt.base_offset.0), *place, "{sent:?}"),
                Err(error) => assert_eq!(
                    error.outcome(),
                    Outcome::Unknown,
                    "it came all the same: {sent:?}"
                ),
            }
        }
    }
}

/// Messages of one key.
pub(crate) struct Keyed {
    pub(crate) producer: Producer,
    pub(crate) key: String,
    /// Where they must go.
    pub(crate) queue: QueueNumber,
}

/// Sends messages until it is stopped.
pub(crate) struct Load {
    stop: CancellationToken,
    senders: JoinSet<()>,
}

impl Load {
    /// Senders of messages without a key, and, when a key is given, one that sends with that key alone.
    pub(crate) fn start(ledger: &Arc<Ledger>, producer: &Producer, keyed: Option<Keyed>) -> Self {
        let stop = CancellationToken::new();
        let mut senders = JoinSet::new();
        for sender in 0..SENDERS {
            let (ledger, producer, stop) = (Arc::clone(ledger), producer.clone(), stop.clone());
            senders.spawn(async move {
                let mut pace = tokio::time::interval(PACE);
                for number in 0_u64.. {
                    pace.tick().await;
                    if stop.is_cancelled() {
                        return;
                    }
                    ledger
                        .send(&producer, format!("free {sender}-{number}"), None)
                        .await;
                }
            });
        }
        if let Some(keyed) = keyed {
            let (ledger, stop) = (Arc::clone(ledger), stop.clone());
            senders.spawn(async move {
                let mut pace = tokio::time::interval(PACE);
                for number in 0_u64.. {
                    pace.tick().await;
                    if stop.is_cancelled() {
                        return;
                    }
                    let key = Some((keyed.key.as_str(), keyed.queue));
                    ledger.send(&keyed.producer, format!("keyed {number}"), key).await;
                }
            });
        }
        Self { stop, senders }
    }

    /// Stops, and waits for the outcomes of what is under way.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.senders.join_all().await;
    }
}
