//! Brokers that do not answer: the application is notified once, and once more when the broker answers again.
//! Without this, a consumer whose broker is down looks like one whose topic is empty.

use std::sync::Mutex;
use std::time::Duration;

use mq_common::ids::ShardName;
use rpc_core::RpcError;
use tokio::time::Instant;

use super::engine::Engine;
use super::event::ConsumerEvent;
use crate::route::lock;

/// A broker that is silent for longer than this is reported; a restart usually takes less.
pub(crate) const TOLD_AFTER: Duration = Duration::from_secs(2);

/// How long one broker has been silent, and whether that was reported.
#[derive(Debug, Default)]
pub(crate) struct Silence(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    told: bool,
}

impl Silence {
    /// Whether the broker was reported as silent and has not answered since.
    pub(crate) fn is_told(&self) -> bool {
        lock(&self.0).told
    }

    /// The broker was not reached (again).
    pub(crate) fn begin(&self, engine: &Engine, shard: &ShardName, error: &RpcError, told_after: Duration) {
        let mut state = lock(&self.0);
        let since = *state.since.get_or_insert_with(Instant::now);
        if state.told || since.elapsed() < told_after {
            return;
        }
        state.told = true;
        drop(state);
        let route = engine.client.routes.cached(&engine.topic);
        engine.event(ConsumerEvent::BrokerSilent {
            shard: shard.clone(),
            queues: route.map_or_else(Vec::new, |route| route.queues_of(shard).to_vec()),
            reason: error.message.clone(),
        });
    }

    /// The broker answered.
    pub(crate) fn end(&self, engine: &Engine, shard: &ShardName) {
        let before = std::mem::take(&mut *lock(&self.0));
        if before.told {
            engine.event(ConsumerEvent::BrokerBack { shard: shard.clone() });
        }
    }
}
