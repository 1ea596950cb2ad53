//! The answers of the `_admin` service. Durations are in whole milliseconds; counts start with the provider.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::super::Core;
use super::super::connection::Connection;
use super::super::method_gate::MethodGate;
use crate::call::now;
use crate::message::Method;
use crate::plugin::Linked;

/// A provider as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Overview {
    /// The version of this crate.
    pub version: String,
    /// The name for people; empty if none was set.
    pub name: String,
    /// The address it is bound to.
    pub address: String,
    /// Time since its start.
    pub uptime_ms: u64,
    /// Whether it no longer accepts new connections and requests.
    pub draining: bool,
    /// Connections open now.
    pub connections: u64,
    /// Requests running now, including this one.
    pub in_flight: u64,
    /// Bytes of their bodies.
    pub in_flight_bytes: u64,
    /// Its limits.
    pub limits: LimitsReport,
}

/// The limits of a provider. Those of its methods are in [`MethodReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LimitsReport {
    /// Connections at once.
    pub connections_max: u64,
    /// Connections at once from one host.
    pub address_connections_max: u64,
    /// Requests at once.
    pub in_flight_max: u64,
    /// Bytes of their bodies.
    pub in_flight_bytes_max: u64,
    /// Requests at once on one connection.
    pub connection_in_flight_max: u64,
    /// `#[rpc(blocking)]` methods at once.
    pub blocking_max: u64,
    /// Bytes of one request's body.
    pub body_bytes_max: u64,
    /// Bytes of answers not yet written on one connection.
    pub unwritten_bytes_max: u64,
    /// Silence after which a connection is closed.
    pub idle_timeout_ms: u64,
    /// Time to show a token, if one is required.
    pub handshake_timeout_ms: u64,
    /// Time in which an incomplete frame has to gain bytes.
    pub frame_timeout_ms: u64,
    /// Time in which a peer has to take some of its answers.
    pub write_timeout_ms: u64,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServiceReport {
    /// Its name on the wire.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its group.
    pub group: String,
    /// Its methods, in the order of the trait.
    pub methods: Vec<MethodReport>,
}

/// One method and the counts of its calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MethodReport {
    /// Its name.
    pub name: String,
    /// `#[rpc(idempotent)]`.
    pub idempotent: bool,
    /// `#[rpc(blocking)]`.
    pub blocking: bool,
    /// It answers with a stream.
    pub streaming: bool,
    /// `#[rpc(long_poll)]`.
    pub long_poll: bool,
    /// Calls that may run at once now: fewer while the method is slow.
    pub in_flight_max: u64,
    /// Calls running now.
    pub in_flight: u64,
    /// Calls admitted.
    pub calls: u64,
    /// Calls refused because too many ran.
    pub refused: u64,
    /// Calls that ended with an error of the framework.
    pub failures: u64,
    /// Calls that ended with the method's own error.
    pub app_errors: u64,
    /// Calls that took longer than the limit for slow calls; 0 for a method that never counts as slow.
    pub slow_calls: u64,
    /// Whether it counts as slow now.
    pub slow: bool,
    /// Times that its handler was found to hold a thread of the runtime for
    /// [`HANDLER_BLOCKS`](crate::limits::HANDLER_BLOCKS) or more without awaiting. A sample: one call in 32
    /// is timed.
    pub blocked: u64,
}

/// One open connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ConnectionReport {
    /// Its remote address.
    pub peer: String,
    /// Time since it was accepted.
    pub age_ms: u64,
    /// Whether the peer has sent HELLO.
    pub greeted: bool,
    /// Requests admitted since then.
    pub calls: u64,
    /// Requests running now.
    pub in_flight: u64,
    /// Bytes of answers not yet written.
    pub unwritten_bytes: u64,
}

/// One plug-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PluginReport {
    /// Its kind, as in "filter".
    pub kind: String,
    /// The name by which it is chosen.
    pub name: String,
    /// `crate (file:line)` of its registration.
    pub origin: String,
}

impl Overview {
    pub(super) fn of(core: &Core) -> Self {
        let limits = &core.limits;
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: core.name.clone(),
            address: core.address.clone(),
            uptime_ms: ms(now().saturating_duration_since(core.clock.start)),
            draining: core.farewell.is_cancelled(),
            connections: core.connections() as u64,
            in_flight: core.load.requests(),
            in_flight_bytes: core.load.bytes(),
            limits: LimitsReport {
                connections_max: limits.connections_max as u64,
                address_connections_max: limits.address_connections_max as u64,
                in_flight_max: limits.in_flight_max as u64,
                in_flight_bytes_max: limits.in_flight_bytes_max as u64,
                connection_in_flight_max: limits.connection_in_flight_max as u64,
                blocking_max: limits.blocking_max as u64,
                body_bytes_max: limits.body_bytes_max as u64,
                unwritten_bytes_max: limits.unwritten_bytes_max as u64,
                idle_timeout_ms: ms(limits.idle_timeout),
                handshake_timeout_ms: ms(limits.handshake_timeout),
                frame_timeout_ms: ms(limits.frame_timeout),
                write_timeout_ms: ms(limits.write_timeout),
            },
        }
    }
}

impl ServiceReport {
    pub(super) fn all(core: &Core) -> Vec<Self> {
        let service =
            |(route, methods, gates): (&std::sync::Arc<crate::message::Route>, &[Method], &[MethodGate])| {
                let methods = methods.iter().zip(gates);
                Self {
                    name: route.service.clone(),
                    version: route.version.clone(),
                    group: route.group.clone(),
                    methods: methods
                        .map(|(method, gate)| MethodReport::of(core, method, gate))
                        .collect(),
                }
            };
        core.router.methods().map(service).collect()
    }
}

impl MethodReport {
    fn of(core: &Core, method: &Method, gate: &MethodGate) -> Self {
        let figures = gate.figures(&core.clock);
        Self {
            name: method.name.to_string(),
            idempotent: method.idempotent,
            blocking: method.blocking,
            streaming: method.streaming,
            long_poll: method.long_poll,
            in_flight_max: figures.in_flight_max,
            in_flight: figures.in_flight,
            calls: figures.calls,
            refused: figures.refused,
            failures: figures.failures,
            app_errors: figures.app_errors,
            slow_calls: figures.slow_calls,
            slow: figures.is_slow,
            blocked: figures.blocked,
        }
    }
}

impl ConnectionReport {
    pub(super) fn of(connection: &Connection, now: Instant) -> Self {
        Self {
            peer: connection.peer.to_string(),
            age_ms: ms(now.saturating_duration_since(connection.opened)),
            greeted: connection.hello.get().is_some(),
            calls: connection.running.total(),
            in_flight: connection.running.count() as u64,
            unwritten_bytes: connection.outbox.unwritten() as u64,
        }
    }
}

impl From<Linked> for PluginReport {
    fn from(linked: Linked) -> Self {
        Self {
            kind: linked.kind.to_owned(),
            name: linked.name.to_owned(),
            origin: linked.origin.to_owned(),
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
