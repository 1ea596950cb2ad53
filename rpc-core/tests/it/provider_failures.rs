//! The provider against invokers that are hostile, slow, silent or many.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rpc_core::frame::{self, Kind, Status};
use rpc_core::transport::{Tcp, Transport};
use rpc_core::{CallError, Code, Executed, Invoker, Provider, ProviderError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::net::{self, Handlers, Watch, WireClient, WireServer, value};
use crate::raw::{self, Raw};

/// Frames thrown at the port by default; `HOSTILE_FRAMES=1000000` makes it the million of the conformance list.
const HOSTILE_FRAMES: usize = 5_000;

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[tokio::test]
async fn p4_bad_lengths_and_first_bytes_close_the_connection_and_cost_no_memory() {
    let (provider, _, _, client) = net::pair().await;
    let before = resident();
    let length =
        |name: &[u8; 4], body: &[u8]| [b"\x00\x10\x01\x00\x01\0\0\0\0\0\0\0\x01", &name[..], body].concat();
    for bad in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00".to_vec(),
        b"\x00\x10\x02\x00\x01\0\0\0\0\0\0\0\x01".to_vec(),
        b"\x00\x10\x01\x12\x01\0\0\0\0\0\0\0\x01".to_vec(),
        b"\x00\x10\x01\x00\xf1\0\0\0\0\0\0\0\x01".to_vec(),
        length(b"\x7f\xff\xff\xff", b""),
        length(b"\xff\xff\xff\xff", b""),
        length(b"\0\0\0\x07", b"msgpack\x7f\xff\xff\xff"),
        length(b"\0\0\0\x07", b"msgpack\x80\0\0\0"),
        length(b"\0\0\0\x07", b"msgpack\x01\0\0\x01"),
    ] {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(provider.local_addr()).await.unwrap();
            stream.write_all(&bad).await.unwrap();
            let mut rest = Vec::new();
            let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
            assert!(closed.is_ok(), "still open after {bad:?}");
            assert!(rest.is_empty(), "a provider never speaks unasked");
        }
    }
    assert_eq!(client.echo("still here".into()).await.unwrap(), "still here");
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
}

