//! The one connection of a registry to its etcd cluster, shared by the registrar and all watches, and a limit on every
//! wait for it.

use std::fmt;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error};

/// For one request, and for the first message of a stream. etcd answers in milliseconds, or is electing a leader.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// etcd refuses pings that come faster than every 5 s. A silent connection is noticed before a lease of 10 s is over.
const PING_EVERY: Duration = Duration::from_secs(6);
const PONG_WITHIN: Duration = Duration::from_secs(3);

/// Why a request to etcd came to nothing.
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
    /// gRPC's number for what went wrong, if etcd answered at all.
    fn status(&self) -> Option<i32> {
        match self {
            Self::Etcd(Error::GRpcStatus(status)) => Some(i32::from(status.code())),
            _ => None,
        }
    }

    /// The user may not do this. Everything else is worth another try: etcd says INVALID_ARGUMENT also when users were
    /// changed since the token was issued.
    pub(super) fn is_forbidden(&self) -> bool {
        self.status() == Some(7)
    }

    /// The lease that a request named does not exist.
    pub(super) fn is_lease_gone(&self) -> bool {
        // NOT_FOUND of put; the other one is what the client makes of a first keep-alive answer without time left.
        self.status() == Some(5) || matches!(self, Self::Etcd(Error::LeaseKeepAliveError(_)))
    }
}

/// Runs one request under the usual limit.
pub(super) async fn answered<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Trouble> {
    within(ANSWER_WITHIN, request).await
}

/// Runs one request under a limit of its own.
pub(super) async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, Trouble> {
    match tokio::time::timeout(limit, request).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(Trouble::Silent(limit)),
    }
}

/// Connected lazily and anew after a failure: a client whose token is refused does not recover by itself.
pub(super) struct Link {
    endpoints: Vec<String>,
    options: ConnectOptions,
    current: Mutex<Option<Connection>>,
}

/// A client, and which one it is.
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

    /// The connection in use, or a new one. Without a user that succeeds also while etcd is away: requests fail then.
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
        // Two that connect at once: the later one is kept, both work.
        *self.lock() = Some(connection.clone());
        Ok(connection)
    }

    /// Something went wrong over `connection`: the next request gets a new one, unless somebody has made one already.
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
