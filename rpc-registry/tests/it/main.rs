//! Registries against the contract, and etcd against what happens to it.

mod embedded;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
mod etcd_accidents;
#[cfg(feature = "etcd")]
mod etcd_server;
mod kept;
mod local;
mod plugins;
