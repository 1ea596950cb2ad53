//! Keeps this shard's topics in step with the other shards: asks them for their topics at start, when another
//! broker appears, and at a fixed interval, and adopts newer declarations through the log. So a broker that
//! was down obeys a deletion, and one that a creation did not reach gets its queues.
//!
//! The pure function [`compare`] decides what to do about a name. The one invariant: a topic is dropped here
//! only if its own authority gave it up.
//!
//! A peer that does not answer in time, or whose answer cannot be read, is left out of the round and asked
//! again in the next; the beginning and the end of that are logged. An invalid declaration is skipped alone.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mq_common::api::admin::Topic;
use mq_common::api::page::all_pages;
use mq_common::api::{AdminClient, DISCOVERY_SERVICE, GROUP, VERSION};
use mq_common::declared::{Statement, true_one};
use mq_common::ids::{ShardName, TopicId, TopicName};
use rpc_core::invoker::{Invoker, InvokerError};
use rpc_core::registry::{Instance, Registry, RegistryError, ServiceKey, Snapshot};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::core::Topics;
use crate::state::Declaration;

/// A peer that does not answer within this time is left out of the round.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Peers asked at once. The limit bounds memory: each may answer with a whole frame.
const ASKED_AT_ONCE: usize = 8;
/// Least time between two rounds, however often the registry's list changes.
const ROUND_SPACING: Duration = Duration::from_millis(500);

/// A peer's declaration of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The peer.
    pub(crate) from: ShardName,
    /// The declaration, or tombstone, that it has.
    pub(crate) declaration: Declaration,
}

/// What to do about one topic's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The declaration here is the newest that concerns this shard.
    Current,
    /// Adopt these, in this order.
    Adopt(Vec<Declaration>),
    /// The newest declaration contradicts the one known here, which is retained; an operator has to resolve
    /// it.
    Clash(Declaration, Clash),
}

/// How a declaration contradicts the known one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clash {
    /// Two authorities declared one name, and neither gave it up.
    TwoAuthorities,
    /// A later version moves queues or removes them.
    MovesQueues,
    /// A later version of a topic that is deleted.
    Revived,
}

impl Clash {
    const fn explain(self) -> &'static str {
        match self {
            Self::TwoAuthorities => {
                "two brokers declared a topic of this name independently; neither is changed: delete one of them"
            }
            Self::MovesQueues => "a later version of a topic must keep every queue where it is",
            Self::Revived => "a deleted topic stays deleted; a topic created later has another id",
        }
    }
}

/// Decides about one name, from the declaration known at `shard` and those of its peers.
/// [`mq_common::declared`] determines which declaration is true. A live one that is no longer true is dropped
/// only if it was given up; otherwise both are retained.
pub(crate) fn compare(known: Option<&Declaration>, shard: &ShardName, offers: &[Offer]) -> Verdict {
    let own = known.map(|known| (shard, known));
    let offered = offers.iter().map(|offer| (&offer.from, &offer.declaration));
    let said: Vec<_> = own
        .into_iter()
        .chain(offered)
        .filter_map(|(from, declaration)| Some((statement(from, declaration)?, declaration)))
        .collect();
    let statements: Vec<_> = said.iter().map(|(statement, _)| *statement).collect();
    let newest = true_one(&statements).map(|index| said[index].1);
    let Some(newest) = newest.filter(|newest| known.is_none_or(|known| age(known) < age(newest))) else {
        let revived = offers.iter().map(|offer| &offer.declaration).find(|said| {
            let buried = known.filter(|known| known.deleted && known.id == said.id);
            buried.is_some_and(|known| !said.deleted && said.version > known.version)
        });
        return revived.map_or(Verdict::Current, |said| {
            Verdict::Clash(said.clone(), Clash::Revived)
        });
    };
    let here = newest.shards.contains(shard);
    let adopt = |declarations: Vec<Declaration>| {
        if declarations.is_empty() {
            Verdict::Current
        } else {
            Verdict::Adopt(declarations)
        }
    };
    let newer = || here.then(|| newest.clone()).into_iter().collect();
    let Some(known) = known else {
        return adopt(newer());
    };
    if newest.id == known.id {
        return if newest.deleted || newest.extends(known) {
            Verdict::Adopt(vec![newest.clone()])
        } else {
            Verdict::Clash(newest.clone(), Clash::MovesQueues)
        };
    }
    if known.deleted {
        return adopt(newer());
    }
    let given_up =
        statement(shard, known).is_some_and(|known| statements.iter().any(|said| known.is_given_up_by(said)));
    if !given_up {
        return Verdict::Clash(newest.clone(), Clash::TwoAuthorities);
    }
    let tombstone = Declaration {
        version: known.version + 1,
        deleted: true,
        ..known.clone()
    };
    Verdict::Adopt(
        std::iter::once(tombstone)
            .chain(here.then(|| newest.clone()))
            .collect(),
    )
}

