//! Tests of rpc-core from outside: what a user's crate sees.

mod plugins;
mod service;
