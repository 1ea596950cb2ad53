//! Echo over Cap'n Proto's RPC. Its parts are not `Send`, so in both set-ups each process runs them on one
//! thread.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::twoparty::VatNetwork;
use capnp_rpc::{RpcSystem, new_client};
use clap::Parser;
use echo_peers::echo_capnp::echo;
use echo_peers::echo_load::{ClientArguments, Load, RuntimeKind, ServerArguments, announce, payload, run};
use echo_peers::Role;
use futures::AsyncReadExt;
use futures::io::{BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio_util::compat::TokioAsyncReadCompatExt;

struct Service;

impl echo::Server for Service {
    async fn echo(
        self: Rc<Self>,
        parameters: echo::EchoParams,
        mut results: echo::EchoResults,
    ) -> Result<(), capnp::Error> {
        results.get().set_payload(parameters.get()?.get_payload()?);
        Ok(())
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

fn network(stream: TcpStream, side: Side) -> std::io::Result<Box<VatNetwork<impl futures::AsyncRead + Unpin>>> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.compat().split();
    let (reader, writer) = (BufReader::new(reader), BufWriter::new(writer));
    Ok(Box::new(VatNetwork::new(reader, writer, side, Default::default())))
}

fn serve(arguments: &ServerArguments) -> std::io::Result<()> {
    let serving = async {
        let listener = TcpListener::bind(arguments.listen).await?;
        announce(arguments, listener.local_addr()?);
        let service: echo::Client = new_client(Service);
        loop {
            let (stream, _) = listener.accept().await?;
            let network = network(stream, Side::Server)?;
            spawn_local(RpcSystem::new(network, Some(service.client.clone())));
        }
    };
    LocalSet::new().block_on(&RuntimeKind::Current.build()?, serving)
}

/// Runs everything on a thread of its own; the loops end with the load.
async fn client(arguments: ClientArguments, load: Arc<Load>) -> Result<JoinSet<()>, String> {
    let (connected, connecting) = oneshot::channel();
    let runtime = RuntimeKind::Current.build().map_err(|error| error.to_string())?;
    std::thread::spawn(move || {
        LocalSet::new().block_on(&runtime, async {
            let mut loops = JoinSet::new();
            for _ in 0..arguments.connections {
                match connect(arguments.server).await {
                    Ok(service) => spawn_loops(&mut loops, &service, &arguments, &load),
                    Err(error) => return drop(connected.send(Err(error.to_string()))),
                }
            }
            drop(connected.send(Ok(())));
            loops.join_all().await;
        });
    });
    connecting.await.map_err(|_| "the client's thread ended".to_owned())??;
    Ok(JoinSet::new())
}

async fn connect(server: SocketAddr) -> std::io::Result<echo::Client> {
    let network = network(TcpStream::connect(server).await?, Side::Client)?;
    let mut system = RpcSystem::new(network, None);
    let service = system.bootstrap(Side::Server);
    spawn_local(system);
    Ok(service)
}

fn spawn_loops(loops: &mut JoinSet<()>, service: &echo::Client, arguments: &ClientArguments, load: &Arc<Load>) {
    let body = Bytes::from(payload(arguments.payload));
    for _ in 0..arguments.in_flight {
        let (service, body) = (service.clone(), body.clone());
        loops.spawn_local(Arc::clone(load).closed_loop(move || {
            let mut request = service.echo_request();
            request.get().set_payload(&body);
            let bytes = body.len();
            async move {
                let answer = request.send().promise.await;
                let length = answer.and_then(|answer| Ok(answer.get()?.get_payload()?.len()));
                length.is_ok_and(|length| length == bytes)
            }
        }));
    }
}
