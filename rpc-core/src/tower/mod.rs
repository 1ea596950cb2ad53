//! Adapters to and from tower (cargo feature `tower`): a stack of layers as a filter ([`TowerFilter`]), a
//! filter as a layer ([`FilterLayer`]), and the calls of an invoker as a service ([`Channel`]).
//!
//! tower is an adapter here and not the core: its `poll_ready` with `&mut self` requires cloning, and
//! programs that do not use it should not pay for that.

use std::future::poll_fn;

use tower_service::Service;

mod channel;
mod filter;
mod layer;
mod relay;

pub use channel::Channel;
pub use filter::TowerFilter;
pub use layer::{FilterLayer, FilterService};
pub use relay::{Onward, TowerRequest};

/// The error of a layer.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Waits until the service is ready, then calls it.
async fn oneshot<S: Service<R>, R>(mut service: S, request: R) -> Result<S::Response, S::Error> {
    poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}
