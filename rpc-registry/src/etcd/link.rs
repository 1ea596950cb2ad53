//! The connection of a registry to its etcd cluster, shared by the registrar and all watches, with a limit on
//! every wait for it.

use std::fmt;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error};

/// Time-out of one request, and of the first message of a stream. etcd answers in milliseconds, or is
/// electing a leader.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// etcd refuses pings that arrive more often than every 5 s. A silent connection is noticed before a lease of
/// 10 s ends.
const PING_EVERY: Duration = Duration::from_secs(6);
const PONG_WITHIN: Duration = Duration::from_secs(3);

/// Why a request to etcd failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Etcd(#[from] Error),
    #[error("the stream ended")]
    Ended,
}

impl Trouble {
    /// gRPC's status code, if etcd answered at all.
    fn status(&self) -> Option<i32> {
        match self {
            Self::Etcd(Error::GRpcStatus(status)) => Some(i32::from(status.code())),
            _ => None,
        }
    }

    /// The user may not do this. Everything else is worth another attempt: etcd also returns INVALID_ARGUMENT
    /// when users were changed since the token was issued.
    pub(super) fn is_forbidden(&self) -> bool {
        self.status() == Some(7)
    }

    /// The lease that a request named does not exist.
    pub(super) fn is_lease_gone(&self) -> bool {
        // NOT_FOUND of put; the client turns a first keep-alive answer without remaining time into the other
        // error.
        self.status() == Some(5) || matches!(self, Self::Etcd(Error::LeaseKeepAliveError(_)))
    }
}

/// Runs one request under the usual time-out.
pub(super) async fn answered<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Trouble> {
    within(ANSWER_WITHIN, request).await
}

/// Runs one request under a time-out of its own.
pub(super) async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, Trouble> {
    match tokio::time::timeout(limit, request).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(Trouble::Silent(limit)),
    }
}

/// Connects lazily, and again after a failure: a client whose token is refused does not recover by itself.
pub(super) struct Link {
    endpoints: Vec<String>,
    options: ConnectOptions,
    current: Mutex<Option<Connection>>,
}

/// A client and its identity.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    number: u64,
}

impl Link {
    pub(super) fn new(endpoints: Vec<String>, user: Option<(String, String)>) -> Self {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(ANSWER_WITHIN)
            .with_keep_alive(PING_EVERY, PONG_WITHIN)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some((name, password)) = user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        Self {
            endpoints,
            options,
            current: Mutex::new(None),
        }
    }

    pub(super) fn endpoints(&self) -> String {
        format!("etcd://{}", self.endpoints.join(","))
    }

    /// The current connection, or a new one. Without a user this succeeds even while etcd is away: requests
    /// fail then.
    pub(super) async fn connection(&self) -> Result<Connection, Trouble> {
        let current = self.lock().clone();
        if let Some(connection) = current {
            return Ok(connection);
        }
        let client = answered(Client::connect(&self.endpoints, Some(self.options.clone()))).await?;
        let connection = Connection {
            client,
            number: fastrand::u64(..),
        };
        // If two connect at once, the later connection is kept; both work.
        *self.lock() = Some(connection.clone());
        Ok(connection)
    }

    /// `connection` has failed: the next request gets a new one, unless another task has made one already.
    pub(super) fn forget(&self, connection: &Connection) {
        self.lock().take_if(|current| current.number == connection.number);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Link {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}
