//! How the client fails, and what is known of the outcome then.

use std::time::Duration;

use mq_common::ErrorCode;
use mq_common::batch::BatchError;
use mq_common::ids::{InvalidName, ShardName, TopicName};
use rpc_core::plugin::PluginError;
use rpc_core::registry::RegistryError;
use rpc_core::{CallError, Executed, InvokerError, RpcError};

/// Why a client cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Neither brokers nor a registry were named.
    #[error("a client needs `.brokers([..])` or `.registry(..)`")]
    Source,
    /// A plug-in cannot be had.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The registry refuses.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The invoker cannot be built.
    #[error(transparent)]
    Invoker(#[from] InvokerError),
}

/// Why it is not known where a topic's queues lie.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// Every broker was asked and none has it.
    #[error("no topic `{topic}`; create it with `mq topic create {topic} --queues N`")]
    UnknownTopic {
        /// The topic.
        topic: TopicName,
    },
    /// The registry shows no broker.
    #[error(
        "no broker is registered; start `mq-broker`, or check the address given to `--broker` or `--registry`"
    )]
    NoBrokers,
    /// Nothing was heard from the registry.
    #[error(
        "the registry does not answer; check that it runs, and the address given to `--registry` or `--broker`"
    )]
    RegistrySilent,
    /// The registry shows brokers, but not this one.
    #[error("broker `{shard}` is not registered, {}; start it, or check its name", registered(.known))]
    Unregistered {
        /// The broker asked for.
        shard: ShardName,
        /// The brokers that are registered.
        known: Vec<ShardName>,
    },
    /// Brokers that may know it did not answer.
    #[error("topic `{topic}` was not found, and not every broker could be asked: {reason}")]
    Unreachable {
        /// The topic.
        topic: TopicName,
        /// Who did not answer, and why.
        reason: String,
    },
    /// The client was shut down.
    #[error("the client was shut down")]
    Closed,
    /// The topic has no such queue.
    #[error("topic `{topic}` has {queues} queues, there is no queue {queue}")]
    UnknownQueue {
        /// The topic.
        topic: TopicName,
        /// The queue asked for.
        queue: u32,
        /// How many it has.
        queues: usize,
    },
}

/// What is known of a failed send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Nothing was appended: sending again is safe.
    Definite,
    /// It may have been appended or not: sending again may make a duplicate.
    Unknown,
}

/// Why a send failed. Messages of one batch fail together, with clones of one error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The broker refused it.
    #[error("{0}")]
    Broker(mq_common::Error),
    /// The call failed.
    #[error("{0}")]
    Rpc(RpcError),
    /// It is not known where to send it.
    #[error(transparent)]
    Route(RouteError),
    /// The message breaks a limit.
    #[error(transparent)]
    Message(#[from] BatchError),
    /// The bytes queued and under way have reached their limit.
    #[error("{limit} bytes of messages are queued or under way, the limit; wait, or raise `in_flight_bytes`")]
    Overloaded {
        /// The limit.
        limit: usize,
    },
    /// Its time ran out before it was sent.
    #[error("not sent within {after:?}: {reason}")]
    TimedOut {
        /// How long it was waiting.
        after: Duration,
        /// What it was waiting for.
        reason: String,
    },
    /// A transaction lives on one broker; these messages belong to several.
    #[error(
        "the messages of a transaction must go to one broker; their keys or queues belong to `{first}` and `{second}`"
    )]
    SeveralBrokers {
        /// One of them.
        first: ShardName,
        /// Another.
        second: ShardName,
    },
    /// A transaction needs a message.
    #[error("a transaction needs at least one message")]
    Empty,
    /// The client was shut down before it was sent.
    #[error("the client was shut down")]
    Closed,
}

impl SendError {
    /// Whether it is known that nothing was appended.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        let definite = match self {
            Self::Broker(error) => error.is_definite(),
            Self::Rpc(error) => matches!(error.executed, Executed::No),
            _ => true,
        };
        if definite {
            Outcome::Definite
        } else {
            Outcome::Unknown
        }
    }

    /// The broker's code, if the broker refused.
    #[must_use]
    pub const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Broker(error) => Some(error.code),
            _ => None,
        }
    }
}

impl From<RouteError> for SendError {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Closed => Self::Closed,
            error => Self::Route(error),
        }
    }
}

impl From<CallError<mq_common::Error>> for SendError {
    fn from(error: CallError<mq_common::Error>) -> Self {
        match error {
            CallError::App(error) => Self::Broker(error),
            CallError::Rpc(error) => Self::Rpc(error),
        }
    }
}