fn statement<'a>(from: &'a ShardName, declaration: &'a Declaration) -> Option<Statement<'a>> {
    Some(Statement {
        from,
        id: declaration.id,
        version: declaration.version,
        deleted: declaration.deleted,
        authority: declaration.authority()?,
    })
}

const fn age(declaration: &Declaration) -> (TopicId, u64) {
    (declaration.id, declaration.version)
}

/// Why the comparison cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry fails.
    #[error("cannot look for other brokers: {0}")]
    Registry(#[from] RegistryError),
    /// No calls can be made.
    #[error("cannot call other brokers: {0}")]
    Invoker(#[from] InvokerError),
}

/// The topics of this broker, as the comparison needs them.
pub(crate) trait OwnTopics: Send + Sync + 'static {
    /// All topics of this broker.
    fn topics(&self) -> &Topics;

    /// Adopts a declaration of another broker. Repeating it is harmless.
    ///
    /// # Errors
    /// It contradicts the state of this broker, or the journal does not accept it.
    fn adopt(&self, declaration: Declaration) -> impl Future<Output = Result<(), mq_common::Error>> + Send;
}

/// The task that compares topics.
#[derive(Debug)]
pub(crate) struct Declarations<O> {
    shard: ShardName,
    own: O,
    invoker: Invoker,
    peers: AdminClient,
    brokers: watch::Receiver<Snapshot>,
    every: Duration,
    /// Peers that did not answer in the last round, or whose answer could not be read.
    failing: BTreeSet<ShardName>,
    /// Declarations that were refused or clash: logged once, and not tried again while unchanged.
    logged: BTreeSet<(TopicName, TopicId, u64)>,
}

impl<O: OwnTopics> Declarations<O> {
    /// Prepares the task; `token` is presented to peers.
    ///
    /// # Errors
    /// [`Error`].
    pub(crate) async fn new(
        shard: ShardName,
        own: O,
        registry: &Arc<dyn Registry>,
        token: Option<String>,
        every: Duration,
    ) -> Result<Self, Error> {
        let mut invoker = Invoker::builder()
            .registry(Arc::clone(registry))
            .timeout(ANSWER_WITHIN);
        if let Some(token) = token {
            invoker = invoker.token(token);
        }
        let invoker = invoker.build().await?;
        let brokers = registry.subscribe(&ServiceKey {
            group: GROUP.to_owned(),
            service: DISCOVERY_SERVICE.to_owned(),
            version: VERSION.to_owned(),
        })?;
        Ok(Self {
            shard,
            own,
            peers: AdminClient::refer(&invoker),
            invoker,
            brokers,
            every,
            failing: BTreeSet::new(),
            logged: BTreeSet::new(),
        })
    }

