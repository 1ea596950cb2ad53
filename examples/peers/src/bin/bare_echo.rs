//! The bare analogue: the minimum that any RPC framework on tokio has to do, and nothing else. A task per
//! request, a msgpack envelope with service, version, method and attachments, a writer that yields once and
//! then drains its channel into a reused buffer; no time-outs, errors, limits or cancellation. The yardstick
//! for rpc-core's speed.
//!
//! Frame: `[u32 bytes of id and body][u64 id][body]`.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use clap::Parser;
use echo_peers::Role;
use echo_peers::echo_load::{ClientArguments, Load, ServerArguments, announce, payload, run};
use serde::{Deserialize, Serialize};
use slab::Slab;
use tokio::io::{AsyncReadExt, AsyncWrite as _, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, yield_now};

const READ_BYTES: usize = 256 * 1024;
const BY_REFERENCE: usize = 8192;

#[derive(Deserialize)]
struct Request {
    #[expect(dead_code, reason = "decoded as a router would need it")]
    service: String,
    #[expect(dead_code, reason = "decoded as a router would need it")]
    version: String,
    #[expect(dead_code, reason = "decoded as a router would need it")]
    method: String,
    #[expect(dead_code, reason = "decoded as a router would need it")]
    attachments: BTreeMap<String, String>,
    #[serde(with = "serde_bytes")]
    payload: Vec<u8>,
}

#[derive(Serialize)]
struct RequestRef<'a> {
    service: &'a str,
    version: &'a str,
    method: &'a str,
    attachments: &'a BTreeMap<String, String>,
    #[serde(with = "serde_bytes")]
    payload: &'a [u8],
}

#[derive(Serialize, Deserialize)]
struct Response {
    code: u32,
    attachments: BTreeMap<String, String>,
    #[serde(with = "serde_bytes")]
    payload: Vec<u8>,
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

fn serve(arguments: &ServerArguments) -> std::io::Result<()> {
    arguments.runtime.build()?.block_on(async {
        let listener = TcpListener::bind(arguments.listen).await?;
        announce(arguments, listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            // Unbounded, because the clients of the bench limit it: they await each answer.
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(write_all(writer, receiver));
            tokio::spawn(read_all(reader, move |id, body| {
                let sender = sender.clone();
                tokio::spawn(async move {
                    if let Ok(answer) = answer(&body) {
                        drop(sender.send((id, answer)));
                    }
                });
            }));
        }
    })
}

fn answer(body: &Bytes) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let request: Request = rmp_serde::from_slice(body)?;
    let response = Response {
        code: 0,
        attachments: BTreeMap::new(),
        payload: request.payload,
    };
    Ok(Bytes::from(rmp_serde::to_vec(&response)?))
}

async fn read_all(mut reader: OwnedReadHalf, mut frame: impl FnMut(u64, Bytes)) {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        if buffer.capacity() - buffer.len() < 32 * 1024 {
            buffer.reserve(READ_BYTES);
        }
        if !matches!(reader.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
        while let Some((id, body)) = next_frame(&mut buffer) {
            frame(id, body);
        }
    }
}

fn next_frame(buffer: &mut BytesMut) -> Option<(u64, Bytes)> {
    let length: [u8; 4] = buffer.get(..4)?.try_into().ok()?;
    let length = 4 + u32::from_be_bytes(length) as usize;
    if buffer.len() < length {
        if buffer.capacity() < length {
            buffer.reserve(length - buffer.len());
        }
        return None;
    }
    let mut frame = buffer.split_to(length);
    frame.advance(4);
    let id = frame.get_u64();
    Some((id, frame.freeze()))
}

async fn write_all(mut writer: OwnedWriteHalf, mut receiver: mpsc::UnboundedReceiver<(u64, Bytes)>) {
    let mut frames = Vec::with_capacity(256);
    let mut out = Out::default();
    while receiver.recv_many(&mut frames, 256).await > 0 {
        yield_now().await;
        while frames.len() < 512 {
            let Ok(frame) = receiver.try_recv() else { break };
            frames.push(frame);
        }
        for (id, body) in frames.drain(..) {
            out.push(id, body);
        }
        if out.flush(&mut writer).await.is_err() {
            return;
        }
    }
}

