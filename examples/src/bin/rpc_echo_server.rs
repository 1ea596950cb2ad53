//! The serving half of the echo bench: `rpc_echo_server --runtime default|current --listen HOST:PORT`.

use std::process::ExitCode;

use clap::Parser;
use examples::echo::{EchoServer, Plain};
use examples::echo_load::{Counting, ServerArguments, announce};
use rpc_core::Provider;

#[derive(Debug, Parser)]
#[command(about = "Echoes its input, for `cargo xtask bench rpc`.")]
struct Arguments {
    #[command(flatten)]
    server: ServerArguments,
}

/// What `--detail` counts.
#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    match serve(&Arguments::parse().server) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            tracing::error!(reason, "the echo server ended");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &ServerArguments) -> Result<(), String> {
    let runtime = arguments.runtime.build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let provider = Provider::builder()
            .listen(arguments.listen.to_string())
            .serve(EchoServer::new(Plain))
            .start()
            .await
            .map_err(|error| error.to_string())?;
        let address = provider
            .local_addr()
            .parse()
            .map_err(|_| "not an address".to_owned())?;
        announce(arguments, address);
        // Serves until it is killed.
        std::future::pending::<()>().await;
        Ok(())
    })
}