    /// Compares until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let stopped = stop.clone();
        stopped.run_until_cancelled(self.keep_comparing()).await;
        self.invoker.shutdown().await;
    }

    async fn keep_comparing(&mut self) {
        loop {
            let peers = self.peers();
            self.round(&peers).await;
            let next = Instant::now() + self.every;
            tokio::time::sleep(ROUND_SPACING.min(self.every)).await;
            while self.peers_are(&peers) && Instant::now() < next {
                let changed = tokio::time::timeout_at(next, self.brokers.changed()).await;
                if matches!(changed, Ok(Err(_))) {
                    // The registry is closed: the broker is stopping.
                    return std::future::pending().await;
                }
            }
        }
    }

    /// The other brokers that the registry lists now. Of two processes with one name, the one started later
    /// is used.
    fn peers(&mut self) -> BTreeMap<ShardName, Arc<Instance>> {
        let mut peers: BTreeMap<ShardName, Arc<Instance>> = BTreeMap::new();
        for instance in self.brokers.borrow_and_update().instances.iter() {
            let Ok(name) = ShardName::new(instance.name.as_str()) else {
                continue;
            };
            let newer = peers
                .get(&name)
                .is_none_or(|other| other.started_ms <= instance.started_ms);
            if name != self.shard && newer {
                peers.insert(name, Arc::clone(instance));
            }
        }
        peers
    }

    fn peers_are(&mut self, before: &BTreeMap<ShardName, Arc<Instance>>) -> bool {
        let now = self.peers();
        now.len() == before.len()
            && now
                .iter()
                .zip(before)
                .all(|(now, before)| now.0 == before.0 && now.1.id == before.1.id)
    }

    /// Asks all peers, then decides name by name.
    async fn round(&mut self, peers: &BTreeMap<ShardName, Arc<Instance>>) {
        self.failing.retain(|shard| peers.contains_key(shard));
        let mut offers: BTreeMap<TopicName, Vec<Offer>> = BTreeMap::new();
        let peers: Vec<_> = peers.iter().collect();
        for some in peers.chunks(ASKED_AT_ONCE) {
            for (from, answer) in self.ask(some).await {
                let (declarations, wrong) = match answer {
                    Ok(topics) => read(&topics),
                    Err(reason) => (Vec::new(), Some(reason)),
                };
                self.note(&from, wrong);
                for declaration in declarations {
                    let from = from.clone();
                    offers
                        .entry(declaration.name.clone())
                        .or_default()
                        .push(Offer { from, declaration });
                }
            }
        }
        let mut standing = BTreeSet::new();
        for (name, offers) in offers {
            standing.extend(self.decide(&name, &offers).await);
        }
        // A contradiction that has ended is logged again if it comes back.
        self.logged = standing;
    }

    async fn ask(
        &self,
        peers: &[(&ShardName, &Arc<Instance>)],
    ) -> Vec<(ShardName, Result<Vec<Topic>, String>)> {
        let mut asked = JoinSet::new();
        for (shard, instance) in peers {
            let (peers, instance, shard) =
                (self.peers.clone(), Arc::clone(instance), ShardName::clone(shard));
            asked.spawn(async move {
                let page = |page| peers.topics(page).to(&instance).timeout(ANSWER_WITHIN);
                let topics = all_pages(page).await;
                (shard, topics.map_err(|error| error.to_string()))
            });
        }
        asked.join_all().await
    }

    /// Logs when a peer starts to fail and when it recovers.
    fn note(&mut self, shard: &ShardName, wrong: Option<String>) {
        match wrong {
            Some(reason) if self.failing.insert(shard.clone()) => {
                tracing::warn!(%shard, reason, "another broker's topics cannot be compared; it is asked again");
            }
            None if self.failing.remove(shard) => {
                tracing::info!(%shard, "another broker's topics can be compared again");
            }
            _ => {}
        }
    }

    /// Carries out the verdict on one name. Returns the identity of a declaration that clashes or was
    /// refused.
    async fn decide(&self, name: &TopicName, offers: &[Offer]) -> Option<(TopicName, TopicId, u64)> {
        let known = self.topics().any(name);
        let known = known.as_ref().map(|topic| &topic.declaration);
        let identity = |declaration: &Declaration| (name.clone(), declaration.id, declaration.version);
        match compare(known, &self.shard, offers) {
            Verdict::Current => None,
            Verdict::Clash(declaration, clash) => {
                let identity = identity(&declaration);
                if !self.logged.contains(&identity) {
                    let (topic, id, version) = &identity;
                    let authority = declaration.authority().map(ToString::to_string);
                    tracing::error!(
                        %topic, %id, version, authority, reason = clash.explain(),
                        "another broker's topic of this name contradicts the one here"
                    );
                }
                Some(identity)
            }
            Verdict::Adopt(declarations) => {
                for declaration in declarations {
                    let identity = identity(&declaration);
                    if self.logged.contains(&identity) {
                        return Some(identity);
                    }
                    let (topic, id, version) = &identity;
                    let deleted = declaration.deleted;
                    match self.own.adopt(declaration).await {
                        Ok(()) => {
                            tracing::info!(%topic, %id, version, deleted, "topic adopted from another broker");
                        }
                        Err(error) if error.is_definite() && !passing(&error) => {
                            tracing::warn!(%topic, %id, version, deleted, %error, "another broker's topic is refused");
                            return Some(identity);
                        }
                        // The journal is full or stopping: the next round retries.
                        Err(error) => {
                            tracing::debug!(%topic, %error, "a topic was not adopted");
                            return None;
                        }
                    }
                }
                None
            }
        }
    }

    fn topics(&self) -> &Topics {
        self.own.topics()
    }
}

fn passing(error: &mq_common::Error) -> bool {
    use mq_common::ErrorCode::{NotLeader, Overloaded, ReadOnly, ShuttingDown};
    matches!(error.code, NotLeader | Overloaded | ReadOnly | ShuttingDown)
}

/// The valid declarations in a peer's answer, and what is wrong with the first invalid one.
fn read(topics: &[Topic]) -> (Vec<Declaration>, Option<String>) {
    let mut wrong = None;
    let mut declarations = Vec::with_capacity(topics.len());
    for topic in topics {
        match Declaration::new(topic) {
            Ok(declaration) => declarations.push(declaration),
            Err(error) => {
                wrong.get_or_insert_with(|| format!("topic `{}`: {error}", topic.name));
            }
        }
    }
    (declarations, wrong)
}

#[cfg(test)]
#[path = "declarations_tests.rs"]
mod tests;
