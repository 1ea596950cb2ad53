//! The hc-mq message broker: a library for tests and embedding, and the binary `mq-broker`.
//!
//! From the outside in: `service` decodes and checks, `core` orders, `log` and `store` keep, `state` decides.

pub mod backup_command;
pub mod broker;
pub mod calls;
mod catalog;
pub mod checkpoint;
pub mod cli;
pub mod cluster;
mod compaction;
pub mod config;
pub mod core;
mod disk_watch;
mod half_moves;
pub mod http;
pub mod ids;
pub mod inspect;
mod lasting;
pub mod log;
mod pacer;
mod parts;
mod plugins;
pub mod reclaim;
mod retention;
mod scrub;
pub mod service;
pub mod state;
pub mod store;
pub mod telemetry;
mod telemetry_background;
mod upkeep;
pub mod volatile;

pub use plugins::plugins;
