//! Compares what a broker serves after a cut of the power with what it had acknowledged before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use mq_common::ErrorCode;
use mq_common::api::PageRequest;
use mq_common::ids::Offset;
use rpc_core::CallError;

use crate::ledger::{Ledger, Transaction};
use crate::load::{ORDERS, QUEUES};
use crate::support::{BrokerProcess, Client, Options, topic};

/// The check of one folder after the other.
pub(crate) struct Audit<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) options: Options,
}

/// Values of each (topic, queue), by offset.
type Served = BTreeMap<(String, u32), Vec<String>>;

impl Audit<'_> {
    /// Starts a broker on the folder, twice, and looks: the second one must serve what the first one did.
    ///
    /// `cut` is when the power went.
    pub(crate) async fn run(&self, data: &Path, cut: u64) -> Result<(), String> {
        let first = self.start(data, cut).await?;
        let second = self.start(data, cut).await?;
        if first != second {
            return Err("the second start serves something else than the first".to_owned());
        }
        Ok(())
    }

    async fn start(&self, data: &Path, cut: u64) -> Result<Served, String> {
        // A refusal to start is a finding, not the end of the run.
        let started = BrokerProcess::try_start_with(data, &self.options);
        let broker = started.map_err(|said| format!("the broker does not start: {said}"))?;
        let client = Client::connect(&broker).await;
        let served = self.served(&client, cut).await?;
        self.check_messages(&served, cut)?;
        let orders = served.iter().filter(|((topic, _), _)| topic == ORDERS);
        let visible: BTreeSet<&str> = orders
            .flat_map(|(_, values)| values.iter().map(String::as_str))
            .collect();
        for transaction in &self.ledger.transactions {
            check_transaction(transaction, &served, &visible, cut)?;
        }
        self.check_open(&client, cut).await?;
        client.invoker.shutdown().await;
        broker.kill();
        Ok(served)
    }

    /// Reads everything; topics must be there or not as was acknowledged.
    async fn served(&self, client: &Client, cut: u64) -> Result<Served, String> {
        let mut served = Served::new();
        for queue in 0..QUEUES {
            match read(client, ORDERS, queue).await? {
                Some(values) => drop(served.insert((ORDERS.to_owned(), queue), values)),
                None if cut < self.ledger.begun => {}
                None => return Err("topic `orders` is lost".to_owned()),
            }
        }
        for (name, known) in &self.ledger.topics {
            let found = read(client, name, 0).await?;
            if known.deleted.is_some_and(|at| at < cut) && found.is_some() {
                return Err(format!("topic `{name}` is back"));
            }
            let expected = known.at < cut && known.deletion_asked.is_none_or(|at| at > cut);
            if expected && found.is_none() {
                return Err(format!("topic `{name}` is lost"));
            }
            if let Some(values) = found {
                served.insert((name.clone(), 0), values);
            }
        }
        Ok(served)
    }

    /// A transaction that was acknowledged and that nobody had decided can still be decided.
    async fn check_open(&self, client: &Client, cut: u64) -> Result<(), String> {
        let mut open = BTreeSet::new();
        let mut page = PageRequest::default();
        loop {
            let answer = client.transaction.list(page.clone()).await;
            let answer = answer.map_err(|error| format!("transactions cannot be listed: {error}"))?;
            open.extend(answer.items.into_iter().map(|one| one.transaction.to_string()));
            let Some(next) = answer.next else { break };
            page.after = Some(next);
        }
        let undecided = self
            .ledger
            .transactions
            .iter()
            .filter(|one| one.at < cut && one.asked.is_none_or(|(asked, _)| asked > cut));
        for transaction in undecided {
            if !open.contains(&transaction.id.to_string()) {
                return Err(format!("lost: the open transaction {}", transaction.id));
            }
        }
        Ok(())
    }

    fn check_messages(&self, served: &Served, cut: u64) -> Result<(), String> {
        for message in self.ledger.messages.iter().filter(|message| message.at < cut) {
            let Some(values) = served.get(&(message.topic.clone(), message.queue)) else {
                // Deleted, or being deleted: looked at above.
                continue;
            };
            let found = usize::try_from(message.offset)
                .ok()
                .and_then(|offset| values.get(offset));
            if found != Some(&message.value) {
                let (topic, queue, offset) = (&message.topic, message.queue, message.offset);
                return Err(format!(
                    "lost: the message acknowledged at offset {offset} of queue {queue} of `{topic}`; the queue ends at {}",
                    values.len()
                ));
            }
        }
        let mut seen = BTreeSet::new();
        for ((topic, queue), values) in served {
            for value in values {
                let handed_over = self.ledger.handed_over.get(topic);
                if !handed_over.is_some_and(|all| all.contains(value)) {
                    return Err(format!("invented: `{value:.40}` in queue {queue} of `{topic}`"));
                }
                if !seen.insert((topic, value)) {
                    return Err(format!("twice: `{value:.40}` in `{topic}`"));
                }
            }
        }
        Ok(())
    }
}

/// All of its messages or none are visible; as it was decided, if that was acknowledged.
fn check_transaction(
    transaction: &Transaction,
    served: &Served,
    visible: &BTreeSet<&str>,
    cut: u64,
) -> Result<(), String> {
    let id = &transaction.id;
    let values = transaction.values.iter();
    let visible = values.filter(|value| visible.contains(value.as_str())).count();
    if visible != 0 && visible != transaction.values.len() {
        return Err(format!("transaction {id} is visible in parts"));
    }
    match (&transaction.asked, &transaction.ended) {
        (Some((_, true)), Some((ended, placed))) if *ended < cut => {
            for ((queue, offset), value) in placed.iter().zip(&transaction.values) {
                let values = &served[&(ORDERS.to_owned(), *queue)];
                if usize::try_from(*offset)
                    .ok()
                    .and_then(|offset| values.get(offset))
                    != Some(value)
                {
                    return Err(format!("lost: a message of the committed transaction {id}"));
                }
            }
            Ok(())
        }
        (Some((asked, true)), _) if *asked < cut => Ok(()),
        _ if visible == 0 => Ok(()),
        _ => Err(format!("transaction {id} is visible and was not committed")),
    }
}

/// Everything in a queue; `None` = there is no such topic.
async fn read(client: &Client, name: &str, queue: u32) -> Result<Option<Vec<String>>, String> {
    let mut next = Offset(0);
    let mut values = Vec::new();
    loop {
        let fetched = client.fetch_once(&topic(name), queue, next, Duration::ZERO).await;
        let (found, after, end) = match fetched {
            Ok(fetched) => fetched,
            Err(CallError::App(error)) if error.code == ErrorCode::UnknownTopic => return Ok(None),
            Err(error) => return Err(format!("queue {queue} of `{name}` from {next} on: {error}")),
        };
        for message in found.into_iter().filter(|message| message.offset >= next.0) {
            if message.offset != values.len() as u64 {
                return Err(format!("offset {} of `{name}` is missing", values.len()));
            }
            values.push(message.value);
        }
        if after >= end {
            return Ok(Some(values));
        }
        next = after;
    }
}
