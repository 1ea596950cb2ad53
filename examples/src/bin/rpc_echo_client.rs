//! The calling half of the echo bench: `rpc_echo_client --server HOST:PORT --server-pid PID [--payload BYTES]
//! [--connections N] [--in-flight N] [--seconds S] [--runtime default|current] [--attachment]`. Prints one JSON line.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use examples::echo::EchoClient;
use examples::echo_load::{ClientArguments, Counting, Load, payload, run};
use rpc_core::{Attachment, Invoker};
use tokio::task::JoinSet;

#[derive(Debug, Parser)]
#[command(about = "Measures echo calls, for `cargo xtask bench rpc`.")]
struct Arguments {
    #[command(flatten)]
    client: ClientArguments,
    /// Send the payload as an attachment instead of a parameter.
    #[arg(long)]
    attachment: bool,
}

/// What `--detail` counts.
#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let attachment = arguments.attachment;
    match run(&arguments.client, move |arguments, load| {
        start(arguments, load, attachment)
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprint(&reason);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "stdout is for the result")]
fn eprint(reason: &str) {
    eprintln!("{reason}");
}

async fn start(arguments: ClientArguments, load: Arc<Load>, attachment: bool) -> Result<JoinSet<()>, String> {
    let body = Bytes::from(payload(arguments.payload));
    let mut loops = JoinSet::new();
    for _ in 0..arguments.connections {
        let invoker = Invoker::builder()
            .direct([arguments.server.to_string()])
            .timeout(Duration::from_secs(10))
            .build()
            .await
            .map_err(|error| error.to_string())?;
        let client = EchoClient::refer(&invoker);
        for _ in 0..arguments.in_flight {
            let (client, body) = (client.clone(), body.clone());
            if attachment {
                loops.spawn(Arc::clone(&load).closed_loop(move || {
                    let call = client.echo_attachment(Attachment::from(body.clone()));
                    let bytes = body.len();
                    async move { call.await.is_ok_and(|((), answer)| answer.len() == bytes) }
                }));
            } else {
                loops.spawn(Arc::clone(&load).closed_loop(move || {
                    let call = client.echo(body.clone());
                    let bytes = body.len();
                    async move { call.await.is_ok_and(|answer| answer.len() == bytes) }
                }));
            }
        }
    }
    Ok(loops)
}
