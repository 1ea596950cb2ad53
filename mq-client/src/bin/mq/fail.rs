//! How a command ends badly: in plain words, with what to do, and with the right exit status.

use std::fmt;
use std::io;

use mq_client::error::AdminError;
use mq_client::{ClientError, ConsumeError, SendError};
use mq_common::ids::{InvalidName, ShardName};
use mq_common::{Error, ErrorCode};
use rpc_core::plugin::PluginError;
use rpc_core::{Code, RpcError};

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It failed; this is why.
    Failed(String),
    /// It was called wrongly.
    Usage(String),
    /// It failed and has said so already.
    Said,
    /// Nobody reads stdout any more: no fault of anybody.
    ReaderGone,
}

/// What commands return.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// The process's exit status.
    pub(crate) const fn exit_status(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Said => 1,
            Self::Usage(_) => 2,
            Self::ReaderGone => 0,
        }
    }

    /// A failure with these words.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(message) | Self::Usage(message) => f.write_str(message),
            Self::Said | Self::ReaderGone => Ok(()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::Failed(format!("cannot write the output: {error}")),
        }
    }
}

/// An error of a broker. It says itself what to do, only how this command line is given a token it cannot know.
pub(crate) fn explained(error: &Error) -> String {
    match error.code {
        ErrorCode::Unauthenticated => format!("{error}; {TOKEN_HINT}"),
        _ => error.to_string(),
    }
}

/// An error of the framework, with what to do where the command line can help. Its code and the list of attempts are
/// for programs.
pub(crate) fn explained_rpc(error: &RpcError) -> String {
    match error.code {
        Code::Unauthenticated => format!("{}; {TOKEN_HINT}", error.message),
        _ => error.message.clone(),
    }
}

const TOKEN_HINT: &str = "pass the broker's token with `--token-file F`";

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            // A URL that does not parse, a registry that is not there: a matter of the flags.
            ClientError::Plugin(error) => Self::Usage(registry(&error)),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// A wrong `--registry` in words for who types it; the error itself speaks to who links plug-ins.
fn registry(error: &PluginError) -> String {
    let expected =
        "expected `etcd://host:port` or `mq://host:port` (the registry that brokers carry with them)";
    match error {
        PluginError::Url { url } if url == "embedded" => "`embedded` is what a broker calls the registry of its own; here name that broker, with `--broker host:port`"
            .to_owned(),
        PluginError::Url { url } => format!("`{url}` is not a registry's URL; {expected}"),
        PluginError::Unknown { name, .. } => format!("there is no registry `{name}`; {expected}"),
        PluginError::Setting { key, reason } if key == "address" => format!("`--registry`: {reason}"),
        other => format!("`--registry`: {other}"),
    }
}

impl From<InvalidName> for Failure {
    fn from(error: InvalidName) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        match &error {
            AdminError::Name(_) | AdminError::Queues { .. } | AdminError::Settings(_) => {
                Self::Usage(error.to_string())
            }
            AdminError::Broker { shard, error } => {
                Self::Failed(format!("broker `{shard}`: {}", explained(error)))
            }
            AdminError::Rpc { shard, error } => {
                Self::Failed(format!("broker `{shard}`: {}", explained_rpc(error)))
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        Self::Failed(sending(&error))
    }
}

/// A failed send in words.
pub(crate) fn sending(error: &SendError) -> String {
    match error {
        SendError::Broker(error) => explained(error),
        SendError::Rpc(error) => explained_rpc(error),
        _ => error.to_string(),
    }
}

impl From<ConsumeError> for Failure {
    fn from(error: ConsumeError) -> Self {
        match &error {
            ConsumeError::Name(_) => Self::Usage(error.to_string()),
            ConsumeError::Refused { shard, error } => Self::Failed(format!(
                "broker `{shard}` refuses the consumer: {}",
                explained(error)
            )),
            ConsumeError::Unreachable { shard, error } => Self::Failed(format!(
                "broker `{shard}` cannot be reached: {}",
                explained_rpc(error)
            )),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Some brokers did not answer: what was printed is not all there is.
pub(crate) fn all_answered(silent: &[(ShardName, String)]) -> Outcome {
    if silent.is_empty() {
        return Ok(());
    }
    let silent: Vec<String> = silent
        .iter()
        .map(|(shard, reason)| format!("broker `{shard}`: {reason}"))
        .collect();
    Err(Failure::new(format!(
        "incomplete, no answer from {}",
        silent.join("; ")
    )))
}
