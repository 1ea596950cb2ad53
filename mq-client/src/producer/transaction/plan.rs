//! Which broker a transaction goes to, and its half messages as batches.

use std::collections::BTreeMap;
use std::sync::Arc;

use mq_common::api::produce::TopicBatches;
use mq_common::batch::{Builder, BuilderOptions};
use mq_common::content::ContentDigest;
use mq_common::ids::{QueueNumber, ShardName, Timestamp, TopicId, TopicName};
use mq_common::partition::queue_index_of_key;
use rpc_core::Attachment;
use tokio::time::Instant;

use super::choice::Choice;
use super::layout::Layout;
use crate::client::{Inner, wall_clock};
use crate::error::{RouteError, SendError};
use crate::message::Message;
use crate::producer::partitioner::{Place, place};
use crate::route::TopicRoute;

/// The messages of one transaction, and what determines their broker.
pub(super) struct Plan<'a> {
    messages: Vec<(&'a Message, Arc<TopicRoute>, Place)>,
    /// The broker that pinned messages belong to.
    pinned: Option<ShardName>,
    /// The transaction's key.
    key: Option<&'a str>,
}

/// Half messages ready to be sent; with a key also repeatedly: the same bytes to the same broker.
pub(super) struct Built {
    pub(super) shard: ShardName,
    pub(super) topics: Vec<TopicBatches>,
    pub(super) batches: Attachment,
    /// Digest of the messages as the application gave them.
    pub(super) digest: u64,
    pub(super) layout: Arc<Layout>,
}

impl<'a> Plan<'a> {
    pub(super) async fn of(
        client: &Inner,
        messages: &'a [Message],
        key: Option<&'a str>,
        deadline: Instant,
    ) -> Result<Self, SendError> {
        let mut plan = Self {
            messages: Vec::with_capacity(messages.len()),
            pinned: None,
            key,
        };
        for message in messages {
            let route = client.routes.topic(&message.topic, deadline).await?;
            route.check_size(&message.record(Timestamp(0)))?;
            let place = place(&route, message)?;
            if let Place::Pinned(queue) = place {
                let shard = route.home(queue)?;
                match &plan.pinned {
                    Some(first) if first != shard => {
                        return Err(SendError::SeveralBrokers {
                            first: first.clone(),
                            second: shard.clone(),
                        });
                    }
                    _ => plan.pinned = Some(shard.clone()),
                }
            }
            plan.messages.push((message, route, place));
        }
        if plan.messages.is_empty() {
            return Err(SendError::Empty);
        }
        if let (None, Some(key)) = (&plan.pinned, key) {
            plan.pinned = plan.home_of(key);
        }
        Ok(plan)
    }

    /// The broker of a transaction's key. It is computed from the declared queue list, regardless of which
    /// brokers are alive: a key is unique at one broker only, so equal keys must go to the same broker.
    fn home_of(&self, key: &str) -> Option<ShardName> {
        let (_, route, _) = self.messages.first()?;
        let homes = route.topic().queues.iter().map(|home| &home.shard);
        let able: Vec<_> = homes.filter(|shard| self.is_able(shard)).collect();
        let index = queue_index_of_key(key.as_bytes(), able.len())?;
        able.get(index).map(|shard| ShardName::clone(shard))
    }

    /// Whether the shard has queues of every topic.
    fn is_able(&self, shard: &ShardName) -> bool {
        self.messages
            .iter()
            .all(|(_, route, _)| !route.queues_of(shard).is_empty())
    }

    /// Chooses the broker and builds the batches for it.
    pub(super) fn build(&self, client: &Inner, choice: &Choice) -> Result<Built, SendError> {
        let shard = self.shard(client, choice)?;
        let (topics, batches, layout) = self.batches(&shard)?;
        Ok(Built {
            shard,
            topics,
            batches,
            layout: Arc::new(layout),
            digest: self.digest(),
        })
    }

    fn digest(&self) -> u64 {
        let mut digest = ContentDigest::new();
        for (message, ..) in &self.messages {
            digest.add(&message.topic, message.queue, &message.record(Timestamp(0)));
        }
        digest.finish()
    }

    /// The broker of pinned messages, else one that the balancer picks among those with queues of every
    /// topic.
    fn shard(&self, client: &Inner, choice: &Choice) -> Result<ShardName, SendError> {
        if let Some(shard) = &self.pinned {
            return if self.is_able(shard) {
                Ok(shard.clone())
            } else {
                Err(SendError::Route(RouteError::NoBrokers))
            };
        }
        let able: Vec<_> = client
            .routes
            .brokers()
            .into_iter()
            .filter(|(shard, _)| self.is_able(shard))
            .collect();
        let any_well = able.iter().any(|(shard, _)| !client.routes.avoided(shard));
        let chosen: Vec<_> = able
            .into_iter()
            .filter(|(shard, _)| !any_well || !client.routes.avoided(shard))
            .map(|(_, broker)| broker)
            .collect();
        let picked = choice.pick(client.balancer.as_ref(), chosen);
        let broker = picked.ok_or(SendError::Route(RouteError::NoBrokers))?;
        ShardName::new(broker.name.as_str()).map_err(|_| SendError::Route(RouteError::NoBrokers))
    }

    /// The batches for this broker, one per queue; unpinned messages of a topic all go to one of its queues.
    fn batches(&self, shard: &ShardName) -> Result<(Vec<TopicBatches>, Attachment, Layout), SendError> {
        let now = wall_clock();
        let mut builders: BTreeMap<(TopicName, QueueNumber), Builder> = BTreeMap::new();
        let mut free: BTreeMap<TopicName, QueueNumber> = BTreeMap::new();
        let mut ids: BTreeMap<TopicName, TopicId> = BTreeMap::new();
        let mut places = Vec::with_capacity(self.messages.len());
        for (message, route, place) in &self.messages {
            ids.entry(message.topic.clone()).or_insert(route.topic().id);
            let queue = match place {
                Place::Pinned(queue) => *queue,
                Place::Free => *free.entry(message.topic.clone()).or_insert_with(|| {
                    let queues = route.queues_of(shard);
                    let index = self
                        .key
                        .and_then(|key| queue_index_of_key(key.as_bytes(), queues.len()))
                        .unwrap_or_else(|| fastrand::usize(..queues.len().max(1)));
                    queues.get(index).copied().unwrap_or_default()
                }),
            };
            let builder = builders
                .entry((message.topic.clone(), queue))
                .or_insert_with(|| Builder::new(BuilderOptions::default()));
            places.push((&message.topic, queue, builder.record_count()));
            builder.push(&message.record(now))?;
        }
        let mut topics: Vec<TopicBatches> = Vec::new();
        let mut attachment = Attachment::new();
        for ((topic, queue), mut builder) in builders {
            let batch = builder.finish()?;
            let part = (queue, batch.header().region_bytes);
            match topics.last_mut().filter(|last| last.topic == topic) {
                Some(last) => last.batches.push(part),
                None => topics.push(TopicBatches {
                    id: ids.get(&topic).copied(),
                    topic,
                    batches: vec![part],
                }),
            }
            attachment.push(batch.into_bytes());
        }
        Ok((topics, attachment, Layout::new(&places)))
    }
}
