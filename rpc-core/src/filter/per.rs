//! What a limit counts together: all calls, each method, or each peer.

use std::borrow::Cow;
use std::str::FromStr;

use crate::message::Request;
use crate::transport;

/// What [`RateLimit`](super::RateLimit) and [`ConcurrencyLimit`](super::ConcurrencyLimit) count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Per {
    /// All calls that pass the filter.
    All,
    /// Each method of each service separately. The default.
    #[default]
    Method,
    /// Each peer separately: the host it calls from, with all its connections. At the invoker, where there is
    /// no peer, all calls together.
    Peer,
}

/// A word other than `all`, `method` or `peer`.
#[derive(Debug, thiserror::Error)]
#[error("expected `all`, `method` or `peer`")]
pub struct UnknownPer;

impl FromStr for Per {
    type Err = UnknownPer;

    fn from_str(text: &str) -> Result<Self, UnknownPer> {
        match text {
            "all" => Ok(Self::All),
            "method" => Ok(Self::Method),
            "peer" => Ok(Self::Peer),
            _ => Err(UnknownPer),
        }
    }
}

impl Per {
    /// The key under which a request is counted.
    pub(super) fn key(self, request: &Request) -> Cow<'_, str> {
        match self {
            Self::All => Cow::Borrowed(""),
            Self::Method => Cow::Owned(format!("{}/{}", request.route.service, request.method.name)),
            Self::Peer => Cow::Borrowed(transport::host(request.peer.as_deref().unwrap_or_default())),
        }
    }
}
