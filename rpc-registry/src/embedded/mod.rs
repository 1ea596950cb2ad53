//! A registry without servers of its own: every provider that mounts it is one, and every broker does.
//!
//! A member announces itself at all servers it knows, a client merges their answers, and any one of them
//! suffices. Announcements are soft state with a lease: after a restart a server knows nothing and is
//! *warming* for one lease time, in which all members announce themselves again; until then clients add what
//! it lists and remove nothing.
//!
//! `api` is the protocol; `table` and `merge` are the pure parts of the server and the client.

pub mod api;
mod client;
mod follow;
mod merge;
mod server;
mod table;

pub use client::{Mq, MqBuilder};
pub use server::EmbeddedRegistry;

#[cfg(test)]
mod tests;
