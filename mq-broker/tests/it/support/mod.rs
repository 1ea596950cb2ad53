//! Starts the built broker on free ports and talks to it through the service clients, without mq-client.

mod client;
mod process;

pub(crate) use client::{Client, Delivered, batch, topic, topic_batches, values};
pub(crate) use process::{BrokerProcess, Options, eventually};
