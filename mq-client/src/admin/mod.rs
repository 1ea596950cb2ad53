//! Management: topics, groups, transactions, brokers. Answers of several brokers are merged here.

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
use mq_common::ids::{Durability, GroupName, QueueNumber, ShardName, Timestamp, TopicName, TransactionId};
use rpc_core::CallError;
use rpc_core::registry::Instance;
use tokio::time::Instant;

pub use merge::Merged;
pub use missing::MissingShard;
pub use mq_common::api::SettingsChange;
pub use topic::TopicChange;

use crate::client::Inner;
use crate::error::{AdminError, RouteError, SendError, words};
use crate::route::true_topic;
use merge::{merge, merge_groups, true_topics, unknown, with_names};

/// How long to wait for the registry to show a broker.
const BROKERS_WITHIN: Duration = Duration::from_secs(5);

type Failure = CallError<mq_common::Error>;
type Brokers = BTreeMap<ShardName, Arc<Instance>>;
/// Who did not answer, and why.
type Silent = Vec<(ShardName, String)>;

/// One broker as `cluster status` shows it.
#[derive(Debug, Clone)]
pub struct ClusterMember {
    /// Its shard's name.
    pub shard: ShardName,
    /// Its registration.
    pub instance: Arc<Instance>,
    /// What it says of itself, or why it did not.
    pub status: Result<BrokerStatus, String>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Admin {
    client: Arc<Inner>,
}

impl Admin {
    pub(crate) const fn new(client: Arc<Inner>) -> Self {
        Self { client }
    }

    /// Creates a topic with so many queues in all, dealt over the brokers reachable now, and with this floor of
    /// durability (`None` = fsynced). It keeps its messages for seven days; see [`Admin::create_topic_with`] for other
    /// settings. Asks the authority (the first of them) first, then the others. If the same topic exists, completes its
    /// creation where that had failed, whatever its settings.
    ///
    /// # Errors
    /// `TopicExists` if it exists with other properties; `Partial` names the brokers that could not be told: the rest of
    /// the topic is usable, and repeating the call completes it. `MayExist` when a registered broker did not say
    /// whether it has the topic.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the topic created at some brokers; repeating the call completes it.
    pub async fn create_topic(
        &self,
        name: impl Into<String> + Send,
        queues: u32,
        durability: Option<Durability>,
    ) -> Result<Topic, AdminError> {
        self.create_topic_with(name, queues, durability, SettingsChange::default())
            .await
    }

    /// Deletes a topic, its messages included: at its authority first, then at the others.
    ///
    /// # Errors
    /// `Broker` with `OpenTransactions` unless `drop_transactions`; `Partial` as for a creation; `UnknownTopic` when every
    /// broker was asked and none has it.
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
        let deleted = match topic.deleted {
            true => topic,
            false => {
                let tell = |broker: &Instance| self.client.admin.delete_topic(request.clone()).to(broker);
                self.tell_authority(&authority, &brokers, tell).await?
            }
        };
        request.identity = Some((deleted.id, deleted.version));
        let tell = |broker: &Instance| self.client.admin.delete_topic(request.clone()).to(broker);
        self.tell_others(&authority, &deleted, &brokers, tell).await?;
        Ok(deleted)
    }

    /// All topics, sorted by name: of several versions of one the highest, deleted ones left out. Brokers that hold queues
    /// of one of them and are not registered are among the silent.
    ///
    /// # Errors
    /// No broker is registered, or none answered.
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

    /// A topic with all queues of the brokers that answered. Brokers that hold the others and are not registered are among
    /// the silent.
    ///
    /// # Errors
    /// `UnknownTopic` when every broker was asked and none has it.
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

    /// All consumer groups; the queues and members of a group at several brokers are put together. Brokers that hold queues
    /// of any topic and are not registered are among the silent.
    ///
    /// # Errors
    /// No broker is registered, or none answered.
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

    /// One consumer group; no items when no broker knows it. Brokers that hold queues of its topic (if that is not known,
    /// of any topic) and are not registered are among the silent.
    ///
    /// # Errors
    /// As for [`Admin::groups`].
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

    /// Undecided transactions of all brokers, oldest first. Brokers that hold queues of any topic and are not registered
    /// are among the silent.
    ///
    /// # Errors
    /// No broker is registered, or none answered.
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

    /// Decides a transaction in place of its producer.
    ///
    /// # Errors
    /// [`SendError`], as the broker refused it or as far as the outcome is known. `Route` with `Unregistered`, at once, when
    /// the transaction's broker is not there.
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

    /// Lets producers be asked about a parked transaction again, as in the beginning.
    ///
    /// # Errors
    /// `Broker` with `UnknownTransaction`, `TransactionConflict` when it is decided already, or `UnknownTopic` when one of
    /// its topics was deleted, so that it can only be rolled back; or its broker was not reached.
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

    /// Every registered broker with what it says of itself.
    ///
    /// # Errors
    /// No broker is registered.
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

    /// Brokers that hold queues of a topic and are not registered: they were stopped, or died and their lease has ended.
    /// Empty as long as the registry has not told who is there.
    ///
    /// # Errors
    /// As for [`Admin::topics`].
    pub async fn missing_shards(&self) -> Result<Vec<MissingShard>, AdminError> {
        let brokers = self.brokers().await?;
        let topics = self.topics().await?;
        Ok(self.missing(&topics.items, &brokers))
    }

    /// The queue's first offset that was appended at or after `time`, or its end.
    ///
    /// # Errors
    /// The topic or queue is unknown, or its broker did not answer.
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
