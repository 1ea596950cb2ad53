//! What several tests need: the built broker on free ports, spoken to through the service clients (not mq-client); a
//! journal on a disk that forgets, and a whole core on one; a library that makes syncs fail; a disk that can be
//! filled; a PostgreSQL.

pub(crate) mod baton;
mod client;
pub(crate) mod compacted;
pub(crate) mod journal;
pub(crate) mod mixed;
pub(crate) mod model;
pub(crate) mod mount;
pub(crate) mod postgres;
mod process;
mod running;
pub(crate) mod shim;
pub(crate) mod stepped;
pub(crate) mod whole;
pub(crate) mod workload;

pub(crate) use client::{Client, Delivered, Read, batch, is_busy, topic, topic_batches, values};
pub(crate) use process::{BrokerProcess, Options, eventually, eventually_within, log_path};
pub(crate) use running::Running;

/// A number that the environment may give: how much is tried, and from which seed on.
pub(crate) fn variable(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}
