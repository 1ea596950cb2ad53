//! Health and metrics over HTTP: `/healthz` (the process serves), `/readyz` (it has recovered, listens and is
//! registered), `/metrics` (OpenMetrics text). They reveal nothing about topics or messages.

mod server;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;

pub use server::Server;

use crate::telemetry::{Metrics, resident_bytes};

/// The broker's current health, shared by the tasks that change it.
#[derive(Debug, Default)]
pub struct Health {
    recovered: AtomicBool,
    registered: AtomicBool,
    stopping: AtomicBool,
    failed: AtomicBool,
}

impl Health {
    /// The state is recovered and the port is open.
    pub fn set_recovered(&self) {
        self.recovered.store(true, Ordering::Release);
    }

    /// The registry has the broker's registrations, or has lost them.
    pub fn set_registered(&self, registered: bool) {
        self.registered.store(registered, Ordering::Release);
    }

    /// A graceful stop has started.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The journal failed.
    pub fn set_failed(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Whether the registry has the broker's registrations.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Acquire)
    }

    /// Whether a graceful stop has started.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Why the broker is not ready; empty when it is.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let facts = [
            (!self.recovered.load(Ordering::Acquire), "recovery"),
            (!self.registered.load(Ordering::Acquire), "registration"),
            (self.stopping.load(Ordering::Acquire), "the broker is stopping"),
            (self.failed.load(Ordering::Acquire), "the journal failed"),
        ];
        facts
            .into_iter()
            .filter(|(is, _)| *is)
            .map(|(_, what)| what)
            .collect()
    }
}

/// The data that the routes serve.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The broker's health.
    pub health: Arc<Health>,
    /// The broker's metrics.
    pub metrics: Metrics,
    /// The registry that encodes the metrics.
    pub registry: Arc<Registry>,
}

/// The routes.
pub fn routes(sources: Sources) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(sources)
}

async fn healthz(State(sources): State<Sources>) -> Response {
    if sources.health.failed.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "the journal failed\n").into_response();
    }
    "ok\n".into_response()
}

/// Why the broker is not ready; empty when it is.
fn missing(sources: &Sources) -> Vec<&'static str> {
    let mut missing = sources.health.missing();
    if sources.metrics.checkpoints.overdue.get() != 0 {
        missing.push("no checkpoint could be saved for five minutes, see the log");
    }
    missing
}

async fn readyz(State(sources): State<Sources>) -> Response {
    let missing = missing(&sources);
    if missing.is_empty() {
        // A broker with a full disk is ready: taken out of service, it could not be drained.
        let text = match sources.metrics.disk_full.get() {
            0 => "ready\n",
            1 => "ready, but the disk is nearly full: no messages are accepted\n",
            _ => "ready, but the disk is full: only deletions and ends of transactions are accepted\n",
        };
        return text.into_response();
    }
    let text = format!("not ready: {}\n", missing.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn metrics(State(sources): State<Sources>) -> Response {
    sources.metrics.ready.set(i64::from(missing(&sources).is_empty()));
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, &sources.registry).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    // The memory of the process is inserted before the encoder's end mark.
    text.truncate(text.trim_end_matches("# EOF\n").len());
    if let Some(bytes) = resident_bytes() {
        let written = write!(
            text,
            "# HELP process_resident_memory_bytes Memory in use.\n# TYPE process_resident_memory_bytes gauge\n\
             # UNIT process_resident_memory_bytes bytes\nprocess_resident_memory_bytes {bytes}\n"
        );
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
    }
    text.push_str("# EOF\n");
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
