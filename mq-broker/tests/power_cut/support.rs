//! The client, the broker process and the mixed work of the tests.

#[path = "../it/support/client.rs"]
mod client;
#[path = "../it/support/mixed/mod.rs"]
pub(crate) mod mixed;
#[path = "../it/support/process.rs"]
mod process;

pub(crate) use client::{Client, Delivered, Read, batch, topic, topic_batches};
pub(crate) use process::{BrokerProcess, Options};
