//! Its topics.

use mq_common::api::admin::{
    Admin, AlterTopicRequest, BackupStatus, BrokerStatus, CreateTopicRequest, DeleteTopicRequest,
    QueueDescription, Topic, TopicDescription,
};
use mq_common::api::{Page, PageRequest};
use mq_common::ids::{Lsn, Offset, Term, TopicId, TopicName};
use mq_common::{Error, ErrorCode};

use super::Services;

impl Admin for Services {
    async fn create_topic(&self, request: CreateTopicRequest) -> Result<Topic, Error> {
        let mut state = self.0.lock();
        state.well()?;
        let (id, version) = request.identity.unwrap_or((TopicId(7), 1));
        let topic = Topic {
            name: request.name.clone(),
            id,
            version,
            durability: request.durability,
            queues: request.queues,
            deleted: false,
            settings: request.settings.unwrap_or_default(),
        };
        let known = state.topics.entry(request.name).or_insert_with(|| topic.clone());
        if known.version < version {
            *known = topic;
        }
        Ok(known.clone())
    }

    async fn alter_topic(&self, request: AlterTopicRequest) -> Result<Topic, Error> {
        let mut state = self.0.lock();
        state.well()?;
        let topic = state.topics.get_mut(&request.topic.name);
        let topic = topic.ok_or_else(|| Error::new(ErrorCode::UnknownTopic, "none"))?;
        let version = topic.version + 1;
        *topic = Topic {
            version,
            ..request.topic
        };
        Ok(topic.clone())
    }

    async fn delete_topic(&self, request: DeleteTopicRequest) -> Result<Topic, Error> {
        let mut state = self.0.lock();
        let topic = state.topics.get_mut(&request.name);
        let topic = topic.ok_or_else(|| Error::new(ErrorCode::UnknownTopic, "none"))?;
        topic.deleted = true;
        topic.version = request.identity.map_or(topic.version + 1, |(_, version)| version);
        Ok(topic.clone())
    }

    /// Two topics a page.
    async fn topics(&self, page: PageRequest<TopicName>) -> Result<Page<Topic, TopicName>, Error> {
        let state = self.0.lock();
        let behind = state
            .topics
            .values()
            .filter(|topic| Some(&topic.name) > page.after.as_ref());
        Ok(Page::cut(
            behind.cloned(),
            Some(2),
            |topic| topic.name.clone(),
            |_| 0,
        ))
    }

    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription, Error> {
        let state = self.0.lock();
        state.well()?;
        let found = state.topics.get(&topic).cloned();
        let found =
            found.ok_or_else(|| Error::new(ErrorCode::UnknownTopic, format!("no topic `{topic}`")))?;
        let here = found.queues.iter().filter(|home| home.shard == self.0.name);
        let queues = here.map(|home| QueueDescription {
            queue: home.queue,
            start: Offset(0),
            end: state.end(&topic, home.queue),
            bytes: 0,
        });
        Ok(TopicDescription {
            queues: queues.collect(),
            topic: found,
        })
    }

    async fn backup(&self, _to: String) -> Result<BackupStatus, Error> {
        Err(Error::new(ErrorCode::Unsupported, "a fake has no files"))
    }

    async fn backup_status(&self) -> Result<Option<BackupStatus>, Error> {
        Ok(None)
    }

    async fn status(&self) -> Result<BrokerStatus, Error> {
        Ok(BrokerStatus {
            shard: self.0.name.clone(),
            version: "fake".to_owned(),
            address: String::new(),
            http: String::new(),
            role: "leader".to_owned(),
            term: Term(1),
            appended: Lsn(0),
            flushed: Lsn(0),
            synced: Lsn(0),
            topics: 0,
            queues: 0,
            groups: 0,
            transactions: 0,
            journal_bytes: 0,
            uptime_ms: 0,
            registration: String::new(),
            disk: None,
        })
    }
}
