//! Streams with peers that speak frames by hand: those that die, do too much, or know too little.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use rpc_core::frame::{self, Draft, Kind, Status, Window};
use rpc_core::{Code, Executed, Invoker};
use tokio::net::TcpListener;

use super::feed::{FeedClient, rpc, start};
use crate::raw::{self, Raw};

/// A provider by hand: says HELLO with these types, waits for a request, and gives its id.
async fn by_hand(listener: TcpListener, types: Vec<u8>) -> (Raw, i64) {
    let mut peer = Raw::new(listener.accept().await.unwrap().0);
    let mut out = BytesMut::new();
    let hello = frame::Hello {
        types,
        ..raw::hello(None)
    };
    frame::hello(&mut out, &hello);
    peer.send(&out).await;
    loop {
        let frame = peer.next().await.unwrap();
        if frame.kind == Kind::Request {
            return (peer, frame.id);
        }
    }
}

fn item(id: i64, value: u8) -> BytesMut {
    let mut out = BytesMut::new();
    let draft = Draft::begin(&mut out, Kind::StreamItem, Status::NONE, id, "");
    out.put_u8(value);
    draft.finish(&mut out, 0, 100).unwrap();
    out
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

async fn feed(addresses: Vec<String>, fault_tolerance: &str) -> (Invoker, FeedClient) {
    let invoker = Invoker::builder()
        .direct(addresses)
        .fault_tolerance(fault_tolerance)
        .timeout(Duration::from_secs(10))
        .build()
        .await
        .unwrap();
    let feed = FeedClient::refer(&invoker);
    (invoker, feed)
}

#[tokio::test]
async fn dying_provider_ends_the_stream_after_what_had_come() {
    let (listener, address) = listen().await;
    let (_invoker, feed) = feed(vec![address], "failover").await;
    let mut following = feed.follow(1).stream();
    let peer = async {
        let (mut peer, id) = by_hand(listener, vec![16, 17, 18, 19, 20]).await;
        peer.send(&[item(id, 1), item(id, 2)].concat()).await;
    };
    let (first, ()) = tokio::join!(following.next(), peer);
    assert_eq!(first, Some(Ok(1)));
    assert_eq!(following.next().await, Some(Ok(2)));
    // Not asked for again elsewhere, though the method is idempotent: the first items would come twice.
    let error = rpc(following.next().await);
    assert_eq!((error.code, error.executed), (Code::Unavailable, Executed::Maybe));
    assert_eq!(error.attempts.len(), 1);
    assert_eq!(following.next().await, None);
}

#[tokio::test]
async fn stream_without_an_item_is_asked_for_again_elsewhere() {
    let (listener, address) = listen().await;
    let side = start("msgpack").await;
    let addresses = vec![address, side.provider.local_addr().to_owned()];
    let (_invoker, feed) = feed(addresses, "failover").await;
    let mut dying = tokio::task::JoinSet::new();
    dying.spawn(async { drop(by_hand(listener, vec![16, 17, 18, 19, 20]).await) });
    // Taken in turn, one of the two begins at the provider that dies when it is asked.
    for first in 1..=2 {
        assert_eq!(feed.follow(first).stream().next().await, Some(Ok(first)));
    }
    dying.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn peer_without_streams_is_not_asked() {
    let (listener, address) = listen().await;
    let (_invoker, feed) = feed(vec![address], "failfast").await;
    let mut numbers = feed.numbers(1).stream();
    let error = tokio::select! {
        item = numbers.next() => rpc(item),
        (_, id) = by_hand(listener, vec![16, 17]) => panic!("request {id}"),
    };
    assert_eq!((error.code, error.executed), (Code::Unsupported, Executed::No));
}

#[tokio::test]
async fn peer_that_sends_more_than_it_was_granted_loses_the_connection() {
    let (listener, address) = listen().await;
    let (invoker, feed) = feed(vec![address], "failfast").await;
    let mut numbers = feed.numbers(1).window(2, 100).stream();
    let peer = async {
        let (mut peer, id) = by_hand(listener, vec![16, 17, 18, 19, 20]).await;
        peer.send(&[item(id, 1), item(id, 2), item(id, 3)].concat()).await;
        while peer.next().await.is_some() {}
    };
    let (first, ()) = tokio::join!(numbers.next(), peer);
    assert_eq!(first, Some(Ok(1)));
    assert_eq!(numbers.next().await, Some(Ok(2)));
    let error = rpc(numbers.next().await);
    assert!(error.message.contains("granted"), "{error}");
    assert_eq!(invoker.statistics().in_flight, 0);
}

#[tokio::test]
async fn strangers_stream_is_opened_granted_and_cancelled_by_frames() {
    let side = start("msgpack").await;
    let mut peer = Raw::connect(side.provider.local_addr()).await;
    let mut out = BytesMut::new();
    let hello = frame::Hello {
        types: vec![16, 17, 18, 19, 20],
        ..raw::hello(None)
    };
    frame::hello(&mut out, &hello);
    frame::window(&mut out, 5, Window { items: 2, bytes: 100 });
    out.put_slice(&raw::request_of("test.Feed", 5, "numbers", b"\x91\x04", None));
    peer.send(&out).await;
    assert_eq!(peer.next().await.unwrap().kind, Kind::Heartbeat);
    for wanted in [0, 1] {
        let frame = peer.next().await.unwrap();
        assert_eq!(
            (frame.kind, frame.id, &frame.body[..]),
            (Kind::StreamItem, 5, &[wanted][..])
        );
        assert_eq!(frame.name.as_str(), "");
    }
    // An empty grant opens nothing: the pong comes first.
    let mut out = BytesMut::new();
    frame::window(&mut out, 5, Window { items: 0, bytes: 9 });
    frame::ping(&mut out);
    peer.send(&out).await;
    assert_eq!(peer.next().await.unwrap().kind, Kind::Heartbeat);
    let mut out = BytesMut::new();
    frame::window(&mut out, 5, Window { items: 9, bytes: 0 });
    peer.send(&out).await;
    for wanted in [2, 3] {
        let frame = peer.next().await.unwrap();
        assert_eq!((frame.kind, &frame.body[..]), (Kind::StreamItem, &[wanted][..]));
    }
    let end = peer.next().await.unwrap();
    assert_eq!(
        (end.kind, end.status, &end.body[..]),
        (Kind::StreamEnd, Status::NONE, &b"\x93\xc0\xc0\xc0"[..])
    );
    // A stream without an end is cancelled, and its end says so.
    let mut out = BytesMut::new();
    frame::window(&mut out, 6, Window { items: 9, bytes: 100 });
    out.put_slice(&raw::request_of("test.Feed", 6, "follow", b"\x91\x04", None));
    peer.send(&out).await;
    assert_eq!(peer.next().await.unwrap().kind, Kind::StreamItem);
    let mut out = BytesMut::new();
    frame::cancel(&mut out, 6);
    peer.send(&out).await;
    let end = peer.next().await.unwrap();
    assert_eq!((end.kind, end.status), (Kind::StreamEnd, Status::FAILED));
    side.source.until_open(0).await;
    // A grant that is none breaks the protocol.
    let mut out = BytesMut::new();
    let draft = Draft::begin(&mut out, Kind::StreamWindow, Status::NONE, 6, "");
    draft.finish(&mut out, 0, 100).unwrap();
    peer.send(&out).await;
    assert!(peer.next().await.is_none());
}

/// Makes a call and opens a stream of `method` at once, both with the id 5; ends with the stream's first item.
async fn twins(peer: &mut Raw, method: &str) {
    let mut out = raw::request_of("test.Feed", 5, "once", b"\x91\x01", None);
    frame::window(&mut out, 5, Window { items: 1, bytes: 100 });
    out.put_slice(&raw::request_of(
        "test.Feed",
        5,
        method,
        b"\x91\xcd\xff\xff",
        None,
    ));
    peer.send(&out).await;
    // The call was there when the stream came, and left while it ran.
    let answer = peer.next().await.unwrap();
    assert_eq!(raw::failure(&answer), (Code::Cancelled.number(), 0));
    assert_eq!(peer.next().await.unwrap().kind, Kind::StreamItem);
}

#[tokio::test]
async fn stream_whose_id_was_used_twice_is_cancelled_and_ends_with_its_connection() {
    let side = start("msgpack").await;
    // The one waits for its source, the other to be granted more.
    for method in ["follow", "numbers"] {
        let mut peer = Raw::connect(side.provider.local_addr()).await;
        twins(&mut peer, method).await;
        side.source.until_open(1).await;
        let mut out = BytesMut::new();
        frame::cancel(&mut out, 5);
        peer.send(&out).await;
        assert_eq!(peer.next().await.unwrap().kind, Kind::StreamEnd);
        side.drained().await;
        twins(&mut peer, method).await;
        side.source.until_open(1).await;
        drop(peer);
        side.drained().await;
    }
}
