//! A small HTTP server with bounded connections and a deadline for headers, which ends with the stop token.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once; more wait in the system's listen queue.
const CONNECTIONS_MAX: usize = 256;
/// Deadline for a request's headers, and so the time that an idle connection is kept open.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after an error of `accept`, such as too few file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A running HTTP server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    /// Binds and serves until [`Server::close`].
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(address: &str, routes: Router) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let server = Self {
            address: listener.local_addr()?,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let (tasks, stop) = (server.tasks.clone(), server.stop.clone());
        server.tasks.spawn(accept(listener, routes, tasks, stop));
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections and waits for their tasks.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn accept(listener: TcpListener, routes: Router, tasks: TaskTracker, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let next = async || {
        let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
        let (socket, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "http server cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                return None;
            }
        };
        Some((slot, socket))
    };
    while let Some(accepted) = stop.run_until_cancelled(next()).await {
        let Some((slot, socket)) = accepted else { continue };
        let (routes, stop) = (routes.clone(), stop.clone());
        tasks.spawn(async move {
            let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
            builder
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_DEADLINE);
            let connection = builder.serve_connection(TokioIo::new(socket), TowerToHyperService::new(routes));
            if let Some(Err(error)) = stop.run_until_cancelled(connection).await {
                tracing::debug!(%error, "http connection ended");
            }
            drop(slot);
        });
    }
}
