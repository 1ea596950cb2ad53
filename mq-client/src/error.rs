//! The client's errors, and what they say about the outcome.

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
    /// A plug-in could not be found or built.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The registry refused the subscription.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The invoker could not be built.
    #[error(transparent)]
    Invoker(#[from] InvokerError),
}

/// Why a topic's queues or a broker could not be located.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// Every broker was asked, and none has the topic.
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
    /// The registry has not answered.
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
    /// Brokers that may have the topic did not answer.
    #[error("topic `{topic}` was not found, and not every broker could be asked: {reason}")]
    Unreachable {
        /// The topic.
        topic: TopicName,
        /// The brokers that did not answer, and why.
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

/// What is known about a failed send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Nothing was appended: sending again is safe.
    Definite,
    /// It may or may not have been appended: sending again may create a duplicate.
    Unknown,
}

/// Why a send failed. Messages of one batch fail together, with clones of one error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The broker refused the batch.
    #[error("{0}")]
    Broker(mq_common::Error),
    /// The call failed.
    #[error("{0}")]
    Rpc(RpcError),
    /// The topic's queues or its broker could not be located.
    #[error(transparent)]
    Route(RouteError),
    /// The message breaks a limit.
    #[error(transparent)]
    Message(#[from] BatchError),
    /// The producer's byte budget is used up.
    #[error(
        "{limit} bytes of messages are queued or in flight, which is the limit; wait, or raise `in_flight_bytes`"
    )]
    Overloaded {
        /// The limit.
        limit: usize,
    },
    /// It timed out before it was sent.
    #[error("not sent within {after:?}: {reason}")]
    TimedOut {
        /// How long it had been waiting.
        after: Duration,
        /// What it had been waiting for.
        reason: String,
    },
    /// A transaction lives on one broker, but the keys or queues of its messages belong to several.
    #[error(
        "the messages of a transaction must go to one broker; their keys or queues belong to `{first}` and `{second}`"
    )]
    SeveralBrokers {
        /// One of these brokers.
        first: ShardName,
        /// Another one.
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
    /// Whether nothing was appended for certain, or the message may still have been appended.
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

/// Why a consumer could not start, or stopped by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    /// A name is invalid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The topic's queues could not be located.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A broker refused it as a member of the group.
    #[error("broker `{shard}` refuses the consumer: {error}")]
    Refused {
        /// The broker.
        shard: ShardName,
        /// Its answer.
        error: mq_common::Error,
    },
    /// No broker that has queues of the topic answered.
    #[error("broker `{shard}` cannot be reached: {error}")]
    Unreachable {
        /// One of them.
        shard: ShardName,
        /// The error of the call.
        error: RpcError,
    },
    /// The cursor lies outside the queue, and the consumer is configured to stop then.
    #[error("queue {queue} has offsets from {start} to {end}, the group is at {cursor}")]
    OutOfRange {
        /// The queue.
        queue: u32,
        /// The group's cursor.
        cursor: u64,
        /// First offset of the queue.
        start: u64,
        /// End of the queue.
        end: u64,
    },
    /// The queue was reassigned to another member; what was not acked is delivered there.
    #[error("queue {queue} belongs to another member now")]
    Reassigned {
        /// The queue.
        queue: u32,
    },
    /// Two consumers were registered with the same name.
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
    /// A name is invalid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The topic or a broker could not be located.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A broker refused.
    #[error("broker `{shard}`: {error}")]
    Broker {
        /// The broker.
        shard: ShardName,
        /// Its answer.
        error: mq_common::Error,
    },
    /// The call to a broker failed.
    #[error("broker `{shard}`: {error}")]
    Rpc {
        /// The broker.
        shard: ShardName,
        /// The error of the call.
        error: RpcError,
    },
    /// The call succeeded at some brokers and failed at others; repeating it completes it.
    #[error("done at {}, but not at {}; repeat it to complete it", list(.done), reasons(.failed))]
    Partial {
        /// The brokers where it succeeded.
        done: Vec<ShardName>,
        /// The other brokers, with the reason.
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
    /// Brokers that may have a topic of that name did not answer. Created now, the name could have two
    /// authorities.
    #[error(
        "it is unknown whether a topic `{topic}` exists already: no answer from {}; repeat it when they answer, or when their registration has ended",
        reasons(.silent)
    )]
    MayExist {
        /// The topic.
        topic: TopicName,
        /// The brokers that did not answer, and why.
        silent: Vec<(ShardName, String)>,
    },
    /// The topic exists with other settings.
    #[error("topic `{topic}` exists with other settings; change them with `mq topic alter {topic}`")]
    OtherSettings {
        /// The topic.
        topic: TopicName,
    },
    /// The settings are out of range or contradict each other.
    #[error(transparent)]
    Settings(#[from] mq_common::api::InvalidSettings),
    /// The number of a topic's queues can only be increased.
    #[error(
        "topic `{topic}` has {known} queues and cannot have {queues}: queues are never removed, they hold messages"
    )]
    FewerQueues {
        /// The topic.
        topic: TopicName,
        /// The number asked for.
        queues: u32,
        /// The number it has.
        known: usize,
    },
    /// The number of queues is out of range.
    #[error("{queues} queues are not possible; expected 1 to {limit}")]
    Queues {
        /// The number asked for.
        queues: u32,
        /// The most that are possible.
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

/// The reason a call failed, in words for people; codes, outcome and attempts are in the error itself.
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