/// Why a consumer cannot start, or stopped by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    /// A name breaks the rule for names.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// It is not known where the topic's queues lie.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A broker does not take it as a member.
    #[error("broker `{shard}` refuses the consumer: {error}")]
    Refused {
        /// The broker.
        shard: ShardName,
        /// What it said.
        error: mq_common::Error,
    },
    /// No broker that has queues of the topic answered.
    #[error("broker `{shard}` cannot be reached: {error}")]
    Unreachable {
        /// One of them.
        shard: ShardName,
        /// What happened.
        error: RpcError,
    },
    /// The cursor lies outside of the queue, and the consumer was told to stop then.
    #[error("queue {queue} has offsets from {start} to {end}, the group stands at {cursor}")]
    OutOfRange {
        /// The queue.
        queue: u32,
        /// Where the group stands.
        cursor: u64,
        /// First offset there is.
        start: u64,
        /// End of the queue.
        end: u64,
    },
    /// The queue went to another member; what was not acked is delivered there.
    #[error("queue {queue} belongs to another member now")]
    Lost {
        /// The queue.
        queue: u32,
    },
    /// Two consumers were registered under one name.
    #[error("consumer `{name}` is registered twice")]
    Duplicate {
        /// The name.
        name: &'static str,
    },
    /// The client was shut down.
    #[error("the client was shut down")]
    Closed,
}

/// Why a management call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// A name breaks the rule for names.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The topic or the brokers cannot be found.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A broker refused.
    #[error("broker `{shard}`: {error}")]
    Broker {
        /// The broker.
        shard: ShardName,
        /// What it said.
        error: mq_common::Error,
    },
    /// A broker could not be called.
    #[error("broker `{shard}`: {error}")]
    Rpc {
        /// The broker.
        shard: ShardName,
        /// What happened.
        error: RpcError,
    },
    /// Some brokers did it and others did not; repeating the call completes it.
    #[error("done at {}, but not at {}; repeat it to complete it", list(.done), reasons(.failed))]
    Partial {
        /// The brokers that did it.
        done: Vec<ShardName>,
        /// The others, with what they said.
        failed: Vec<(ShardName, String)>,
    },
    /// A topic of that name exists with other properties.
    #[error(
        "topic `{topic}` exists with {queues} queues and durability {durability}; choose another name, or delete it first"
    )]
    TopicExists {
        /// The topic.
        topic: TopicName,
        /// How many queues it has.
        queues: usize,
        /// Its floor.
        durability: mq_common::ids::Durability,
    },
    /// Brokers that may have a topic of that name did not answer: created now, the name could have two owners.
    #[error(
        "whether a topic `{topic}` exists already is not known, no answer from {}; repeat it when they answer, or when their registration has ended",
        reasons(.silent)
    )]
    MayExist {
        /// The topic.
        topic: TopicName,
        /// Who did not answer, and why.
        silent: Vec<(ShardName, String)>,
    },
    /// The topic exists with other settings.
    #[error("topic `{topic}` exists with other settings; change them with `mq topic alter {topic}`")]
    OtherSettings {
        /// The topic.
        topic: TopicName,
    },
    /// The settings make no sense.
    #[error(transparent)]
    Settings(#[from] mq_common::api::InvalidSettings),
    /// A topic only gets more queues.
    #[error(
        "topic `{topic}` has {known} queues and cannot have {queues}: queues are never taken away, they hold messages"
    )]
    FewerQueues {
        /// The topic.
        topic: TopicName,
        /// As asked.
        queues: u32,
        /// As it is.
        known: usize,
    },
    /// The number of queues is out of range.
    #[error("{queues} queues are not possible; expected 1 to {limit}")]
    Queues {
        /// As asked.
        queues: u32,
        /// At most.
        limit: u32,
    },
}

impl AdminError {
    pub(crate) fn of(shard: &ShardName, error: CallError<mq_common::Error>) -> Self {
        let shard = shard.clone();
        match error {
            CallError::App(error) => Self::Broker { shard, error },
            CallError::Rpc(error) => Self::Rpc { shard, error },
        }
    }
}

/// What went wrong with a call, in words for people: codes, outcome and attempts are in the error itself.
pub(crate) fn words(error: &CallError<mq_common::Error>) -> String {
    match error {
        CallError::App(error) => error.to_string(),
        CallError::Rpc(error) => error.message.clone(),
    }
}

fn registered(known: &[ShardName]) -> String {
    match known {
        [] => "nor is any other".to_owned(),
        known => format!("registered: {}", list(known)),
    }
}

fn list(shards: &[ShardName]) -> String {
    let names: Vec<_> = shards.iter().map(|shard| format!("`{shard}`")).collect();
    names.join(", ")
}

fn reasons(failed: &[(ShardName, String)]) -> String {
    let words: Vec<_> = failed
        .iter()
        .map(|(shard, reason)| format!("`{shard}` ({reason})"))
        .collect();
    words.join(", ")
}
