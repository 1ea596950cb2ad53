//! The ways a call can fail: one typed error that crosses the wire, and what it says about execution.
//!
//! Not here: how an error is encoded (`envelope/`), and which errors are retried (`fault/`).

use std::fmt;
use std::time::Duration;

/// The error type of a method that declares none: it has no values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Never {}

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl std::error::Error for Never {}

/// Whether the handler ran: the only fact that decides whether repeating a call is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Executed {
    /// The handler definitely did not run: any other instance may be tried.
    No,
    /// The request left this process and no answer arrived: only idempotent methods may be repeated.
    Maybe,
    /// The handler ran.
    Yes,
}

/// Why a call failed. The numbers cross the wire and are frozen; an unknown number decodes as
/// [`Code::Internal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Code {
    /// The method's own error; it travels in the details of the answer.
    App = 1,
    /// No such service, version, group or method at the provider.
    NotFound = 2,
    /// The provider could not decode the request.
    BadRequest = 3,
    /// The invoker could not decode the answer.
    BadReply = 4,
    /// The call's time ran out.
    DeadlineExceeded = 5,
    /// The caller, or the shutdown of its invoker, cancelled the call.
    Cancelled = 6,
    /// No instance, no connection, or the connection was lost.
    Unavailable = 7,
    /// A limit was reached; nothing was started.
    Overloaded = 8,
    /// The provider is shutting down; nothing was started.
    Draining = 9,
    /// No token, or a wrong one.
    Unauthenticated = 10,
    /// The token does not allow this.
    Forbidden = 11,
    /// A frame, envelope or attachment exceeds its limit.
    TooLarge = 12,
    /// The peer does not support this version, serializer, compressor or feature.
    Unsupported = 13,
    /// The handler panicked or failed internally; details are in the provider's log.
    Internal = 14,
}

impl Code {
    /// The number that crosses the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The code of a number from the wire; unknown numbers are [`Code::Internal`].
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::App,
            2 => Self::NotFound,
            3 => Self::BadRequest,
            4 => Self::BadReply,
            5 => Self::DeadlineExceeded,
            6 => Self::Cancelled,
            7 => Self::Unavailable,
            8 => Self::Overloaded,
            9 => Self::Draining,
            10 => Self::Unauthenticated,
            11 => Self::Forbidden,
            12 => Self::TooLarge,
            13 => Self::Unsupported,
            _ => Self::Internal,
        }
    }
}

/// One attempt of a call at one instance, as listed in the error of a failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The address that was called.
    pub address: String,
    /// How it ended.
    pub code: Code,
    /// The reason in words.
    pub message: String,
    /// From the start of the attempt to its failure.
    pub elapsed: Duration,
}

/// A failure of the framework (not of the method's own logic).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcError {
    /// What kind of failure.
    pub code: Code,
    /// For people: lower case, with the value and the remedy.
    pub message: String,
    /// Whether the handler ran.
    pub executed: Executed,
    /// The provider's advice: do not retry sooner.
    pub retry_after: Option<Duration>,
    /// All attempts, in order; empty if none left this process.
    pub attempts: Vec<Attempt>,
    /// Fault tolerance chose to ignore the failure: the caller gets the empty value of the result's type, and
    /// this error only if that type has none.
    pub(crate) ignored: bool,
}

impl RpcError {
    /// An error with no attempts and no retry advice.
    #[must_use]
    pub fn new(code: Code, executed: Executed, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            executed,
            retry_after: None,
            attempts: Vec::new(),
            ignored: false,
        }
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({:?}, executed: {:?})",
            self.message, self.code, self.executed
        )?;
        for (index, attempt) in self.attempts.iter().enumerate() {
            let separator = if index == 0 { "; attempts: " } else { ", " };
            write!(
                f,
                "{separator}{} {:?} after {:?}",
                attempt.address, attempt.code, attempt.elapsed
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for RpcError {}

/// How a call fails: with the method's own error, or with a failure of the framework.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError<E = Never> {
    /// The method's own, typed error: the handler ran and returned it.
    App(E),
    /// The framework's error.
    Rpc(RpcError),
}

impl<E> CallError<E> {
    /// Whether the handler ran.
    #[must_use]
    pub const fn executed(&self) -> Executed {
        match self {
            Self::App(_) => Executed::Yes,
            Self::Rpc(error) => error.executed,
        }
    }

    /// The framework's error, if it is one.
    #[must_use]
    pub const fn rpc(&self) -> Option<&RpcError> {
        match self {
            Self::App(_) => None,
            Self::Rpc(error) => Some(error),
        }
    }
}

/// `?` in a handler converts the method's own error.
impl<E> From<E> for CallError<E> {
    fn from(error: E) -> Self {
        Self::App(error)
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(error) => error.fmt(f),
            Self::Rpc(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for CallError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::App(error) => Some(error),
            Self::Rpc(error) => Some(error),
        }
    }
}
