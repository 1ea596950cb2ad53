//! What goes wrong between two peers that are both alive: answers that match no call, streams that end half-way,
//! links that are slow. The numbers are those of docs/faults.md.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rpc_core::frame::{Kind, Status};
use rpc_core::transport::{Listener, Memory, Stream, Tcp, Transport};
use rpc_core::{CallError, Code, Executed, Invoker, Provider, RpcError};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::time::{Instant, Sleep};

use crate::net::{self, Handlers, Watch, WireClient, WireServer};
use crate::raw::{self, Raw};

fn rpc<T: std::fmt::Debug, E: std::fmt::Debug>(outcome: Result<T, CallError<E>>) -> RpcError {
    match outcome {
        Err(CallError::Rpc(error)) => error,
        other => panic!("expected an error of the framework, got {other:?}"),
    }
}

async fn answer(peer: &mut Raw, id: i64, letter: u8) {
    let envelope = [0x93, 0xa1, letter, 0xc0, 0xc0];
    peer.send(&raw::response(id, Status::NONE, "msgpack", &envelope))
        .await;
}

#[tokio::test]
async fn p8_second_late_and_unknown_answers_are_dropped_and_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let invoker = net::invoker(&listener.local_addr().unwrap().to_string()).await;
    let client = WireClient::refer(&invoker);
    let first = client.echo("1".into()).future();
    let mut peer = Raw::new(listener.accept().await.unwrap().0);
    assert_eq!(peer.next().await.unwrap().status, Status::HELLO);
    let first_id = peer.next().await.unwrap().id;
    answer(&mut peer, first_id, b'a').await;
    // Again, to a call that was never made, and to ids that no table can hold.
    answer(&mut peer, first_id, b'b').await;
    for id in [first_id + 1, first_id ^ (1 << 40), i64::MAX, i64::MIN, 0] {
        answer(&mut peer, id, b'c').await;
    }
    assert_eq!(first.await.unwrap(), "a");
    // The slot is used again, under another id: what was meant for the first call does not complete the second.
    let second = client.echo("2".into()).future();
    let second_id = peer.next().await.unwrap().id;
    assert_ne!(second_id, first_id);
    answer(&mut peer, first_id, b'd').await;
    answer(&mut peer, second_id, b'e').await;
    assert_eq!(second.await.unwrap(), "e");
    let statistics = invoker.statistics();
    assert_eq!((statistics.in_flight, statistics.answers_dropped), (0, 7));
}

#[tokio::test]
async fn p11_answers_out_of_order_and_a_stream_that_ends_half_way_end_every_call_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let invoker = net::invoker(&listener.local_addr().unwrap().to_string()).await;
    let client = WireClient::refer(&invoker);
    let texts = ["0", "1", "2", "3", "4", "5"];
    let calls = texts.map(|text| client.echo(text.into()).future());
    let mut peer = Raw::new(listener.accept().await.unwrap().0);
    assert_eq!(peer.next().await.unwrap().status, Status::HELLO);
    // They may have been sent in any order.
    let mut ids = [0; 6];
    for _ in texts {
        let request = peer.next().await.unwrap();
        let text = request.body.last().unwrap();
        ids[usize::from(text - b'0')] = request.id;
    }
    for (id, letter) in ids[..3].iter().zip(*b"abc").rev() {
        answer(&mut peer, *id, letter).await;
    }
    // Half of the fourth answer, then the end of what the peer says: it still listens.
    let fourth = raw::response(ids[3], Status::NONE, "msgpack", b"\x93\xa1d\xc0\xc0");
    peer.send(&fourth[..fourth.len() - 2]).await;
    peer.stream.shutdown().await.unwrap();
    let mut outcomes = Vec::new();
    for call in calls {
        outcomes.push(call.await);
    }
    let rest = outcomes.split_off(3);
    let answered: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    assert_eq!(answered, ["a", "b", "c"]);
    for outcome in rest {
        let error = rpc(outcome);
        assert_eq!((error.code, error.executed), (Code::Unavailable, Executed::Maybe));
    }
    // The next call takes a new connection.
    let next = client.echo("again".into()).future();
    let mut peer = Raw::new(listener.accept().await.unwrap().0);
    assert_eq!(peer.next().await.unwrap().status, Status::HELLO);
    let id = peer.next().await.unwrap().id;
    answer(&mut peer, id, b'f').await;
    assert_eq!(next.await.unwrap(), "f");
}

