//! The publishers: the text is sent in blocks, each block in all four modes at once, so that the kill in the
//! middle affects each of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mq_client::producer::transaction::TransactionError;
use mq_client::{Client, Message, Outcome, Producer, SendError, TransactionProducer};
use mq_common::ids::TopicName;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use crate::input::Input;
use crate::ledger::{Fate, Ledger, Mode};
use crate::listener::Listener;

/// The property that contains the line number of a message.
pub(crate) const LINE: &str = "line";
/// Blocks of the text.
const BLOCKS: usize = 20;
/// Tasks that send and wait, and tasks that run transactions.
const SYNC_TASKS: usize = 8;
const TRANSACTION_TASKS: usize = 4;
/// Pause between two oneway sections: without it all of them would be sent at once, and none would be in
/// flight at the kill.
const PAUSE: Duration = Duration::from_millis(5);
/// Callback sends in flight: fewer than the slots of the pool.
const CALLBACKS_MAX: u32 = 500;

/// The state shared by all publishers.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// The text.
    pub(crate) input: Arc<Input>,
    /// The topic.
    pub(crate) topic: TopicName,
    /// Records the outcomes.
    pub(crate) ledger: Arc<Ledger>,
    /// For sync, oneway and callback sends.
    pub(crate) producer: Producer,
    /// For transactions.
    pub(crate) transactions: TransactionProducer<Listener>,
    /// Lines that the sync tasks have sent.
    sync_sent: AtomicUsize,
    /// The number of them after which the middle is reached.
    middle: usize,
    /// Notified at the middle.
    pub(crate) middle_reached: Notify,
}

impl Publisher {
    /// Creates the publishers.
    pub(crate) fn new(
        client: &Client,
        input: Arc<Input>,
        topic: TopicName,
        ledger: Arc<Ledger>,
        transactions: TransactionProducer<Listener>,
    ) -> Self {
        let of_sync = input
            .sections
            .iter()
            .filter(|section| Mode::of_section(**section) == Mode::Sync);
        let middle = (of_sync.count() / 2).max(1);
        Self {
            input,
            topic,
            ledger,
            producer: client.producer().build(),
            transactions,
            sync_sent: AtomicUsize::new(0),
            middle,
            middle_reached: Notify::new(),
        }
    }

    /// Publishes everything.
    pub(crate) async fn run(self: Arc<Self>) {
        let sections = self.input.sections.last().map_or(0, |last| last + 1);
        let per_block = sections.div_ceil(u32::try_from(BLOCKS).unwrap_or(1)).max(1);
        let mut begin = 0;
        while begin < sections {
            let end = (begin + per_block).min(sections);
            let mut tasks = JoinSet::new();
            for (mode, count) in [
                (Mode::Sync, SYNC_TASKS),
                (Mode::Transaction, TRANSACTION_TASKS),
                (Mode::Oneway, 1),
                (Mode::Callback, 1),
            ] {
                let of_mode: Vec<u32> = (begin..end)
                    .filter(|section| Mode::of_section(*section) == mode)
                    .collect();
                for task in 0..count {
                    let share = of_mode.iter().copied().skip(task).step_by(count).collect();
                    tasks.spawn(Arc::clone(&self).share(mode, share));
                }
            }
            // A task that panicked leaves its lines unsent, which the proof then finds.
            while tasks.join_next().await.is_some() {}
            begin = end;
        }
        self.producer.flush().await;
        // For a text that is too short, the middle is its end.
        self.middle_reached.notify_one();
    }

    async fn share(self: Arc<Self>, mode: Mode, sections: Vec<u32>) {
        match mode {
            Mode::Sync => self.sync(&sections).await,
            Mode::Oneway => self.oneway(&sections).await,
            Mode::Callback => self.callback(&sections).await,
            Mode::Transaction => self.in_transactions(&sections).await,
        }
    }

    /// The lines of a section.
    fn lines(&self, section: u32) -> impl Iterator<Item = u32> + use<> {
        let begin = self.input.sections.partition_point(|other| *other < section);
        let end = self.input.sections.partition_point(|other| *other <= section);
        let number = |index| u32::try_from(index).unwrap_or(u32::MAX);
        number(begin)..number(end)
    }

    fn message(&self, section: u32, line: u32) -> Message {
        let payload = self.input.lines[line as usize].clone();
        Message::to(self.topic.clone(), payload)
            .key(format!("section-{section}"))
            .property(LINE, line.to_string())
    }

    async fn sync(&self, sections: &[u32]) {
        for section in sections {
            for line in self.lines(*section) {
                self.ledger.sent(line);
                let outcome = self.producer.send(self.message(*section, line)).await;
                self.ledger.settle(line, fate(&outcome));
                if self.sync_sent.fetch_add(1, Ordering::Relaxed) + 1 == self.middle {
                    self.middle_reached.notify_one();
                }
            }
        }
    }

    async fn oneway(&self, sections: &[u32]) {
        for section in sections {
            for line in self.lines(*section) {
                self.ledger.sent(line);
                let handed = self.producer.send_oneway(self.message(*section, line)).await;
                let fate = handed.map_or(Fate::Refused, |()| Fate::Handed);
                self.ledger.settle(line, fate);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn callback(&self, sections: &[u32]) {
        let places = Arc::new(Semaphore::new(CALLBACKS_MAX as usize));
        for section in sections {
            for line in self.lines(*section) {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                    return;
                };
                let ledger = Arc::clone(&self.ledger);
                self.ledger.sent(line);
                let handed = self
                    .producer
                    .send_callback(self.message(*section, line), move |outcome| {
                        ledger.settle(line, fate(&outcome));
                        drop(place);
                    });
                if handed.await.is_err() {
                    self.ledger.settle(line, Fate::Refused);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        // All slots are free again: every callback has run.
        drop(places.acquire_many(CALLBACKS_MAX).await);
    }

    /// Sends a section as one transaction; the listener decides it and records the outcome of its lines.
    async fn in_transactions(&self, sections: &[u32]) {
        for section in sections {
            let lines: Vec<u32> = self.lines(*section).collect();
            for line in &lines {
                self.ledger.sent(*line);
            }
            let messages = lines.iter().map(|line| self.message(*section, *line)).collect();
            let outcome = self
                .transactions
                .send_messages_in_transaction(messages, section)
                .await;
            if let Err(TransactionError::Half(_)) = outcome {
                // The local transaction did not run. If the half messages were stored, the broker will ask,
                // and the listener, which does not know the transaction, rolls it back.
                for line in lines {
                    self.ledger.settle(line, Fate::RolledBack);
                }
            }
        }
    }
}

fn fate(outcome: &Result<mq_client::SendReceipt, SendError>) -> Fate {
    match outcome {
        Ok(receipt) => Fate::Acked {
            queue: receipt.queue.0,
            offset: receipt.base_offset.0,
        },
        Err(error) if error.outcome() == Outcome::Unknown => Fate::Unknown,
        Err(_) => Fate::Refused,
    }
}