/// Frames to write: small bodies in one reused buffer, large ones by reference.
#[derive(Default)]
struct Out {
    parts: VecDeque<Bytes>,
    current: BytesMut,
}

impl Out {
    fn push(&mut self, id: u64, body: Bytes) {
        self.current
            .put_u32(u32::try_from(body.len() + 8).unwrap_or(u32::MAX));
        self.current.put_u64(id);
        if body.len() >= BY_REFERENCE {
            self.parts.push_back(self.current.split().freeze());
            self.parts.push_back(body);
        } else {
            self.current.put_slice(&body);
        }
    }

    async fn flush(&mut self, writer: &mut OwnedWriteHalf) -> std::io::Result<()> {
        if self.parts.is_empty() {
            writer.write_all(&self.current).await?;
            self.current.clear();
            return Ok(());
        }
        if !self.current.is_empty() {
            self.parts.push_back(self.current.split().freeze());
        }
        while !self.parts.is_empty() {
            let slices: Vec<IoSlice<'_>> = self
                .parts
                .iter()
                .take(64)
                .map(|part| IoSlice::new(part))
                .collect();
            let mut written =
                poll_fn(|context| Pin::new(&mut *writer).poll_write_vectored(context, &slices)).await?;
            while let Some(part) = self.parts.front_mut() {
                if written < part.len() {
                    part.advance(written);
                    break;
                }
                written -= part.len();
                self.parts.pop_front();
            }
        }
        Ok(())
    }
}

type Waiting = Arc<Mutex<Slab<oneshot::Sender<Bytes>>>>;

async fn client(arguments: ClientArguments, load: Arc<Load>) -> Result<JoinSet<()>, String> {
    let body = Bytes::from(payload(arguments.payload));
    let attachments: Arc<BTreeMap<String, String>> =
        Arc::new([("trace".to_owned(), "0af7651916cd43dd8448eb211c80319c".to_owned())].into());
    let mut loops = JoinSet::new();
    for _ in 0..arguments.connections {
        let (sender, waiting) = connect(&arguments).await.map_err(|error| error.to_string())?;
        for _ in 0..arguments.in_flight {
            let (sender, waiting) = (sender.clone(), Arc::clone(&waiting));
            let (body, attachments) = (body.clone(), Arc::clone(&attachments));
            loops.spawn(Arc::clone(&load).closed_loop(move || {
                let (sender, waiting) = (sender.clone(), Arc::clone(&waiting));
                let (body, attachments) = (body.clone(), Arc::clone(&attachments));
                async move { call(&sender, &waiting, &body, &attachments).await.is_some() }
            }));
        }
    }
    Ok(loops)
}

async fn connect(
    arguments: &ClientArguments,
) -> std::io::Result<(mpsc::UnboundedSender<(u64, Bytes)>, Waiting)> {
    let stream = TcpStream::connect(arguments.server).await?;
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting = Waiting::default();
    tokio::spawn(write_all(writer, receiver));
    let waiters = Arc::clone(&waiting);
    tokio::spawn(read_all(reader, move |id, body| {
        let waiter = {
            let mut waiters = waiters.lock().unwrap_or_else(PoisonError::into_inner);
            usize::try_from(id).ok().and_then(|id| waiters.try_remove(id))
        };
        if let Some(waiter) = waiter {
            drop(waiter.send(body));
        }
    }));
    Ok((sender, waiting))
}

async fn call(
    sender: &mpsc::UnboundedSender<(u64, Bytes)>,
    waiting: &Waiting,
    payload: &[u8],
    attachments: &BTreeMap<String, String>,
) -> Option<()> {
    let request = RequestRef {
        service: "bench.Echo",
        version: "1.0.0",
        method: "echo",
        attachments,
        payload,
    };
    let body = Bytes::from(rmp_serde::to_vec(&request).ok()?);
    let (answer, answered) = oneshot::channel();
    let id = waiting
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(answer);
    sender.send((u64::try_from(id).ok()?, body)).ok()?;
    let response: Response = rmp_serde::from_slice(&answered.await.ok()?).ok()?;
    (response.code == 0 && response.attachments.is_empty() && response.payload.len() == payload.len())
        .then_some(())
}
