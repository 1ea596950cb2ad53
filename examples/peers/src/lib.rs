//! What the peers share: the command line, and the very load that measures ours.

#[path = "../../src/echo_load.rs"]
pub mod echo_load;

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
