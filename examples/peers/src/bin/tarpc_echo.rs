//! Echo over tarpc with MessagePack. Its limits on requests in flight are raised above what the bench uses.

use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser;
use echo_peers::Role;
use echo_peers::echo_load::{ClientArguments, Load, ServerArguments, announce, payload, run};
use futures::StreamExt;
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_util::codec::LengthDelimitedCodec;
use tarpc::{client, context, serde_transport, server};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_serde::formats::MessagePack;

#[tarpc::service]
trait Echo {
    async fn echo(payload: Bytes) -> Bytes;
}

#[derive(Clone)]
struct Service;

impl Echo for Service {
    async fn echo(self, _: context::Context, payload: Bytes) -> Bytes {
        payload
    }
}

fn main() -> ExitCode {
    let outcome = match Role::parse() {
        Role::Server(arguments) => serve(&arguments).map_err(|error| error.to_string()),
        Role::Client(arguments) => run(&arguments, echo_client),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .max_frame_length(64 << 20)
        .new_codec()
}

fn serve(arguments: &ServerArguments) -> std::io::Result<()> {
    arguments.runtime.build()?.block_on(async {
        let listener = TcpListener::bind(arguments.listen).await?;
        announce(arguments, listener.local_addr()?);
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let framed = tarpc::tokio_util::codec::Framed::new(stream, codec());
            let transport = serde_transport::new(framed, MessagePack::default());
            let config = server::Config {
                pending_response_buffer: 1024,
            };
            let requests = BaseChannel::new(config, transport).execute(Service.serve());
            connections.spawn(requests.for_each(|answer| async move {
                tokio::spawn(answer);
            }));
        }
    })
}

async fn echo_client(arguments: ClientArguments, load: Arc<Load>) -> Result<JoinSet<()>, String> {
    let body = Bytes::from(payload(arguments.payload));
    let mut loops = JoinSet::new();
    for _ in 0..arguments.connections {
        let stream = TcpStream::connect(arguments.server)
            .await
            .map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let framed = tarpc::tokio_util::codec::Framed::new(stream, codec());
        let transport = serde_transport::new(framed, MessagePack::default());
        let mut config = client::Config::default();
        config.max_in_flight_requests = 2048;
        config.pending_request_buffer = 1024;
        let client = EchoClient::new(config, transport).spawn();
        for _ in 0..arguments.in_flight {
            let (client, body) = (client.clone(), body.clone());
            loops.spawn(Arc::clone(&load).closed_loop(move || {
                let (client, payload) = (client.clone(), body.clone());
                async move {
                    let bytes = payload.len();
                    client
                        .echo(context::current(), payload)
                        .await
                        .is_ok_and(|answer| answer.len() == bytes)
                }
            }));
        }
    }
    Ok(loops)
}
