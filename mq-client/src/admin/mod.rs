//! Management of topics, groups, transactions and brokers; merges the answers of several brokers.

mod ask;
mod merge;
mod missing;
mod topic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mq_common::ErrorCode;
use mq_common::api::admin::{BrokerStatus, DeleteTopicRequest, QueueDescription, Topic, TopicDescription};
use mq_common::api::group::GroupDescription;
use mq_common::api::page::all_pages;
use mq_common::api::transaction::{
    Decision, EndTransactionResponse, ResumeTransactionResponse, TransactionDescription,
};
use mq_common::ids::{GroupName, QueueNumber, ShardName, Timestamp, TopicName, TransactionId};
use rpc_core::CallError;
use rpc_core::registry::Instance;
use tokio::time::Instant;

pub use merge::Merged;
pub use missing::MissingShard;
pub use mq_common::api::SettingsChange;
pub use topic::{NewTopic, TopicChange};

use crate::client::Inner;
use crate::error::{AdminError, RouteError, SendError, words};
use crate::route::true_topic;
use merge::{merge, merge_groups, true_topics, unknown, with_names};

/// How long to wait for the registry to show a broker.
const BROKERS_WITHIN: Duration = Duration::from_secs(5);

type Failure = CallError<mq_common::Error>;
type Brokers = BTreeMap<ShardName, Arc<Instance>>;
/// The brokers that did not answer, and why.
type Silent = Vec<(ShardName, String)>;

/// One broker as `cluster status` shows it.
#[derive(Debug, Clone)]
pub struct ClusterMember {
    /// The name of its shard.
    pub shard: ShardName,
    /// Its registration.
    pub instance: Arc<Instance>,
    /// Its status, or why it did not answer.
    pub status: Result<BrokerStatus, String>,
}

/// Management calls; created by [`Client::admin`](crate::Client::admin).
#[derive(Debug, Clone)]
pub struct Admin {
    client: Arc<Inner>,
}

impl Admin {
    pub(crate) const fn new(client: Arc<Inner>) -> Self {
        Self { client }
    }

    /// Deletes a topic and its messages: at its authority first, then at its other brokers.
    ///
    /// # Errors
    /// `Broker` with `OpenTransactions` unless `drop_transactions` is set; `Partial` as for
    /// [`Admin::create_topic`]; `UnknownTopic` if every broker was asked and none has it.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the topic deleted at some brokers; repeating the call completes it.
    pub async fn delete_topic(
        &self,
        name: impl Into<String> + Send,
        drop_transactions: bool,
    ) -> Result<Topic, AdminError> {
        let name = TopicName::new(name)?;
        let brokers = self.brokers().await?;
        let (declared, silent) = self.declared(&name, &brokers).await?;
        let topic = declared.ok_or_else(|| unknown(name.clone(), &silent))?;
        let authority = topic
            .queues
            .first()
            .map(|home| home.shard.clone())
            .ok_or(RouteError::NoBrokers)?;
        let mut request = DeleteTopicRequest {
            name,
            identity: None,
            drop_transactions,
        };
        let deleted = if topic.deleted {
            topic
        } else {
            let tell = |broker: &Instance| self.client.admin.delete_topic(request.clone()).to(broker);
            self.tell_authority(&authority, &brokers, tell).await?
        };
        request.identity = Some((deleted.id, deleted.version));
        let tell = |broker: &Instance| self.client.admin.delete_topic(request.clone()).to(broker);
        self.tell_others(&authority, &deleted, &brokers, tell).await?;
        Ok(deleted)
    }

