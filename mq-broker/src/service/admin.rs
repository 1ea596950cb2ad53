//! Administration: the topics of this shard, and what the broker reports about itself.

use std::sync::Arc;

use mq_common::api::admin::{
    self as api, AlterTopicRequest, BackupStatus, BrokerStatus, CreateTopicRequest, DeleteTopicRequest,
    DiskStatus, QueueDescription, Topic, TopicDescription,
};
use mq_common::api::{Page, PageRequest, TopicSettings};
use mq_common::ids::{Durability, Lsn, Term, TopicId, TopicName};
use mq_common::{Error, ErrorCode};

use super::{Services, unexpected};
use crate::cluster::declarations::OwnTopics;
use crate::core::Topics;
use crate::log::{self, Role, Want};
use crate::state::{Command, Declaration, Outcome, Refusal};

/// The service `hc.mq.Admin`.
#[derive(Debug, Clone)]
pub struct Admin(pub Arc<Services>);

impl api::Admin for Admin {
    async fn create_topic(&self, request: CreateTopicRequest) -> Result<Topic, Error> {
        self.0.count(self.create(request).await)
    }

    async fn alter_topic(&self, request: AlterTopicRequest) -> Result<Topic, Error> {
        self.0.count(self.alter(request).await)
    }

    async fn delete_topic(&self, request: DeleteTopicRequest) -> Result<Topic, Error> {
        self.0.count(self.delete(request).await)
    }

    async fn topics(&self, page: PageRequest<TopicName>) -> Result<Page<Topic, TopicName>, Error> {
        let Page { items, next } = self.0.core.published().topics.page(&page);
        let items = items.iter().map(|topic| topic.declaration.to_topic()).collect();
        Ok(Page { items, next })
    }

    async fn describe_topic(&self, topic: TopicName) -> Result<TopicDescription, Error> {
        // With tombstones: from one broker, a client that asks several learns that the others are out of
        // date.
        let known = self.0.core.published().topics.any(&topic);
        let known = known.ok_or_else(|| self.0.refusal(&Refusal::UnknownTopic(topic)))?;
        let here = known.here.clone();
        let queues = self.0.core.visit(move |holder, core| {
            let describe = |(number, key)| {
                let ends = core.published().visible.range(key)?;
                Some(QueueDescription {
                    queue: number,
                    start: ends.start,
                    end: ends.end,
                    bytes: holder.state().queue(key)?.bytes,
                })
            };
            here.into_iter().filter_map(describe).collect()
        });
        Ok(TopicDescription {
            topic: known.declaration.to_topic(),
            queues: queues.await.map_err(|refused| self.0.refused(&refused))?,
        })
    }

    async fn backup(&self, to: String) -> Result<BackupStatus, Error> {
        self.0.count(self.0.backups.start(&self.0, to))
    }

    async fn backup_status(&self) -> Result<Option<BackupStatus>, Error> {
        Ok(self.0.backups.last())
    }

    async fn status(&self) -> Result<BrokerStatus, Error> {
        let journal_bytes = self.journal_bytes().await;
        let services = Arc::clone(&self.0);
        let disk = services.core.space().standing();
        let status = self.0.core.visit(move |holder, _| {
            let state = holder.state();
            let marks = holder.watermarks();
            let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
            let (role, term) = match holder.role() {
                Role::Leader { term } => ("leader", term),
                Role::Follower { .. } => ("follower", Term(0)),
            };
            let identity = services.identity.get().cloned().unwrap_or_default();
            let registered = services.health.is_registered();
            BrokerStatus {
                shard: services.shard.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                address: identity.address,
                http: identity.http,
                role: role.to_owned(),
                term,
                // The ends are exclusive there.
                appended: Lsn(marks.appended.0 + 1),
                flushed: Lsn(marks.flushed.0 + 1),
                synced: Lsn(marks.synced.0 + 1),
                topics: count(state.topics().filter(|topic| !topic.declaration.deleted).count()),
                queues: state.queue_count(),
                groups: count(state.groups().count()),
                transactions: count(state.transactions().len()),
                journal_bytes,
                uptime_ms: u64::try_from(services.started.elapsed().as_millis()).unwrap_or(u64::MAX),
                registration: if registered {
                    "registered"
                } else {
                    "not registered yet; being tried"
                }
                .to_owned(),
                disk: Some(DiskStatus {
                    state: disk.level.word().to_owned(),
                    free: disk.free,
                    total: disk.total,
                    needed: disk.needed,
                }),
            }
        });
        status.await.map_err(|refused| self.0.refused(&refused))
    }
}

