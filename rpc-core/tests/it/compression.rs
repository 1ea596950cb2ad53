//! Compression on the wire: only what was offered, only what shrinks, never an attachment; and bombs from both sides.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use rpc_core::frame::{self, Draft, Frame, Hello, Kind, Status, split_body};
use rpc_core::{Attachment, CallError, Code, Executed, Invoker, Provider, RpcError};
use tokio::net::TcpListener;

use crate::net::{self, Handlers, Watch, WireClient, WireServer};
use crate::raw::{self, Raw, failure, hello};

const COMPRESSORS: [&str; 2] = ["lz4", "zstd"];
const BODY_BYTES_MAX: usize = 1 << 24;

fn text(bytes: usize) -> String {
    "paid, shipped, returned; ".chars().cycle().take(bytes).collect()
}

/// A HELLO that offers these.
fn offers(compressors: &[&str], token: Option<&str>) -> Hello {
    Hello {
        flags: 0x0e,
        compressors: compressors.iter().map(|name| (*name).to_owned()).collect(),
        ..hello(token)
    }
}

async fn say(peer: &mut Raw, hello: &Hello) {
    let mut out = BytesMut::new();
    frame::hello(&mut out, hello);
    peer.send(&out).await;
}

/// A request of `echo` whose envelope is whatever `packed` is, as if it were packed by `name`.
fn packed_request(id: i64, name: &str, plain_bytes: usize, packed: &[u8]) -> BytesMut {
    let status = Status::REQUEST.with(Status::COMPRESSED);
    let mut out = BytesMut::new();
    let draft = Draft::begin(&mut out, Kind::Request, status, id, "msgpack");
    out.put_u8(u8::try_from(name.len()).unwrap());
    out.put_slice(name.as_bytes());
    out.put_u32(u32::try_from(plain_bytes).unwrap());
    out.put_slice(packed);
    draft.finish(&mut out, 0, BODY_BYTES_MAX).unwrap();
    out
}

/// The envelope of a request of `echo`, without the header.
fn echo_envelope(text: &str) -> Vec<u8> {
    let mut params = b"\x91\xda".to_vec();
    params.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
    params.extend_from_slice(text.as_bytes());
    raw::request(1, "echo", &params, None)[28..].to_vec()
}

/// The same packed as an LZ4 block of literals only.
fn lz4_literals(plain: &[u8]) -> Vec<u8> {
    let mut block = vec![0xf0];
    let mut more = plain.len() - 15;
    while more >= 255 {
        block.push(255);
        more -= 255;
    }
    block.push(u8::try_from(more).unwrap());
    block.extend_from_slice(plain);
    block
}

async fn invoker(address: &str, compressor: &str) -> Invoker {
    let invoker = Invoker::builder().direct([address]).compressor(compressor);
    invoker.timeout(Duration::from_secs(10)).build().await.unwrap()
}

