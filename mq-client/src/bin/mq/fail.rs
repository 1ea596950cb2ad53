//! How a command ends badly: in plain words, with what to do, and with the right exit status.

use std::fmt;
use std::io;

use mq_client::ClientError;
use mq_common::{Error, ErrorCode};

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

/// What a person should do about an error of a broker, where the broker itself cannot know the command line.
pub(crate) fn explained(error: &Error) -> String {
    match error.code {
        ErrorCode::UnknownTopic => format!("{error}; create it with `mq topic create NAME --queues 8`, or see `mq topic list`"),
        ErrorCode::UnknownGroup => format!("{error}; see `mq group list`"),
        ErrorCode::UnknownTransaction => format!("{error}; see `mq txn list`"),
        ErrorCode::OpenTransactions => format!("{error}; see `mq txn list`, or pass `--drop-transactions`"),
        ErrorCode::Unauthenticated => format!("{error}; pass the broker's token with `--token-file F`"),
        _ => error.to_string(),
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.broker_error().map_or_else(|| error.to_string(), explained))
    }
}
