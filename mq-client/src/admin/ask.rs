//! Building blocks of the management calls: asking all brokers, dealing queues, informing a topic's brokers.

use std::collections::BTreeMap;
use std::sync::Arc;

use mq_common::ErrorCode;
use mq_common::api::admin::{QueueHome, Topic, TopicDescription};
use mq_common::ids::{QueueNumber, ShardName, TopicName};
use rpc_core::registry::Instance;
use rpc_core::{Call, CallError, RpcError};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::merge::{Answers, Merged, merge, with_names};
use super::{Admin, BROKERS_WITHIN, Brokers, Failure, Silent};
use crate::error::{AdminError, RouteError, words};
use crate::route::true_topic;

impl Admin {
    pub(super) async fn brokers(&self) -> Result<Brokers, RouteError> {
        self.client
            .routes
            .wait_for_brokers(Instant::now() + BROKERS_WITHIN)
            .await
    }

    /// Deals queues round robin over the brokers that answer, in order of their names.
    pub(super) async fn deal(&self, queues: u32, brokers: &Brokers) -> Result<Vec<QueueHome>, AdminError> {
        let answers = self
            .ask_all(brokers, |broker| self.client.admin.status().to(broker))
            .await;
        let mut shards = Vec::new();
        let mut last = None;
        for (shard, answer) in answers {
            match answer {
                Ok(_) => shards.push(shard),
                Err(error) => last = Some(AdminError::of(&shard, error)),
            }
        }
        if shards.is_empty() {
            return Err(last.unwrap_or(AdminError::Route(RouteError::NoBrokers)));
        }
        let homes = (0..queues)
            .zip(shards.iter().cycle())
            .map(|(queue, shard)| QueueHome {
                queue: QueueNumber(queue),
                shard: shard.clone(),
            });
        Ok(homes.collect())
    }

    /// The topic as declared, or its tombstone, and the brokers that did not answer.
    pub(super) async fn declared(
        &self,
        name: &TopicName,
        brokers: &Brokers,
    ) -> Result<(Option<Topic>, Silent), AdminError> {
        let ask = |broker: &Arc<Instance>| self.client.admin.describe_topic(name.clone()).to(broker);
        let answers = self.ask_all(brokers, ask).await;
        let answers = answers.into_iter().map(|(shard, answer)| match answer {
            Ok(description) => (shard, Ok(Some(description.topic))),
            Err(CallError::App(error)) if error.code == ErrorCode::UnknownTopic => (shard, Ok(None)),
            Err(error) => (shard, Err(error)),
        });
        let Merged { items, silent } = merge(with_names(answers.collect()))?;
        let said = items
            .into_iter()
            .filter_map(|(shard, topic)| Some((shard, topic?)));
        Ok((true_topic(&said.collect::<Vec<_>>()).cloned(), silent))
    }

    pub(super) async fn descriptions(
        &self,
        name: &TopicName,
        brokers: &Brokers,
    ) -> (Vec<(ShardName, TopicDescription)>, Silent) {
        let ask = |broker: &Arc<Instance>| self.client.admin.describe_topic(name.clone()).to(broker);
        let (mut found, mut silent) = (Vec::new(), Vec::new());
        for (shard, answer) in self.ask_all(brokers, ask).await {
            match answer {
                Ok(description) => found.push((shard, description)),
                Err(CallError::App(error)) if error.code == ErrorCode::UnknownTopic => {}
                Err(error) => silent.push((shard, words(&error))),
            }
        }
        (found, silent)
    }

    pub(super) async fn tell_authority(
        &self,
        authority: &ShardName,
        brokers: &Brokers,
        tell: impl Fn(&Instance) -> Call<Topic, mq_common::Error>,
    ) -> Result<Topic, AdminError> {
        let broker = brokers
            .get(authority)
            .ok_or_else(|| not_registered(authority, "it is the topic's authority"))?;
        tell(broker)
            .await
            .map_err(|error| AdminError::of(authority, error))
    }

    /// Informs all other brokers of the topic of what its authority decided.
    pub(super) async fn tell_others(
        &self,
        authority: &ShardName,
        topic: &Topic,
        brokers: &Brokers,
        tell: impl Fn(&Instance) -> Call<Topic, mq_common::Error>,
    ) -> Result<(), AdminError> {
        let mut others: Vec<_> = topic.queues.iter().map(|home| &home.shard).collect();
        others.sort();
        others.dedup();
        let (mut done, mut failed) = (vec![authority.clone()], Vec::new());
        for shard in others.into_iter().filter(|shard| *shard != authority) {
            let told = match brokers.get(shard) {
                None => Err("not registered now".to_owned()),
                Some(broker) => tell(broker).await.map_err(|error| words(&error)),
            };
            match told {
                Ok(_) => done.push(shard.clone()),
                Err(reason) => failed.push((shard.clone(), reason)),
            }
        }
        if failed.is_empty() {
            Ok(())
        } else {
            Err(AdminError::Partial { done, failed })
        }
    }

    /// Asks all brokers concurrently; returns the answers in order of the brokers' names.
    pub(super) async fn ask_all<T, F>(
        &self,
        brokers: &Brokers,
        ask: impl Fn(&Arc<Instance>) -> F,
    ) -> Answers<T>
    where
        T: Send + 'static,
        F: IntoFuture<Output = Result<T, Failure>, IntoFuture: Send> + Send + 'static,
    {
        let mut asked = JoinSet::new();
        for (shard, broker) in brokers {
            let (shard, call) = (shard.clone(), ask(broker));
            asked.spawn(async move { (shard, call.await) });
        }
        let mut answers = BTreeMap::new();
        while let Some(answer) = asked.join_next().await {
            answers.extend(answer.ok());
        }
        answers.into_iter().collect()
    }
}

fn not_registered(shard: &ShardName, role: &str) -> AdminError {
    let message = format!("{role} and it is not registered now; start broker `{shard}`");
    AdminError::Rpc {
        shard: shard.clone(),
        error: RpcError::new(rpc_core::Code::Unavailable, rpc_core::Executed::No, message),
    }
}