impl Admin {
    /// Examines every file of the journal, of which there may be thousands: on a blocking thread that only
    /// the caller waits for, never while the core is held.
    async fn journal_bytes(&self) -> u64 {
        let store = Arc::clone(&self.0.core.published().store);
        let looking = self.0.tasks.spawn_blocking(move || store.journal_bytes());
        match looking.await {
            Ok(Ok(bytes)) => bytes,
            failed => {
                tracing::warn!(?failed, "the journal's files cannot be counted");
                0
            }
        }
    }

    async fn create(&self, request: CreateTopicRequest) -> Result<Topic, Error> {
        let CreateTopicRequest {
            name,
            identity,
            durability,
            queues,
            settings,
        } = request;
        let settings = settings.unwrap_or_else(|| match identity {
            Some(_) => TopicSettings::default(),
            None => {
                let known = self.0.core.published().topics.live(&name);
                known.map_or(TopicSettings::of_new_topic(), |topic| topic.declaration.settings)
            }
        });
        let (id, version) = identity.unwrap_or_else(|| (self.new_id(), 0));
        let topic = Topic {
            name,
            id,
            version,
            durability,
            queues,
            deleted: false,
            settings,
        };
        let declaration = declared(&topic)?;
        self.change(match identity {
            None => Command::CreateTopic(declaration),
            Some(_) => Command::AdoptTopic {
                declaration,
                drop_transactions: false,
            },
        })
        .await
    }

    async fn alter(&self, request: AlterTopicRequest) -> Result<Topic, Error> {
        let declaration = declared(&request.topic)?;
        self.change(Command::AlterTopic(declaration)).await
    }

    async fn delete(&self, request: DeleteTopicRequest) -> Result<Topic, Error> {
        let DeleteTopicRequest {
            name,
            identity,
            drop_transactions,
        } = request;
        let Some((id, version)) = identity else {
            return self
                .change(Command::DeleteTopic {
                    name,
                    drop_transactions,
                })
                .await;
        };
        let known = self.0.core.published().topics.any(&name);
        let known = known.ok_or_else(|| self.0.refusal(&Refusal::UnknownTopic(name)))?;
        let declaration = Declaration {
            id,
            version,
            deleted: true,
            ..known.declaration.clone()
        };
        self.change(Command::AdoptTopic {
            declaration,
            drop_transactions,
        })
        .await
    }

    async fn change(&self, command: Command) -> Result<Topic, Error> {
        self.0.check_alive()?;
        let frees = command.deletes();
        let mut command = log::Command::new(command.encode(), Vec::new());
        if frees {
            command = command.that_frees();
        }
        let answer = self.0.core.propose_one(command, Want::Synced).await;
        match self.0.outcome(answer)? {
            (Outcome::Topic(topic), ..) => Ok(topic),
            (outcome, ..) => Err(unexpected(&outcome)),
        }
    }

    /// Ids rise with time, so that a topic recreated under the same name has the higher one.
    fn new_id(&self) -> TopicId {
        TopicId(self.0.core.clock().now().0 << 20 | fastrand::u64(..1 << 20))
    }
}

impl OwnTopics for Admin {
    fn topics(&self) -> &Topics {
        &self.0.core.published().topics
    }

    async fn adopt(&self, declaration: Declaration) -> Result<(), Error> {
        let adopted = self.change(Command::AdoptTopic {
            declaration,
            drop_transactions: false,
        });
        adopted.await.map(|_| ())
    }
}

/// The declaration that a peer sent, if this broker can keep what it promises.
fn declared(topic: &Topic) -> Result<Declaration, Error> {
    let durability = topic.durability;
    if matches!(durability, Durability::ReplicatedFsynced(_)) {
        return Err(Error::new(
            ErrorCode::Unsupported,
            format!(
                "a topic's durability cannot be `{durability}` at this broker; choose `memory` or `fsynced`"
            ),
        ));
    }
    Declaration::new(topic).map_err(|error| Error::new(ErrorCode::InvalidArgument, error.to_string()))
}
