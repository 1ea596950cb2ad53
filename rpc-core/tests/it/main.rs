//! Tests of rpc-core from outside: what a user's crate sees.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod admin;
mod alone;
mod blocking;
mod calls;
mod churn;
mod compression;
mod filters;
mod flaky;
mod forms;
mod generic;
mod hc_rpc_defects;
mod invoker_failures;
mod leaving;
mod nested;
mod net;
mod plugins;
mod provider_failures;
mod provider_limits;
mod quick;
mod raw;
mod recovery;
mod serializers;
mod service;
mod streams;
mod tls;
mod tower;
mod versions;
mod wire_faults;
