//! The filter seam: code around every call, on both sides. Filters see a request before it is sent (invoker) or handled
//! (provider) and its outcome afterwards; they may answer in its place.

use std::fmt;
use std::sync::Arc;

mod access_log;
mod chain;

pub use access_log::AccessLog;
pub(crate) use chain::through;

use crate::BoxFuture;
use crate::error::RpcError;
use crate::message::{Request, Response};
use crate::plugin::{PluginError, Source};

crate::plugin_kind! {
    /// A filter that can be named, as in `.filter("access_log")`.
    pub struct FilterPlugin for dyn Filter as "filter"
}

/// On which side of a call a filter runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Before the request is sent.
    Invoker,
    /// Before the handler runs.
    Provider,
}

/// What comes after a filter: the next filter, at last the call itself.
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
}

/// The filters that a builder was given, in the same order.
pub(crate) fn build_all(sources: Vec<Source<dyn Filter>>) -> Result<Vec<Arc<dyn Filter>>, PluginError> {
    let build = |source| match source {
        Source::Value(filter) => Ok(filter),
        Source::Named(text) => FilterPlugin::from_text(&text),
    };
    sources.into_iter().map(build).collect()
}
