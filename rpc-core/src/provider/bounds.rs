//! The limits of one provider, and their defaults.

use std::time::Duration;

use crate::limits;

/// Limits of one provider, except those of its methods.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProviderLimits {
    pub(crate) idle_timeout: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) frame_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) in_flight_max: usize,
    pub(crate) in_flight_bytes_max: usize,
    pub(crate) reading_bytes_max: usize,
    pub(crate) backlog_bytes_max: usize,
    pub(crate) connection_in_flight_max: usize,
    pub(crate) connections_max: usize,
    pub(crate) address_connections_max: usize,
    pub(crate) blocking_max: usize,
    pub(crate) body_bytes_max: usize,
    pub(crate) unwritten_bytes_max: usize,
    /// Handlers that answer within this time run where their requests are read.
    pub(crate) quick: Duration,
}

impl Default for ProviderLimits {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            frame_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            in_flight_max: limits::PROVIDER_IN_FLIGHT_MAX,
            in_flight_bytes_max: limits::PROVIDER_IN_FLIGHT_BYTES_MAX,
            reading_bytes_max: limits::PROVIDER_READING_BYTES_MAX,
            backlog_bytes_max: limits::PROVIDER_BACKLOG_BYTES_MAX,
            connection_in_flight_max: limits::CONNECTION_IN_FLIGHT_MAX,
            connections_max: limits::CONNECTIONS_MAX,
            address_connections_max: limits::CONNECTIONS_MAX,
            blocking_max: limits::BLOCKING_MAX,
            body_bytes_max: limits::BODY_BYTES_MAX,
            unwritten_bytes_max: limits::CONNECTION_UNWRITTEN_BYTES_MAX,
            quick: limits::QUICK_HANDLER,
        }
    }
}
