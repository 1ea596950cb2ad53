//! The hc-mq message broker: a library for tests and embedding, and the binary `mq-broker`.
//!
//! A program that embeds it needs [`Broker`] and [`Config`]; the modules are public for tests and tools.
//!
//! From the outside in: `service` decodes and checks (with `fetch` for reading), `core` orders, `log` and
//! `store` keep the bytes, `state` decides. `background` is the work besides requests.

pub mod background;
pub mod backup_command;
pub mod broker;
mod catalog;
pub mod checkpoint;
pub mod cli;
pub mod cluster;
mod compaction;
pub mod config;
pub mod core;
pub mod fetch;
pub mod http;
pub mod ids;
pub mod inspect;
pub mod log;
mod plugins;
mod retention;
pub mod service;
pub mod state;
pub mod store;
pub mod telemetry;
pub mod volatile;

pub use broker::{Broker, StartError, StopError};
pub use config::Config;
pub use plugins::plugins;
