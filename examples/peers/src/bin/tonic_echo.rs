//! Echo over tonic with its stock settings (and TCP_NODELAY, which it sets itself for clients).

use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser;
use echo_peers::Role;
use echo_peers::echo_load::{ClientArguments, Load, ServerArguments, announce, payload, run};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

mod generated {
    tonic::include_proto!("echo");
}
use generated::Message;
use generated::echo_client::EchoClient;
use generated::echo_server::{Echo, EchoServer};

struct Service;

#[tonic::async_trait]
impl Echo for Service {
    async fn echo(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

fn main() -> ExitCode {
    let outcome = match Role::parse() {
        Role::Server(arguments) => serve(&arguments).map_err(|error| error.to_string()),
        Role::Client(arguments) => run(&arguments, client),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &ServerArguments) -> Result<(), Box<dyn std::error::Error>> {
    arguments.runtime.build()?.block_on(async {
        let listener = TcpListener::bind(arguments.listen).await?;
        announce(arguments, listener.local_addr()?);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        Server::builder()
            .add_service(EchoServer::new(Service))
            .serve_with_incoming(incoming)
            .await?;
        Ok(())
    })
}

async fn client(arguments: ClientArguments, load: Arc<Load>) -> Result<JoinSet<()>, String> {
    let body = Bytes::from(payload(arguments.payload));
    let mut loops = JoinSet::new();
    for _ in 0..arguments.connections {
        let endpoint = Endpoint::from_shared(format!("http://{}", arguments.server))
            .map_err(|error| error.to_string())?
            .tcp_nodelay(true);
        let client = EchoClient::new(endpoint.connect().await.map_err(|error| error.to_string())?);
        for _ in 0..arguments.in_flight {
            let (client, body) = (client.clone(), body.clone());
            loops.spawn(Arc::clone(&load).closed_loop(move || {
                let (mut client, payload) = (client.clone(), body.clone());
                async move {
                    let bytes = payload.len();
                    client
                        .echo(Message { payload })
                        .await
                        .is_ok_and(|answer| answer.get_ref().payload.len() == bytes)
                }
            }));
        }
    }
    Ok(loops)
}