    /// All topics, sorted by name; of several versions of one topic the highest; without deleted ones.
    /// `silent` also names brokers that hold queues of one of them and are not registered.
    ///
    /// # Errors
    /// No broker is registered, or none answered.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn topics(&self) -> Result<Merged<Topic>, AdminError> {
        let brokers = self.brokers().await?;
        let ask = |broker: &Arc<Instance>| {
            let (admin, broker) = (self.client.admin.clone(), Arc::clone(broker));
            async move { all_pages(|page| admin.topics(page).to(&broker)).await }
        };
        let merged = merge(with_names(self.ask_all(&brokers, ask).await))?;
        let lists = merged.items.into_iter();
        let said = lists.flat_map(|(shard, list)| list.into_iter().map(move |topic| (shard.clone(), topic)));
        let items = true_topics(said);
        let mut silent = merged.silent;
        self.add_missing(&mut silent, &items, &brokers);
        Ok(Merged { items, silent })
    }

    /// A topic with all queues of the brokers that answered. `silent` also names brokers that hold queues of
    /// it and are not registered.
    ///
    /// # Errors
    /// `UnknownTopic` if every broker was asked and none has it.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn describe_topic(
        &self,
        name: impl Into<String> + Send,
    ) -> Result<Merged<TopicDescription>, AdminError> {
        let name = TopicName::new(name)?;
        let brokers = self.brokers().await?;
        let (found, mut silent) = self.descriptions(&name, &brokers).await;
        let topics: Vec<_> = found
            .iter()
            .map(|(shard, found)| (shard.clone(), found.topic.clone()))
            .collect();
        let Some(topic) = true_topic(&topics).filter(|topic| !topic.deleted).cloned() else {
            return Err(unknown(name, &silent).into());
        };
        let found = found.into_iter().map(|(_, found)| found);
        let of_it = found.filter(|found| found.topic.id == topic.id);
        let mut queues: Vec<QueueDescription> = of_it.flat_map(|found| found.queues).collect();
        queues.sort_by_key(|queue| queue.queue);
        self.add_missing(&mut silent, std::slice::from_ref(&topic), &brokers);
        Ok(Merged {
            items: vec![TopicDescription { topic, queues }],
            silent,
        })
    }

    /// All consumer groups, each with its queues and members at all brokers. `silent` also names brokers that
    /// hold queues of any topic and are not registered.
    ///
    /// # Errors
    /// No broker is registered, or none answered.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn groups(&self) -> Result<Merged<GroupDescription>, AdminError> {
        let brokers = self.brokers().await?;
        let ask = |broker: &Arc<Instance>| {
            let (group, broker) = (self.client.group.clone(), Arc::clone(broker));
            async move { all_pages(|page| group.list(page).to(&broker)).await }
        };
        let mut groups = merge_groups(merge(self.ask_all(&brokers, ask).await)?);
        self.add_all_missing(&mut groups.silent).await;
        Ok(groups)
    }

    /// One consumer group; no items if no broker knows it. `silent` also names brokers that hold queues of
    /// its topic (of any topic if the group is unknown) and are not registered.
    ///
    /// # Errors
    /// As for [`Admin::groups`].
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn describe_group(
        &self,
        group: impl Into<String> + Send,
    ) -> Result<Merged<GroupDescription>, AdminError> {
        let group = GroupName::new(group)?;
        let brokers = self.brokers().await?;
        let ask = |broker: &Arc<Instance>| self.client.group.describe(group.clone()).to(broker);
        let answers = self.ask_all(&brokers, ask).await;
        let answers = answers.into_iter().map(|(shard, answer)| match answer {
            Err(CallError::App(error)) if error.code == ErrorCode::UnknownGroup => (shard, Ok(Vec::new())),
            answer => (shard, answer),
        });
        let mut groups = merge_groups(merge(answers.collect())?);
        if groups.items.is_empty() {
            self.add_all_missing(&mut groups.silent).await;
        }
        for group in &groups.items {
            let (found, _) = self.descriptions(&group.topic, &brokers).await;
            let said: Vec<_> = found
                .into_iter()
                .map(|(shard, found)| (shard, found.topic))
                .collect();
            let topic = true_topic(&said).filter(|topic| !topic.deleted);
            self.add_missing(
                &mut groups.silent,
                topic.map_or(&[], std::slice::from_ref),
                &brokers,
            );
        }
        Ok(groups)
    }

    /// Undecided transactions of all brokers, oldest first. `silent` also names brokers that hold queues of
    /// any topic and are not registered.
    ///
    /// # Errors
    /// No broker is registered, or none answered.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn transactions(&self) -> Result<Merged<TransactionDescription>, AdminError> {
        let brokers = self.brokers().await?;
        let ask = |broker: &Arc<Instance>| {
            let (transaction, broker) = (self.client.transaction.clone(), Arc::clone(broker));
            async move { all_pages(|page| transaction.list(page).to(&broker)).await }
        };
        let merged = merge(self.ask_all(&brokers, ask).await)?;
        let mut items: Vec<_> = merged.items.into_iter().flatten().collect();
        items.sort_by(|a, b| (a.since, &a.transaction).cmp(&(b.since, &b.transaction)));
        let mut silent = merged.silent;
        self.add_all_missing(&mut silent).await;
        Ok(Merged { items, silent })
    }

    /// Decides a transaction on behalf of its producer.
    ///
    /// # Errors
    /// [`SendError`]: the broker refused it, or the call failed; [`SendError::outcome`] says whether it may have been
    /// decided. `Route` with `Unregistered`, at once, if the transaction's broker is not registered.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it open whether the decision arrived; repeating the call with the same
    /// decision is harmless.
    pub async fn end_transaction(
        &self,
        transaction: &TransactionId,
        decision: Decision,
    ) -> Result<EndTransactionResponse, SendError> {
        let deadline = Instant::now() + BROKERS_WITHIN;
        self.client.routes.wait_for_brokers(deadline).await?;
        self.client.routes.registered(&transaction.shard)?;
        self.client
            .end_transaction(transaction, decision, None, BROKERS_WITHIN)
            .await
    }

    /// Resumes a parked transaction: its broker asks the producers about it again, starting from the first
    /// question.
    ///
    /// # Errors
    /// `Broker` with `UnknownTransaction`; with `TransactionConflict` if it is already decided; with
    /// `UnknownTopic` if one of its topics was deleted, so that it can only be rolled back. `Route` or `Rpc`
    /// if its broker was not reached.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it open whether the request arrived; repeating the call is harmless.
    pub async fn resume_transaction(
        &self,
        transaction: &TransactionId,
    ) -> Result<ResumeTransactionResponse, AdminError> {
        self.brokers().await?;
        let shard = &transaction.shard;
        let broker = self.client.routes.registered(shard)?;
        let call = self.client.transaction.resume(transaction.clone()).to(&broker);
        call.await.map_err(|error| AdminError::of(shard, error))
    }

    /// Every registered broker with its status.
    ///
    /// # Errors
    /// No broker is registered.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn cluster_status(&self) -> Result<Vec<ClusterMember>, AdminError> {
        let brokers = self.brokers().await?;
        let answers = self
            .ask_all(&brokers, |broker| self.client.admin.status().to(broker))
            .await;
        let mut answers: BTreeMap<_, _> = answers.into_iter().collect();
        let members = brokers.into_iter().map(|(shard, instance)| ClusterMember {
            status: match answers.remove(&shard) {
                Some(Ok(status)) => Ok(status),
                Some(Err(error)) => Err(words(&error)),
                None => Err("not asked".to_owned()),
            },
            shard,
            instance,
        });
        Ok(members.collect())
    }

    /// Brokers that hold queues of a topic and are not registered: they were stopped, or they crashed and
    /// their lease has expired. Empty as long as the registry has not answered.
    ///
    /// # Errors
    /// As for [`Admin::topics`].
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn missing_shards(&self) -> Result<Vec<MissingShard>, AdminError> {
        let brokers = self.brokers().await?;
        let topics = self.topics().await?;
        Ok(self.missing(&topics.items, &brokers))
    }

    /// The offset of the queue's first message appended at or after `time`; the queue's end if there is none.
    ///
    /// # Errors
    /// The topic or queue is unknown, or its broker did not answer.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn offset_at(
        &self,
        topic: &TopicName,
        queue: QueueNumber,
        time: Timestamp,
    ) -> Result<mq_common::ids::Offset, AdminError> {
        let route = self
            .client
            .routes
            .topic(topic, Instant::now() + BROKERS_WITHIN)
            .await?;
        let shard = route.home(queue)?;
        let broker = self.client.routes.registered(shard)?;
        let call = self
            .client
            .fetch
            .offset_at(topic.clone(), queue, time)
            .to(&broker);
        call.await.map_err(|error| AdminError::of(shard, error))
    }
}
