//! Opens many connections to an echo server, makes one call on each, and keeps them open until stdin ends:
//! `rpc_echo_idle --server HOST:PORT --connections N`. Prints `ready` when all are open.

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use examples::echo::EchoClient;
use rpc_core::Invoker;

#[derive(Debug, Parser)]
#[command(about = "Keeps idle connections to an echo server, for `cargo xtask bench rpc --idle N`.")]
struct Arguments {
    /// The server's address.
    #[arg(long)]
    server: SocketAddr,
    /// Connections.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match connect(&arguments).await {
        Ok(invokers) => {
            announce(invokers.len());
            drop(tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await);
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprint(&reason);
            ExitCode::FAILURE
        }
    }
}

/// One invoker per connection, as if from that many processes.
async fn connect(arguments: &Arguments) -> Result<Vec<Invoker>, String> {
    let mut invokers = Vec::with_capacity(arguments.connections);
    for number in 0..arguments.connections {
        let failed =
            |error: String| format!("connection {number}: {error}; does `ulimit -n` allow this many?");
        let invoker = Invoker::builder()
            .direct([arguments.server.to_string()])
            .timeout(Duration::from_secs(10))
            .build()
            .await
            .map_err(|error| failed(error.to_string()))?;
        let answer = EchoClient::refer(&invoker)
            .echo(Bytes::from_static(b"hello"))
            .await;
        answer.map_err(|error| failed(error.to_string()))?;
        invokers.push(invoker);
    }
    Ok(invokers)
}

#[expect(
    clippy::print_stdout,
    reason = "the line is the contract with the program that starts this one"
)]
fn announce(connections: usize) {
    println!("ready connections={connections}");
}

#[expect(clippy::print_stderr, reason = "stdout is for the result")]
fn eprint(reason: &str) {
    eprintln!("{reason}");
}
