//! Tests of rpc-core from outside: what a user's crate sees.

mod calls;
mod forms;
mod net;
mod plugins;
mod service;
