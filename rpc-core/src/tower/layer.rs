//! A filter as a tower layer.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::oneshot;
use crate::BoxFuture;
use crate::error::RpcError;
use crate::filter::{Filter, Next, Side};
use crate::message::{Request, Response};

/// Puts a filter around a tower service of requests, such as a [`Channel`](super::Channel).
///
/// ```
/// use std::sync::Arc;
/// use rpc_core::filter::{Metrics, RateLimit, Side};
/// use rpc_core::tower::{Channel, FilterLayer};
/// use rpc_core::{Invoker, Provider};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[rpc_core::service(name = "doc.Greeter")] pub trait Greeter { async fn greet(&self, name: String) -> String; }
/// # struct Polite;
/// # impl Greeter for Polite { async fn greet(&self, name: String) -> String { format!("hello, {name}") } }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let provider = Provider::builder().serve(GreeterServer::new(Polite)).start().await?;
/// let invoker = Invoker::builder().direct([provider.local_addr()]).build().await?;
/// let channel = Channel::new(&invoker);
/// let metrics = Arc::new(Metrics::default());
/// let service = ServiceBuilder::new()
///     .layer(FilterLayer::new(Arc::clone(&metrics), Side::Invoker))
///     .layer(FilterLayer::new(Arc::new(RateLimit::new(100.0, 10)), Side::Invoker))
///     .service(channel.clone());
/// let request = channel.request(GreeterClient::NAME, &GreeterClient::METHODS[0], &("ada",))?;
/// let response = service.oneshot(request).await?;
/// assert_eq!(channel.value::<String>(&response)?, "hello, ada");
/// assert_eq!(metrics.snapshot()[0].ok, 1);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct FilterLayer {
    filter: Arc<dyn Filter>,
    side: Side,
}

impl FilterLayer {
    /// The filter, running as if on this side.
    #[must_use]
    pub fn new(filter: Arc<impl Filter>, side: Side) -> Self {
        Self { filter, side }
    }
}

impl<S> Layer<S> for FilterLayer {
    type Service = FilterService<S>;

    fn layer(&self, inner: S) -> FilterService<S> {
        FilterService {
            filter: Arc::clone(&self.filter),
            side: self.side,
            inner,
        }
    }
}

/// A tower service with a filter around it.
#[derive(Clone)]
pub struct FilterService<S> {
    filter: Arc<dyn Filter>,
    side: Side,
    inner: S,
}

impl<S> fmt::Debug for FilterService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilterService")
            .field("filter", &self.filter)
            .field("side", &self.side)
            .finish_non_exhaustive()
    }
}

/// The service inside the filter.
struct Inner<S>(Mutex<S>);

impl<S> Next for Inner<S>
where
    S: Service<Request, Response = Response, Error = RpcError> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    fn run<'a>(&'a self, request: Request) -> BoxFuture<'a, Result<Response, RpcError>> {
        let service = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(oneshot(service, request))
    }
}

impl<S> Service<Request> for FilterService<S>
where
    S: Service<Request, Response = Response, Error = RpcError> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = RpcError;
    type Future = BoxFuture<'static, Result<Response, RpcError>>;

    /// Always: the service inside the filter is waited for when the filter passes a request on, which may
    /// never happen.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RpcError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let (filter, side) = (Arc::clone(&self.filter), self.side);
        let inner = Inner(Mutex::new(self.inner.clone()));
        Box::pin(async move { filter.call(side, request, &inner).await })
    }
}
