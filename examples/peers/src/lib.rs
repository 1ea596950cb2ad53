//! Shared by the peers: the command line, and the same load that measures ours.

#[path = "../../src/echo_load.rs"]
pub mod echo_load;

/// The code that capnp-rpc's schema compiler generated from `echo.capnp`.
pub mod echo_capnp {
    include!("echo_capnp.in");
}

/// What `--detail` counts.
#[global_allocator]
static ALLOCATOR: echo_load::Counting = echo_load::Counting;

use clap::Parser;
use echo_load::{ClientArguments, ServerArguments};

/// An echo program is a server or a client.
#[derive(Debug, Parser)]
pub enum Role {
    /// Serves until it is killed.
    Server(ServerArguments),
    /// Measures once.
    Client(ClientArguments),
}
