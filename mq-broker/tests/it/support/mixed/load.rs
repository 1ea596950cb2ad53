//! Work of every kind at once, until it is over or the broker is gone: everything that is asked and answered
//! is entered in the ledger.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use mq_common::api::TopicSettings;
use mq_common::ids::Durability;
use mq_common::{Error, ErrorCode};
use rpc_core::{CallError, Executed};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::consumers::{self, Reader};
use super::ledger::Ledger;
use super::value::{self, Made};
use super::{topics, transactions};
use crate::support::{Client, topic};

/// What a worker needs.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) client: Client,
    ledger: Arc<Mutex<Ledger>>,
    /// The broker is dead: what was not answered will not be.
    pub(crate) gone: CancellationToken,
    until: Instant,
}

/// What a call came to.
pub(super) enum Answer<T> {
    Done(T),
    /// Nothing of it happened, and it says why.
    Refused(Error),
    /// The broker is gone, and nothing of it happened.
    NotSent,
    /// The broker is gone; it may have happened.
    Unknown,
}

/// A topic that is there all the time.
pub(crate) struct Fixed {
    pub(crate) name: &'static str,
    pub(crate) queues: u32,
    pub(crate) durability: Durability,
    pub(crate) settings: TopicSettings,
    /// Values in a batch, and bytes of one.
    values: Range<usize>,
    bytes: Range<usize>,
    has_keys: bool,
    producers: u32,
    readers: &'static [Reader],
}

const KEPT: TopicSettings = TopicSettings {
    retention_ms: None,
    retention_bytes: None,
    consumed: false,
    hold_ms: None,
    message_bytes_max: None,
    compact: false,
};

/// Small messages one by one that stay; batches of them; large ones that are let go for each of the reasons;
/// and ones of which of each key the last one stays.
pub(crate) const FIXED: [Fixed; 7] = [
    Fixed {
        name: "orders",
        queues: 3,
        durability: Durability::Fsynced,
        settings: KEPT,
        values: 1..2,
        bytes: 20..300,
        has_keys: false,
        producers: 4,
        readers: &[Reader("billing", "one"), Reader("billing", "two")],
    },
    Fixed {
        name: "notes",
        queues: 2,
        durability: Durability::Memory,
        settings: KEPT,
        values: 2..20,
        bytes: 20..100,
        has_keys: false,
        producers: 2,
        readers: &[Reader("archive", "one")],
    },
    Fixed {
        name: "near",
        queues: 2,
        durability: Durability::Memory,
        settings: TopicSettings {
            retention_bytes: Some(300_000),
            ..KEPT
        },
        values: 1..4,
        bytes: 5_000..30_000,
        has_keys: false,
        producers: 2,
        readers: &[],
    },
    Fixed {
        name: "brief",
        queues: 1,
        durability: Durability::Memory,
        settings: TopicSettings {
            retention_ms: Some(300),
            ..KEPT
        },
        values: 1..4,
        bytes: 5_000..30_000,
        has_keys: false,
        producers: 1,
        readers: &[],
    },
    Fixed {
        name: "held",
        queues: 1,
        durability: Durability::Fsynced,
        settings: TopicSettings {
            retention_bytes: Some(200_000),
            hold_ms: Some(3_600_000),
            ..KEPT
        },
        values: 1..4,
        bytes: 5_000..30_000,
        has_keys: false,
        producers: 1,
        readers: &[Reader("slow", "one")],
    },
    Fixed {
        name: "eaten",
        queues: 2,
        durability: Durability::Memory,
        settings: TopicSettings {
            consumed: true,
            ..KEPT
        },
        values: 1..6,
        bytes: 1_000..10_000,
        has_keys: false,
        producers: 2,
        readers: &[Reader("eater", "one"), Reader("second-eater", "one")],
    },
    Fixed {
        name: "latest",
        queues: 1,
        durability: Durability::Memory,
        settings: TopicSettings {
            compact: true,
            ..KEPT
        },
        values: 1..6,
        bytes: 5_000..30_000,
        has_keys: true,
        producers: 2,
        readers: &[Reader("board", "one")],
    },
];

impl Load {
    pub(crate) fn new(client: &Client, ledger: &Arc<Mutex<Ledger>>, time: Duration) -> Self {
        Self {
            client: client.clone(),
            ledger: Arc::clone(ledger),
            gone: CancellationToken::new(),
            until: Instant::now() + time,
        }
    }

    /// Makes the topics that are there all the time, and the groups that hold their messages.
    pub(crate) async fn declare(&self) {
        for fixed in &FIXED {
            topics::create(self, fixed.name, fixed.queues, fixed.durability, fixed.settings).await;
            for Reader(group, _) in fixed.readers {
                consumers::join(self, group, fixed.name).await;
            }
        }
    }

