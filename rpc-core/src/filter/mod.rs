//! The filter interface: code around every call, on both sides. Filters see a request before it is sent
//! (invoker) or handled (provider), and its outcome afterwards; they may answer it themselves.
//!
//! Built in are [`AccessLog`] (`access_log`), [`Metrics`] (`metrics`), [`AuthToken`] (`auth_token`),
//! [`RateLimit`] (`rate_limit`) and [`ConcurrencyLimit`] (`concurrency_limit`), each for both sides, by value
//! or by name with settings: `.filter("rate_limit?per_s=100&burst=20")`. The first filter added to a builder
//! is the outermost.

use std::fmt;
use std::sync::Arc;

mod access_log;
mod auth_token;
mod chain;
mod concurrency_limit;
pub mod metrics;
mod per;
mod rate_limit;

pub use access_log::AccessLog;
pub use auth_token::{AuthToken, TOKEN_KEY};
pub(crate) use chain::through;
pub use concurrency_limit::ConcurrencyLimit;
pub use metrics::Metrics;
pub use per::{Per, UnknownPer};
pub use rate_limit::RateLimit;

use serde::{Deserialize, Serialize};

use crate::BoxFuture;
use crate::error::RpcError;
use crate::message::{Request, Response};
use crate::plugin::{PluginError, Source};

crate::plugin_kind! {
    /// A filter that can be named, as in `.filter("access_log")` or `.filter("rate_limit?per_s=100")`.
    pub struct FilterPlugin for dyn Filter as "filter"
}

/// The side of a call on which a filter runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Side {
    /// Before the request is sent.
    Invoker,
    /// Before the handler runs.
    Provider,
}

/// The step after a filter: the next filter, or finally the call itself.
pub trait Next: Send + Sync {
    /// Runs the rest of the chain.
    fn run<'a>(&'a self, request: Request) -> BoxFuture<'a, Result<Response, RpcError>>;
}

/// Code around a call.
pub trait Filter: Send + Sync + fmt::Debug + 'static {
    /// Handles `request`, usually by passing it on to `next`, at most once. A panic ends the call with `Internal`.
    fn call<'a>(
        &'a self,
        side: Side,
        request: Request,
        next: &'a dyn Next,
    ) -> BoxFuture<'a, Result<Response, RpcError>>;

    /// Its statistics, if it keeps any: these are what the provider's and the invoker's `metrics()` return.
    fn metrics(&self) -> Option<&Metrics> {
        None
    }
}

/// Builds the filters added to a builder, in the same order.
pub(crate) fn build_all(sources: Vec<Source<dyn Filter>>) -> Result<Vec<Arc<dyn Filter>>, PluginError> {
    let build = |source| match source {
        Source::Value(filter) => Ok(filter),
        Source::Named(text) => FilterPlugin::from_text(&text),
    };
    sources.into_iter().map(build).collect()
}
