//! To and from tower (cargo feature `tower`): a stack of layers as a filter ([`TowerFilter`]), a filter as a layer
//! ([`FilterLayer`]), and the calls of an invoker as a service ([`Channel`]).
//!
//! tower is an adapter here and not the core: its `poll_ready` with `&mut self` has to be cloned around, and none of that
//! is paid where it is not used.

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

/// What layers fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Waits until the service is ready, and calls it.
async fn oneshot<S: Service<R>, R>(mut service: S, request: R) -> Result<S::Response, S::Error> {
    poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}
