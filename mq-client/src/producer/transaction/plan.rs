//! Which broker a transaction goes to, and its half messages as batches.

use std::collections::BTreeMap;
use std::sync::Arc;

use mq_common::api::produce::TopicBatches;
use mq_common::batch::{Builder, BuilderOptions};
use mq_common::ids::{QueueNumber, ShardName, TopicName};
use rpc_core::Attachment;
use rpc_core::balance::{Node, Pick};
use rpc_core::registry::Instance;
use tokio::time::Instant;

use crate::client::{Inner, wall_clock};
use crate::error::{RouteError, SendError};
use crate::message::Message;
use crate::producer::partitioner::{Place, place};
use crate::route::TopicRoute;

/// The messages of one transaction, with what decides their broker.
pub(super) struct Plan<'a> {
    messages: Vec<(&'a Message, Arc<TopicRoute>, Place)>,
    /// The broker that pinned messages belong to.
    pinned: Option<ShardName>,
}

impl<'a> Plan<'a> {
    pub(super) async fn of(
        client: &Inner,
        messages: &'a [Message],
        deadline: Instant,
    ) -> Result<Self, SendError> {
        let mut plan = Self {
            messages: Vec::with_capacity(messages.len()),
            pinned: None,
        };
        for message in messages {
            let route = client.routes.topic(&message.topic, deadline).await?;
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
        Ok(plan)
    }

    /// The pinned messages' broker, else one that the balancer picks among those with queues of every topic.
    pub(super) fn broker(&self, client: &Inner) -> Result<(ShardName, Arc<Instance>), SendError> {
        let has_all = |shard: &ShardName| {
            self.messages
                .iter()
                .all(|(_, route, _)| !route.queues_of(shard).is_empty())
        };
        if let Some(shard) = &self.pinned {
            if !has_all(shard) {
                return Err(SendError::Route(RouteError::NoBrokers));
            }
            let broker = client
                .routes
                .broker(shard)
                .ok_or(SendError::Route(RouteError::NoBrokers))?;
            return Ok((shard.clone(), broker));
        }
        let able: Vec<_> = client
            .routes
            .brokers()
            .into_iter()
            .filter(|(shard, _)| has_all(shard))
            .collect();
        let any_well = able.iter().any(|(shard, _)| !client.routes.avoided(shard));
        let mut nodes: Vec<_> = able
            .into_iter()
            .filter(|(shard, _)| !any_well || !client.routes.avoided(shard))
            .map(|(_, broker)| Arc::new(Node::new(broker)))
            .collect();
        nodes.sort_by(|a, b| a.instance.id.cmp(&b.instance.id));
        // A picker for this call alone would begin with the same broker each time: turn the list instead.
        let turn = fastrand::usize(..nodes.len().max(1));
        nodes.rotate_left(turn);
        let pick = Pick {
            method: "send_half",
            hash_key: None,
            tried: &[],
        };
        let node = client.balancer.rebuild(&nodes, None).pick(&pick);
        let broker = node.map(|node| Arc::clone(&node.instance));
        let broker = broker.ok_or(SendError::Route(RouteError::NoBrokers))?;
        let shard =
            ShardName::new(broker.name.as_str()).map_err(|_| SendError::Route(RouteError::NoBrokers))?;
        Ok((shard, broker))
    }

    /// The batches for this broker: one for each queue; free messages of a topic go to one queue of it together.
    pub(super) fn batches(&self, shard: &ShardName) -> Result<(Vec<TopicBatches>, Attachment), SendError> {
        let now = wall_clock();
        let mut builders: BTreeMap<(TopicName, QueueNumber), Builder> = BTreeMap::new();
        let mut free: BTreeMap<TopicName, QueueNumber> = BTreeMap::new();
        for (message, route, place) in &self.messages {
            let queue = match place {
                Place::Pinned(queue) => *queue,
                Place::Free => *free.entry(message.topic.clone()).or_insert_with(|| {
                    let queues = route.queues_of(shard);
                    queues
                        .get(fastrand::usize(..queues.len().max(1)))
                        .copied()
                        .unwrap_or_default()
                }),
            };
            let builder = builders
                .entry((message.topic.clone(), queue))
                .or_insert_with(|| Builder::new(BuilderOptions::default()));
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
                    topic,
                    batches: vec![part],
                }),
            }
            attachment.push(batch.into_bytes());
        }
        Ok((topics, attachment))
    }
}
