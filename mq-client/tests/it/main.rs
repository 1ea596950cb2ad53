//! The client library against a small broker in memory, and the `mq` tool against real ones: processes of
//! their own, on free ports.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod churn;
mod cluster_alter;
mod cluster_failover;
mod cluster_ledger;
mod cluster_outage;
mod cluster_pair;
mod command_line;
mod kills;
mod library;
mod support;
