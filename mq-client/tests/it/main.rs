//! The client library and the `mq` tool against real brokers: processes of their own, on free ports.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod command_line;
mod support;
