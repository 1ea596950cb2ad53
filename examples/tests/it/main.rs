//! The examples are run as a user runs them, and must say what they claim to show.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod plugins_in_a_cluster;
mod programs;
mod python;

#[path = "../../../mq-client/tests/it/support/broker.rs"]
#[expect(dead_code, reason = "the client's own tests do more to it")]
mod broker;