    /// Begins all of it.
    pub(crate) fn start(&self, seed: u64) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let mut random = Rng::with_seed(seed);
        for fixed in &FIXED {
            for _ in 0..fixed.producers {
                tasks.spawn(produce(self.clone(), random.fork(), fixed));
            }
            for reader in fixed.readers {
                tasks.spawn(consumers::consume(
                    self.clone(),
                    random.fork(),
                    *reader,
                    fixed.name,
                ));
            }
        }
        for maker in ["a", "b"] {
            tasks.spawn(topics::come_and_go(self.clone(), random.fork(), maker));
            tasks.spawn(transactions::make(self.clone(), random.fork()));
        }
        tasks.spawn(transactions::answer(self.clone()));
        tasks
    }

    /// Ends what is open and deletes the topics that came and went; then fills the segment with these
    /// decisions, which holds all that have half messages for them until it is sealed.
    pub(crate) async fn finish(&self) {
        transactions::end_all(self).await;
        topics::delete_all(self).await;
        let near = self.with(|ledger| ledger.alive("near")).expect("it is there");
        let filled = self.with(|ledger| ledger.acknowledged) + 40;
        while self.with(|ledger| ledger.acknowledged) < filled {
            // A journal at its limit takes nothing for a while.
            assert!(
                self.send((near, 0), &[Made::Plain(100_000)], None).await,
                "the broker is gone"
            );
        }
    }

    /// Sends so much to the topic that compacts that it is worth a pass when it has left the journal.
    pub(crate) async fn fill_latest(&self) {
        let latest = self.with(|ledger| ledger.alive("latest")).expect("it is there");
        let filled = self.with(|ledger| ledger.acknowledged) + 80;
        while self.with(|ledger| ledger.acknowledged) < filled {
            let made: [Made; 4] = std::array::from_fn(|key| Made::Keyed(u32::try_from(key).unwrap(), 30_000));
            assert!(self.send((latest, 0), &made, None).await, "the broker is gone");
        }
    }

    /// Names that the folders of living topics' queue files may have.
    pub(crate) fn folders(&self) -> BTreeSet<String> {
        self.with(|ledger| {
            let alive = ledger.topics.iter().filter(|topic| topic.is_alive());
            let named = alive.filter_map(|topic| Some(format!("{}-{}", topic.name, topic.id.there()?)));
            named.collect()
        })
    }

    pub(super) fn goes_on(&self) -> bool {
        !self.gone.is_cancelled() && Instant::now() < self.until
    }

    pub(super) fn with<R>(&self, with: impl FnOnce(&mut Ledger) -> R) -> R {
        with(&mut self.ledger.lock().unwrap())
    }

    /// The answer to a call, if there is one before the broker is gone.
    pub(super) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<T, CallError<Error>>>,
    ) -> Answer<T> {
        let answer = tokio::select! {
            biased;
            answer = call => answer,
            () = self.gone.cancelled() => return Answer::Unknown,
        };
        match answer {
            Ok(done) => Answer::Done(done),
            Err(CallError::App(error)) if error.is_definite() => Answer::Refused(error),
            Err(error) if error.executed() == Executed::No => Answer::NotSent,
            Err(_) => Answer::Unknown,
        }
    }

    /// Takes a breath, so that what is kept for ever does not grow without end.
    pub(super) async fn pause(&self, random: &mut Rng, ms: Range<u64>) {
        let pause = Duration::from_millis(random.u64(ms));
        tokio::time::sleep(pause).await;
    }

    /// Sends one batch and enters the outcome; `false` = the broker is gone.
    pub(super) async fn send(
        &self,
        (number, queue): (usize, u32),
        made: &[Made],
        wish: Option<Durability>,
    ) -> bool {
        let (name, id, sent, batch) = self.with(|ledger| {
            let sent = ledger.send(number, queue, made, None);
            let topic = &ledger.topics[number];
            let id = topic.id.there().copied();
            let batch = value::batch(&ledger.sent[&sent].values);
            (topic.name.clone(), id, sent, batch)
        });
        let name = topic(&name);
        let call = self.client.send_batch((&name, id, queue), batch, wish);
        match self.answer(call).await {
            Answer::Done(receipt) => {
                let offset = receipt.base_offset.0;
                self.with(|ledger| ledger.acknowledge(sent, offset, receipt.durability));
                true
            }
            Answer::Refused(error) => {
                expect(
                    &error,
                    &[
                        ErrorCode::Overloaded,
                        ErrorCode::UnknownTopic,
                        ErrorCode::UnknownQueue,
                    ],
                );
                self.with(|ledger| ledger.refuse(sent));
                true
            }
            Answer::NotSent => {
                self.with(|ledger| ledger.refuse(sent));
                false
            }
            Answer::Unknown => false,
        }
    }
}

/// A refusal is one of those that the work may meet.
pub(super) fn expect(error: &Error, codes: &[ErrorCode]) {
    assert!(codes.contains(&error.code), "{error:?}");
}

async fn produce(load: Load, mut random: Rng, fixed: &'static Fixed) {
    let number = load.with(|ledger| ledger.alive(fixed.name));
    let number = number.expect("it is there all the time");
    while load.goes_on() {
        let count = random.usize(fixed.values.clone());
        let made = (0..count).map(|_| {
            let bytes = random.usize(fixed.bytes.clone());
            match fixed.has_keys {
                true => Made::any(&mut random, bytes),
                false => Made::Plain(bytes),
            }
        });
        let made: Vec<Made> = made.collect();
        let queue = random.u32(..fixed.queues);
        let wish = (random.u8(..4) == 0).then_some(Durability::Fsynced);
        if !load.send((number, queue), &made, wish).await {
            return;
        }
        load.pause(&mut random, 0..20).await;
    }
}
