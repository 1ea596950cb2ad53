//! How commands fail: with a message for people that says what to do, and with the right exit status.

use std::fmt;
use std::io;

use mq_client::error::AdminError;
use mq_client::{ClientError, ConsumeError, SendError};
use mq_common::ids::{InvalidName, ShardName};
use mq_common::{Error, ErrorCode};
use rpc_core::plugin::PluginError;
use rpc_core::{Code, RpcError};

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It failed, for this reason.
    Failed(String),
    /// Its arguments are wrong.
    Usage(String),
    /// It failed and has already printed the reason.
    Said,
    /// The reader of stdout has closed it, which is not an error.
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

    /// A failure with this message.
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

/// The message of a broker's error. It says what to do, but cannot know how a token is passed to this
/// program.
pub(crate) fn explained(error: &Error) -> String {
    match error.code {
        ErrorCode::Unauthenticated => format!("{error}; {TOKEN_HINT}"),
        _ => error.to_string(),
    }
}

/// The message of an RPC error, with a hint where this program can help. Its code and attempts are for
/// programs.
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
            // A URL that does not parse, or an unknown registry: the flags are wrong.
            ClientError::Plugin(error) => Self::Usage(registry(&error)),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Explains a wrong `--registry` to users; the error's own text is for programmers who link plug-ins.
fn registry(error: &PluginError) -> String {
    let expected = "expected `etcd://host:port` or `mq://host:port` (the brokers' own registry)";
    match error {
        PluginError::Url { url } if url == "embedded" => "`embedded` is the name of a broker's own registry in its configuration; name that broker with `--broker host:port` instead"
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

/// The message of a failed send.
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

/// Fails if some brokers did not answer, so that the output is incomplete.
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