#[tokio::test]
async fn p12_only_the_time_left_travels_so_clocks_need_not_agree() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let invoker = net::invoker(&listener.local_addr().unwrap().to_string()).await;
    let client = WireClient::refer(&invoker);
    let _call = client.wait().timeout(Duration::from_secs(7)).future();
    let mut peer = Raw::new(listener.accept().await.unwrap().0);
    assert_eq!(peer.next().await.unwrap().status, Status::HELLO);
    let request = peer.next().await.unwrap();
    let envelope = rmp_serde::from_slice::<(String, String, String, String, u64, Option<()>, Vec<()>)>;
    let (service, version, group, method, timeout_us, meta, params) = envelope(&request.body).unwrap();
    let names = [service, version, group, method];
    assert_eq!(names, ["test.Wire", "1.0", "default", "wait"]);
    // Seven seconds less what it took to get here, and nothing else that could be a time of day.
    assert!((1..=7_000_000).contains(&timeout_us), "{timeout_us}");
    assert_eq!((meta, params), (None, Vec::new()));
}

#[tokio::test]
async fn p15_trailing_bytes_and_unknown_methods_fail_one_call_and_not_the_connection() {
    let (provider, _) = net::provider().await;
    let mut peer = Raw::connect(provider.local_addr()).await;
    for (id, method, params, code) in [
        (1, "echo", &b"\x91\xa1x\xc0"[..], Code::BadRequest),
        (2, "echo", b"\x92\xa1x\xa1y", Code::BadRequest),
        (3, "echo", b"\x90", Code::BadRequest),
        (4, "no_such_method", b"\x90", Code::NotFound),
        (5, "", b"\x90", Code::NotFound),
    ] {
        peer.send(&raw::request(id, method, params, None)).await;
        let refused = peer.next().await.unwrap();
        assert_eq!((refused.kind, refused.id), (Kind::Response, id));
        assert_eq!(raw::failure(&refused), (code.number(), 0), "request {id}");
    }
    peer.send(&raw::request(6, "echo", b"\x91\xa1x", None)).await;
    assert_eq!(peer.next().await.unwrap().status, Status::NONE);
}

/// TCP with the smallest send buffer there is, which counts its connections.
#[derive(Debug, Default)]
struct Narrow {
    connections: AtomicUsize,
}

impl Transport for Narrow {
    fn connect<'a>(&'a self, address: &'a str) -> rpc_core::BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            self.connections.fetch_add(1, Ordering::Relaxed);
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.set_send_buffer_size(4096)?;
            let tcp = socket.connect(address.parse().map_err(io::Error::other)?).await?;
            tcp.set_nodelay(true)?;
            let (read, write) = tcp.into_split();
            Ok(Stream {
                read: Box::new(read),
                write: Box::new(write),
                peer: Arc::from(address),
            })
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> rpc_core::BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Tcp.bind(address)
    }
}