#[tokio::test]
async fn connections_that_were_reset_while_they_waited_are_no_failures_of_the_listener() {
    let listener = Tcp.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for _ in 0..50 {
        let peer = TcpStream::connect(&address).await.unwrap();
        // Closing it resets it.
        socket2::SockRef::from(&peer)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
    let alive = TcpStream::connect(&address).await.unwrap();
    let wanted = alive.local_addr().unwrap().to_string();
    loop {
        let accepted = tokio::time::timeout(Duration::from_secs(10), listener.accept()).await;
        // An error would make the provider pause, and everybody behind it wait.
        if *accepted.unwrap().unwrap().peer == *wanted {
            break;
        }
    }
}

#[tokio::test]
async fn p22_request_split_at_every_byte_is_answered() {
    let (provider, _) = net::provider().await;
    let request = raw::request(7, "echo", b"\x91\xa2hi", None);
    for at in 1..request.len() {
        let mut peer = Raw::connect(provider.local_addr()).await;
        peer.send(&request[..at]).await;
        tokio::task::yield_now().await;
        peer.send(&request[at..]).await;
        let answer = peer.next().await.unwrap();
        assert_eq!(
            (answer.kind, answer.status, answer.id),
            (Kind::Response, Status::NONE, 7)
        );
        assert_eq!(&answer.body[..], b"\x93\xa2hi\xc0\xc0", "split at {at}");
    }
}

#[tokio::test]
async fn old_heartbeat_ping_and_hello_are_understood() {
    let (provider, _) = net::provider().await;
    let mut peer = Raw::connect(provider.local_addr()).await;
    // hc-rpc's own heartbeat, under a serializer that does not exist here: no answer.
    let draft_of_heartbeat = {
        let mut out = BytesMut::new();
        let draft = frame::Draft::begin(&mut out, Kind::Request, Status::REQUEST, -1, "hessian");
        out.extend_from_slice(b"{}");
        draft.finish(&mut out, 0, 100).unwrap();
        out
    };
    peer.send(&draft_of_heartbeat).await;
    let mut ping = BytesMut::new();
    frame::ping(&mut ping);
    peer.send(&ping).await;
    let pong = peer.next().await.unwrap();
    assert_eq!(
        (pong.kind, pong.status, pong.id),
        (Kind::Heartbeat, Status::NONE, -1)
    );
    peer.greet(None).await;
    let hello = peer.next().await.unwrap();
    assert_eq!(
        (hello.kind, hello.status, hello.name.as_str()),
        (Kind::Heartbeat, Status::HELLO, "json")
    );
    let hello: serde_json::Value = serde_json::from_slice(&hello.body).unwrap();
    assert_eq!((&hello["hello"], &hello["flags"]), (&1.into(), &14.into()));
    assert!(hello.get("token").is_none());
    peer.greet(None).await;
    assert!(peer.next().await.is_none(), "HELLO is said once");
}

#[tokio::test]
async fn unknown_serializer_and_unreadable_envelope_are_answered() {
    let (provider, _) = net::provider().await;
    let mut peer = Raw::connect(provider.local_addr()).await;
    let mut unknown = BytesMut::new();
    let draft = frame::Draft::begin(&mut unknown, Kind::Request, Status::REQUEST, 5, "kryo");
    unknown.extend_from_slice(b"whatever");
    draft.finish(&mut unknown, 0, 100).unwrap();
    peer.send(&unknown).await;
    let answer = peer.next().await.unwrap();
    assert_eq!((answer.id, answer.name.as_str()), (5, "kryo"));
    assert_eq!(raw::failure(&answer), (Code::Unsupported.number(), 0));
    let mut nonsense = BytesMut::new();
    let draft = frame::Draft::begin(&mut nonsense, Kind::Request, Status::REQUEST, 6, "msgpack");
    nonsense.extend_from_slice(b"\xc1\xc1\xc1");
    draft.finish(&mut nonsense, 0, 100).unwrap();
    peer.send(&nonsense).await;
    assert_eq!(
        raw::failure(&peer.next().await.unwrap()),
        (Code::BadRequest.number(), 0)
    );
    peer.send(&raw::request(7, "echo", b"\x91\xa2hi", None)).await;
    assert_eq!(peer.next().await.unwrap().id, 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_frames_do_not_disturb_a_good_client() {
    let frames = std::env::var("HOSTILE_FRAMES").map_or(HOSTILE_FRAMES, |frames| frames.parse().unwrap());
    let (provider, _, invoker, client) = net::pair().await;
    let before = resident();
    let over = Arc::new(AtomicBool::new(false));
    let mut good = JoinSet::new();
    {
        let over = Arc::clone(&over);
        good.spawn(async move {
            let mut calls = 0_u64;
            while !over.load(Ordering::Relaxed) {
                assert_eq!(client.echo("good".into()).await.unwrap(), "good");
                calls += 1;
            }
            calls
        });
    }
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let template = raw::request(1 << 24, "echo", b"\x91\xa4good", Some(Duration::from_secs(1)));
    let mut sent = 0;
    while sent < frames {
        let mut stream = TcpStream::connect(provider.local_addr()).await.unwrap();
        for _ in 0..random.usize(1..50) {
            let mut bytes = template.to_vec();
            for _ in 0..random.usize(0..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            match random.u8(..4) {
                0 => bytes.truncate(random.usize(..bytes.len())),
                1 => bytes.extend((0..random.usize(..100)).map(|_| random.u8(..))),
                _ => {}
            }
            sent += 1;
            if stream.write_all(&bytes).await.is_err() {
                break;
            }
        }
    }
    over.store(true, Ordering::Relaxed);
    let calls = good.join_next().await.unwrap().unwrap();
    assert!(calls > 0, "seed {seed}");
    assert_eq!(invoker.statistics().in_flight, 0, "seed {seed}");
    let grown = resident().saturating_sub(before);
    assert!(grown < 128 << 20, "{grown} bytes, seed {seed}");
}

#[tokio::test]
async fn slow_reader_is_bounded_and_others_are_served() {
    let watch = Watch::default();
    let provider = Provider::builder()
        .serve(WireServer::new(Handlers(watch.clone())))
        .unwritten_bytes_max(4 << 20)
        .start()
        .await
        .unwrap();
    let invoker = net::invoker(provider.local_addr()).await;
    let client = WireClient::refer(&invoker);
    let mut peer = Raw::connect(provider.local_addr()).await;
    peer.greet(None).await;
    // Asks for 1 GiB in all and reads none of it.
    for id in 0..1024 {
        let request = raw::request(id, "blob", b"\x91\xce\x00\x10\x00\x00", None);
        let sent = tokio::time::timeout(Duration::from_millis(200), peer.stream.write_all(&request)).await;
        if sent.is_err() {
            break;
        }
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        assert_eq!(client.echo("x".into()).await.unwrap(), "x");
    }
    let started = value(&watch.started);
    assert!(
        started < 64,
        "{started} answers of 1 MiB are held for a peer that takes none"
    );
    assert!(started > 2, "{started}");
}

#[tokio::test]
async fn limits_answer_overloaded_and_nothing_is_executed() {
    let watch = Watch::default();
    let provider = Provider::builder()
        .serve(WireServer::new(Handlers(watch.clone())))
        .connection_in_flight_max(4)
        .method_in_flight_max(3)
        .start()
        .await
        .unwrap();
    let invoker = net::invoker(provider.local_addr()).await;
    let client = WireClient::refer(&invoker);
    let waiting: Vec<_> = (0..3).map(|_| client.wait().future()).collect();
    watch.until(|watch| value(&watch.started) == 3).await;
    // The method is full, the connection has one place left.
    let Err(CallError::Rpc(error)) = client.wait().await else {
        panic!()
    };
    assert_eq!((error.code, error.executed), (Code::Overloaded, Executed::No));
    assert_eq!(client.echo("a fast one".into()).await.unwrap(), "a fast one");
    watch.gate.add_permits(3);
    for call in waiting {
        call.await.unwrap();
    }
    assert_eq!(value(&watch.started), 3);
    assert_eq!(provider.running(), 0);
}

#[tokio::test]
async fn connections_above_the_limit_are_closed() {
    let provider = Provider::builder()
        .serve(WireServer::new(Handlers(Watch::default())))
        .connections_max(2)
        .start()
        .await
        .unwrap();
    let request = raw::request(1, "echo", b"\x91\xa1x", None);
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut peer = Raw::connect(provider.local_addr()).await;
        peer.send(&request).await;
        assert!(peer.next().await.is_some());
        kept.push(peer);
    }
    let mut third = Raw::connect(provider.local_addr()).await;
    assert!(third.next().await.is_none());
    drop(kept);
}

#[tokio::test]
async fn token_is_wanted_before_anything_is_run() {
    let provider = Provider::builder()
        .serve(WireServer::new(Handlers(Watch::default())))
        .token("secret")
        .start()
        .await
        .unwrap();
    for (token, code) in [
        (None, Some(Code::Unauthenticated)),
        (Some("wrong!"), Some(Code::Unauthenticated)),
        (Some("secret and more"), Some(Code::Unauthenticated)),
        (Some("secret"), None),
    ] {
        let mut builder = Invoker::builder()
            .direct([provider.local_addr()])
            .timeout(Duration::from_secs(10));
        if let Some(token) = token {
            builder = builder.token(token);
        }
        let invoker = builder.build().await.unwrap();
        let outcome = WireClient::refer(&invoker).echo("x".into()).await;
        assert_eq!(
            outcome
                .as_ref()
                .err()
                .and_then(CallError::rpc)
                .map(|error| error.code),
            code,
            "{token:?}"
        );
        if let Err(error) = outcome {
            assert_eq!(error.executed(), Executed::No);
        }
    }
    // Without a token the frames have to be small.
    let mut stranger = Raw::connect(provider.local_addr()).await;
    stranger
        .send(b"\x00\x10\x01\x00\x01\0\0\0\0\0\0\0\x01\0\0\0\x07msgpack\0\0\x40\x01")
        .await;
    assert!(stranger.next().await.is_none());
}

#[tokio::test]
async fn silent_connection_is_closed() {
    let provider = Provider::builder()
        .serve(WireServer::new(Handlers(Watch::default())))
        .idle_timeout(Duration::from_millis(200))
        .start()
        .await
        .unwrap();
    let start = Instant::now();
    let mut peer = Raw::connect(provider.local_addr()).await;
    peer.greet(None).await;
    assert!(peer.next().await.is_some());
    assert!(peer.next().await.is_none());
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn drain_says_go_away_refuses_new_requests_and_finishes_old_ones() {
    let (provider, watch) = net::provider().await;
    let address = provider.local_addr().to_owned();
    let mut peer = Raw::connect(&address).await;
    peer.greet(None).await;
    assert_eq!(peer.next().await.unwrap().status, Status::HELLO);
    peer.send(&raw::request(1, "wait", b"\x90", None)).await;
    watch.until(|watch| value(&watch.started) == 1).await;
    let mut stopping = JoinSet::new();
    stopping.spawn(provider.shutdown(Duration::from_secs(10)));
    assert_eq!(peer.next().await.unwrap().kind, Kind::GoAway);
    peer.send(&raw::request(2, "echo", b"\x91\xa1x", None)).await;
    let refused = peer.next().await.unwrap();
    assert_eq!(
        (refused.id, raw::failure(&refused)),
        (2, (Code::Draining.number(), 0))
    );
    assert!(
        TcpStream::connect(&address).await.is_err(),
        "nobody is let in any more"
    );
    watch.gate.add_permits(1);
    let answer = peer.next().await.unwrap();
    assert_eq!((answer.id, answer.status), (1, Status::NONE));
    drop(peer);
    stopping.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn drain_ends_at_its_deadline() {
    let (provider, watch, _invoker, client) = net::pair().await;
    let mut call = JoinSet::new();
    call.spawn(client.wait().into_future());
    watch.until(|watch| value(&watch.started) == 1).await;
    let start = Instant::now();
    provider.shutdown(Duration::from_millis(300)).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let outcome = call.join_next().await.unwrap().unwrap();
    let Err(CallError::Rpc(error)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((error.code, error.executed), (Code::Unavailable, Executed::Maybe));
    watch.until(|watch| value(&watch.cancelled) == 1).await;
}

#[tokio::test]
async fn dropped_provider_stops_accepting() {
    let (provider, _) = net::provider().await;
    let address = provider.local_addr().to_owned();
    drop(provider);
    let patience = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(&address).await.is_ok() {
        assert!(Instant::now() < patience);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let twice = Provider::builder()
        .serve(WireServer::new(Handlers(Watch::default())))
        .serve(WireServer::new(Handlers(Watch::default())).version("1.0"))
        .start()
        .await;
    assert!(matches!(twice, Err(ProviderError::Duplicate { .. })), "{twice:?}");
    let (provider, _) = net::provider().await;
    let taken = Provider::builder().listen(provider.local_addr()).start().await;
    assert!(matches!(taken, Err(ProviderError::Listen { .. })), "{taken:?}");
    let unknown = Provider::builder().registry("nowhere://x").start().await;
    assert!(matches!(unknown, Err(ProviderError::Plugin(_))), "{unknown:?}");
    let everywhere = Provider::builder()
        .listen("0.0.0.0:0")
        .registry("nowhere://x")
        .start()
        .await;
    assert!(
        matches!(everywhere, Err(ProviderError::Advertise { .. })),
        "{everywhere:?}"
    );
}