fn rpc<T: std::fmt::Debug>(outcome: Result<T, CallError<rpc_core::Never>>) -> RpcError {
    match outcome {
        Err(CallError::Rpc(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn calls_of_all_sizes_go_through_every_compressor() {
    let (provider, _watch) = net::provider().await;
    for compressor in COMPRESSORS {
        let client = WireClient::refer(&invoker(provider.local_addr(), compressor).await);
        for bytes in [0, 1, 1000, 1024, 5000, 300_000, 3_000_000] {
            assert_eq!(
                client.echo(text(bytes)).await.unwrap(),
                text(bytes),
                "{compressor}"
            );
        }
        let bytes = Bytes::from(text(100_000));
        let (length, twice) = client.double(Attachment::from(bytes.clone())).await.unwrap();
        assert_eq!(
            (length, twice.into_bytes()),
            (100_000, [&bytes[..], &bytes[..]].concat().into())
        );
    }
}

#[tokio::test]
async fn provider_packs_only_what_the_caller_offered_and_what_shrinks() {
    let (provider, _watch) = net::provider().await;
    let params = |text: &str| {
        let mut params = b"\x91\xda".to_vec();
        params.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
        params.extend_from_slice(text.as_bytes());
        params
    };
    let large = raw::request(7, "echo", &params(&text(5000)), None);
    let small = raw::request(8, "echo", &params(&text(500)), None);
    let cases: [(&[&str], Option<&str>); 5] = [
        (&[], None),
        (&["brotli"], None),
        (&["lz4"], Some("lz4")),
        (&["brotli", "zstd", "lz4"], Some("zstd")),
        (&["lz4", "zstd"], Some("lz4")),
    ];
    for (offered, expected) in cases {
        let mut peer = Raw::connect(provider.local_addr()).await;
        // Nothing is compressed for a peer that has not sent HELLO.
        peer.send(&large).await;
        assert_eq!(peer.next().await.unwrap().status, Status::NONE);
        say(&mut peer, &offers(offered, None)).await;
        let theirs = Hello::parse(&peer.next().await.unwrap().body).unwrap();
        assert_eq!(theirs.compressors, COMPRESSORS);
        assert!(theirs.understands(Status::COMPRESSED));
        peer.send(&small).await;
        assert_eq!(peer.next().await.unwrap().status, Status::NONE, "{offered:?}");
        peer.send(&large).await;
        let answer = peer.next().await.unwrap();
        assert_eq!(
            answer.status.has(Status::COMPRESSED),
            expected.is_some(),
            "{offered:?}"
        );
        let body = split_body(answer.status, answer.body, BODY_BYTES_MAX).unwrap();
        assert_eq!(body.compressor.map(|(name, _)| name).as_deref(), expected);
        assert_eq!(
            body.envelope.len() < 1000,
            expected.is_some(),
            "{} bytes",
            body.envelope.len()
        );
    }
}

/// Accepts one connection of an invoker that calls with this compressor.
async fn called_with(compressor: &str) -> (Raw, Frame, WireClient, Invoker) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let invoker = invoker(&listener.local_addr().unwrap().to_string(), compressor).await;
    let client = WireClient::refer(&invoker);
    let call = client.echo(text(5000)).future();
    let mut peer = Raw::new(listener.accept().await.unwrap().0);
    let hello = peer.next().await.unwrap();
    // Gives the call up as soon as its request has come: what matters here are later ones.
    let request = peer.next().await.unwrap();
    assert_eq!(
        request.status,
        Status::REQUEST,
        "packed before the provider's HELLO"
    );
    drop(call);
    (peer, hello, client, invoker)
}

#[tokio::test]
async fn invoker_packs_only_after_the_providers_hello_has_listed_it() {
    for (listed, packed) in [
        (&["zstd", "lz4"][..], true),
        (&["zstd"][..], false),
        (&[][..], false),
    ] {
        let (mut peer, greeting, client, _invoker) = called_with("lz4").await;
        let ours = Hello::parse(&greeting.body).unwrap();
        assert_eq!((ours.compressors, ours.flags), (vec!["lz4".to_owned()], 0x0e));
        let mut theirs = offers(listed, None);
        theirs.types = Vec::new();
        say(&mut peer, &theirs).await;
        // A one-way call waits for the HELLO.
        client.echo(text(5000)).oneway().await.unwrap();
        let request = peer.next().await.unwrap();
        assert!(request.status.has(Status::ONEWAY));
        assert_eq!(request.status.has(Status::COMPRESSED), packed, "{listed:?}");
    }
}

#[tokio::test]
async fn answer_that_is_packed_with_what_was_not_offered_is_unreadable() {
    let (mut peer, _, client, _invoker) = called_with("lz4").await;
    say(&mut peer, &offers(&[], None)).await;
    let envelope = b"\x93\xa2ok\xc0\xc0 and so on";
    for (name, packed, readable) in [
        ("lz4", lz4_literals(envelope), false),
        (
            "zstd",
            [&b"\x28\xb5\x2f\xfd\x20\x06\x31\0\0"[..], &envelope[..6]].concat(),
            false,
        ),
        ("lz4", [&b"\x60"[..], &envelope[..6]].concat(), true),
    ] {
        let call = client.echo("x".to_owned()).future();
        let request = loop {
            let frame = peer.next().await.unwrap();
            if frame.kind == Kind::Request {
                break frame;
            }
        };
        let packed = [
            &[u8::try_from(name.len()).unwrap()],
            name.as_bytes(),
            &[0, 0, 0, 6],
            &packed,
        ]
        .concat();
        peer.send(&raw::response(request.id, Status::COMPRESSED, "msgpack", &packed))
            .await;
        let outcome = call.await;
        if readable {
            assert_eq!(outcome.unwrap(), "ok");
            continue;
        }
        let error = rpc(outcome);
        assert_eq!((error.code, error.executed), (Code::BadReply, Executed::Maybe));
    }
}

#[tokio::test]
async fn packed_request_before_hello_is_refused_and_one_after_it_is_not() {
    let (provider, _watch) = net::provider().await;
    let mut peer = Raw::connect(provider.local_addr()).await;
    let envelope = echo_envelope(&text(2000));
    let request = packed_request(1, "lz4", envelope.len(), &lz4_literals(&envelope));
    peer.send(&request).await;
    assert_eq!(failure(&peer.next().await.unwrap()), (3, 0));
    say(&mut peer, &offers(&[], None)).await;
    assert_eq!(peer.next().await.unwrap().status, Status::HELLO);
    peer.send(&request).await;
    assert_eq!(peer.next().await.unwrap().status, Status::NONE);
}

/// 128 KiB of nothing out of every four bytes.
fn zstd_bomb(blocks: usize) -> Vec<u8> {
    let mut bomb = b"\x28\xb5\x2f\xfd\x00\x38".to_vec();
    bomb.extend([0x02, 0x00, 0x10, 0].repeat(blocks));
    bomb
}

#[tokio::test]
async fn p6_bombs_fail_alone_and_the_connection_lives() {
    let (provider, _watch) = net::provider().await;
    let mut peer = Raw::connect(provider.local_addr()).await;
    say(&mut peer, &offers(&[], None)).await;
    assert_eq!(peer.next().await.unwrap().status, Status::HELLO);
    let lz4_bomb = [&b"\x1fx\x01\x00"[..], &[0xff; 1000]].concat();
    for (name, bomb) in [
        ("lz4", lz4_bomb),
        ("zstd", zstd_bomb(250)),
        ("zstd", zstd_bomb(8192)),
    ] {
        for said in [1 << 30, BODY_BYTES_MAX, 200_000, 0] {
            peer.send(&packed_request(1, name, said, &bomb)).await;
            let answer = peer.next().await.unwrap();
            assert_eq!(failure(&answer), (3, 0), "{name}, {said} bytes said");
        }
    }
    peer.send(&packed_request(1, "brotli", 6, b"packed")).await;
    assert_eq!(failure(&peer.next().await.unwrap()), (3, 0));
    peer.send(&raw::request(2, "echo", b"\x91\xa1x", None)).await;
    assert_eq!(peer.next().await.unwrap().body, &b"\x93\xa1x\xc0\xc0"[..]);
}

#[tokio::test]
async fn packed_request_counts_as_what_it_unpacks_to() {
    let provider = Provider::builder()
        .listen("127.0.0.1:0")
        .in_flight_bytes_max(100_000);
    let watch = Watch::default();
    let service = WireServer::new(Handlers(watch.clone()));
    let provider = provider.serve(service).start().await.unwrap();
    let mut peer = Raw::connect(provider.local_addr()).await;
    say(&mut peer, &offers(&[], None)).await;
    assert_eq!(peer.next().await.unwrap().status, Status::HELLO);
    peer.send(&raw::request(1, "wait", b"\x90", None)).await;
    watch.until(|watch| net::value(&watch.started) == 1).await;
    // Some hundred bytes that say they are very many: with what runs, too many.
    peer.send(&packed_request(2, "lz4", 150_000, &[0; 1000])).await;
    assert_eq!(failure(&peer.next().await.unwrap()), (8, 0));
    // Fewer are let in, and found to be damaged.
    peer.send(&packed_request(3, "lz4", 50_000, &[0; 1000])).await;
    assert_eq!(failure(&peer.next().await.unwrap()), (3, 0));
    watch.gate.add_permits(1);
    assert_eq!(peer.next().await.unwrap().id, 1);
}

#[tokio::test]
async fn nothing_is_unpacked_for_a_peer_without_the_token() {
    let provider = Provider::builder().listen("127.0.0.1:0").token("secret");
    let provider = provider
        .serve(WireServer::new(Handlers(Watch::default())))
        .start()
        .await
        .unwrap();
    let mut peer = Raw::connect(provider.local_addr()).await;
    say(&mut peer, &offers(&["lz4"], Some("wrong"))).await;
    assert_eq!(peer.next().await.unwrap().status, Status::HELLO);
    // Damaged too: had it been looked at, the answer would be another.
    peer.send(&packed_request(1, "zstd", 100_000, b"no zstd at all"))
        .await;
    assert_eq!(failure(&peer.next().await.unwrap()), (10, 0));
    // Its own answers are small and plain.
    let envelope = echo_envelope(&text(2000));
    peer.send(&packed_request(
        1,
        "lz4",
        envelope.len(),
        &lz4_literals(&envelope),
    ))
    .await;
    assert_eq!(failure(&peer.next().await.unwrap()), (10, 0));
}

#[tokio::test]
async fn unknown_compressor_is_named_when_the_invoker_is_built() {
    let invoker = Invoker::builder()
        .direct(["127.0.0.1:1"])
        .compressor("lzma")
        .build();
    let message = invoker.await.unwrap_err().to_string();
    assert!(
        message.contains("no compressor named `lzma`; linked in: lz4, zstd"),
        "{message}"
    );
}