/// A frame that was begun is finished, whatever happens to its call: otherwise the stream would be out of step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_calls_given_up_in_the_middle_of_their_frames_tear_none() {
    let (provider, _) = net::provider().await;
    let network = Arc::new(Narrow::default());
    let invoker = Invoker::builder()
        .direct([provider.local_addr()])
        .transport(Arc::clone(&network) as _)
        .timeout(Duration::from_secs(60))
        .build()
        .await
        .unwrap();
    let client = WireClient::refer(&invoker);
    let payload = bytes::Bytes::from(vec![9; 96 * 1024]);
    client.double(payload.clone().into()).await.unwrap();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..8 {
        let (client, payload) = (client.clone(), payload.clone());
        callers.spawn(async move {
            let mut given_up = 0;
            for call in 0..40 {
                let timeout = Duration::from_millis(1 + (caller * 40 + call) % 50);
                match client.double(payload.clone().into()).timeout(timeout).await {
                    Ok((bytes, twice)) => assert_eq!((bytes, twice.len()), (96 * 1024, 192 * 1024)),
                    Err(CallError::Rpc(error)) => {
                        assert_eq!(error.code, Code::DeadlineExceeded, "{error}");
                        given_up += 1;
                    }
                    Err(CallError::App(never)) => match never {},
                }
            }
            given_up
        });
    }
    let mut given_up = 0;
    while let Some(caller) = callers.join_next().await {
        given_up += caller.unwrap();
    }
    assert!(given_up > 0, "no call was given up at all");
    assert_eq!(client.echo("in step".into()).await.unwrap(), "in step");
    assert_eq!(
        network.connections.load(Ordering::Relaxed),
        1,
        "a stream was out of step"
    );
}

/// A network inside the process on which the dialling side reads only so many bytes a second.
#[derive(Debug)]
struct SlowLink {
    inner: Memory,
    bytes_per_s: usize,
}

impl Transport for SlowLink {
    fn connect<'a>(&'a self, address: &'a str) -> rpc_core::BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let stream = self.inner.connect(address).await?;
            Ok(Stream {
                read: Box::new(SlowRead {
                    inner: stream.read,
                    bytes_per_tick: self.bytes_per_s / 10,
                    left: 0,
                    tick: Box::pin(tokio::time::sleep(Duration::ZERO)),
                }),
                ..stream
            })
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> rpc_core::BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        self.inner.bind(address)
    }
}

struct SlowRead {
    inner: Box<dyn AsyncRead + Send + Unpin>,
    bytes_per_tick: usize,
    left: usize,
    tick: Pin<Box<Sleep>>,
}

impl AsyncRead for SlowRead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.left == 0 {
            std::task::ready!(self.tick.as_mut().poll(cx));
            self.tick
                .as_mut()
                .reset(Instant::now() + Duration::from_millis(100));
            self.left = self.bytes_per_tick;
        }
        let mut own = vec![0; self.left.min(buffer.remaining())];
        let mut piece = ReadBuf::new(&mut own);
        std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, &mut piece))?;
        buffer.put_slice(piece.filled());
        self.left -= piece.filled().len();
        Poll::Ready(Ok(()))
    }
}

/// The clock is the test's: an answer of 12 MiB at 128 KiB a second takes 96 s, many heartbeats long.
#[tokio::test(start_paused = true)]
async fn p25_answer_that_takes_minutes_to_arrive_is_no_silence() {
    let network = SlowLink {
        inner: Memory::default(),
        bytes_per_s: 128 * 1024,
    };
    let network: Arc<dyn Transport> = Arc::new(network);
    let provider = Provider::builder()
        .listen("slow:0")
        .transport(Arc::clone(&network))
        .serve(WireServer::new(Handlers(Watch::default())))
        .start()
        .await
        .unwrap();
    let invoker = Invoker::builder()
        .direct([provider.local_addr()])
        .transport(network)
        .timeout(Duration::from_secs(600))
        .heartbeat(Duration::from_secs(3), Duration::from_secs(2))
        .build()
        .await
        .unwrap();
    let client = WireClient::refer(&invoker);
    let start = Instant::now();
    let huge = client.blob(12 << 20).future();
    // Behind it on the same connection: it waits its turn and arrives too.
    let small = client.echo("behind".into()).future();
    let (bytes, attachment) = huge.await.unwrap();
    assert_eq!((bytes, attachment.len()), (12 << 20, 12 << 20));
    assert_eq!(small.await.unwrap(), "behind");
    let took = start.elapsed();
    assert!(took > Duration::from_secs(90), "the link was not slow: {took:?}");
}
