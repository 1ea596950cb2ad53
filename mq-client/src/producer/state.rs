//! A producer's state under its lock: its batches, its topics with the queue that each is filling, and the
//! calls in flight to each broker.

use std::collections::BTreeMap;
use std::sync::Arc;

use mq_common::ids::{QueueNumber, ShardName, TopicId, TopicName};
use rpc_core::balance::{Node, Pick, Picker};
use rpc_core::registry::InstanceId;

use super::Waiter;
use super::batcher::{Batcher, Class, LaneKey, Options};
use super::partitioner::Sticky;
use super::shared::now;
use crate::client::Inner;
use crate::error::RouteError;
use crate::route::TopicRoute;

/// The part of a producer that its lock protects.
#[derive(Debug)]
pub(super) struct State {
    pub(super) batcher: Batcher<Waiter>,
    pub(super) topics: Vec<TopicState>,
    /// A topic recreated under its name is another one: messages queued for the old one are never sent to it.
    pub(super) indices: BTreeMap<TopicName, BTreeMap<TopicId, usize>>,
    pub(super) calls: BTreeMap<(ShardName, Class), Calls>,
    pub(super) nodes: BTreeMap<ShardName, Arc<Node>>,
    pub(super) closed: bool,
}

#[derive(Debug)]
pub(super) struct TopicState {
    pub(super) route: Arc<TopicRoute>,
    pub(super) sticky: BTreeMap<Class, Sticky>,
    pub(super) picker: Option<Arc<dyn Picker>>,
    pub(super) picked_from: Vec<InstanceId>,
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    pub(super) under_way: usize,
    /// One of them has not taken its batches yet: it will take those queued by now.
    pub(super) starting: bool,
}

impl State {
    pub(super) fn new(options: Options) -> Self {
        Self {
            batcher: Batcher::new(options),
            topics: Vec::new(),
            indices: BTreeMap::new(),
            calls: BTreeMap::new(),
            nodes: BTreeMap::new(),
            closed: false,
        }
    }

    /// The index of the route's topic; takes over a newer route.
    pub(super) fn topic(&mut self, route: &Arc<TopicRoute>) -> usize {
        let (name, id) = (&route.topic().name, route.topic().id);
        if let Some(&index) = self.indices.get(name).and_then(|ids| ids.get(&id)) {
            if let Some(topic) = self.topics.get_mut(index)
                && !Arc::ptr_eq(&topic.route, route)
            {
                topic.route = Arc::clone(route);
                topic.picker = None;
            }
            return index;
        }
        self.topics.push(TopicState {
            route: Arc::clone(route),
            sticky: BTreeMap::new(),
            picker: None,
            picked_from: Vec::new(),
        });
        let index = self.topics.len() - 1;
        self.indices.entry(name.clone()).or_default().insert(id, index);
        index
    }

    pub(super) fn leave(&mut self, key: LaneKey) {
        if let Some(topic) = self.topics.get_mut(key.topic)
            && let Some(sticky) = topic.sticky.get_mut(&key.class)
        {
            sticky.leave(key.queue);
        }
    }

    /// The queue for the next unpinned message: the current one, else one of the broker that the balancer
    /// picks.
    pub(super) fn free_queue(
        &mut self,
        client: &Inner,
        topic: usize,
        class: Class,
    ) -> Result<QueueNumber, RouteError> {
        let current = self
            .topics
            .get(topic)
            .and_then(|state| state.sticky.get(&class)?.current());
        if let Some(queue) = current {
            return Ok(queue);
        }
        self.follow(client, topic);
        let Some(state) = self.topics.get_mut(topic) else {
            return Err(RouteError::NoBrokers);
        };
        let pick = Pick::first("produce", now());
        let picked = state.picker.as_ref().and_then(|picker| picker.pick(&pick));
        let picked = picked.and_then(|node| ShardName::new(node.instance.name.as_str()).ok());
        // If no broker is alive, a message waits for the first one that has queues of the topic.
        let shard = picked
            .or_else(|| state.route.shards().next().cloned())
            .ok_or(RouteError::NoBrokers)?;
        let batcher = &self.batcher;
        let busy = |queue| batcher.is_busy(LaneKey { topic, queue, class });
        let sticky = state.sticky.entry(class).or_default();
        sticky
            .advance(&shard, state.route.queues_of(&shard), busy)
            .ok_or(RouteError::NoBrokers)
    }

    /// Rebuilds the topic's picker if the brokers that can take its messages have changed.
    pub(super) fn follow(&mut self, client: &Inner, topic: usize) {
        let Some(state) = self.topics.get_mut(topic) else {
            return;
        };
        let alive = state
            .route
            .shards()
            .filter_map(|shard| Some((shard, client.routes.broker(shard)?)));
        let alive: Vec<_> = alive.collect();
        let well = |shard: &ShardName| !client.routes.avoided(shard);
        let any_well = alive.iter().any(|(shard, _)| well(shard));
        let chosen: Vec<_> = alive
            .into_iter()
            .filter(|(shard, _)| !any_well || well(shard))
            .collect();
        let ids: Vec<_> = chosen.iter().map(|(_, broker)| broker.id.clone()).collect();
        if state.picker.is_some() && ids == state.picked_from {
            return;
        }
        let mut nodes: Vec<Arc<Node>> = Vec::with_capacity(chosen.len());
        for (shard, broker) in chosen {
            let node = match self.nodes.get(shard) {
                Some(node) if node.instance.id == broker.id => Arc::clone(node),
                _ => {
                    let node = Arc::new(Node::new(broker));
                    self.nodes.insert(shard.clone(), Arc::clone(&node));
                    node
                }
            };
            nodes.push(node);
        }
        nodes.sort_by(|a, b| a.instance.id.cmp(&b.instance.id));
        state.picker = Some(client.balancer.rebuild(&nodes, state.picker.as_deref()));
        state.picked_from = ids;
    }
}
