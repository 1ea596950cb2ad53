//! The invoker against providers that die, hang, lie or leave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rpc_core::frame::{self, Kind, Status};
use rpc_core::{Attachment, CallError, Code, Executed, Invoker, Provider, RpcError};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::net::{self, Handlers, Watch, WireClient, WireServer, value};
use crate::raw::{self, Raw};

fn rpc<T: std::fmt::Debug, E: std::fmt::Debug>(outcome: Result<T, CallError<E>>) -> RpcError {
    match outcome {
        Err(CallError::Rpc(error)) => error,
        other => panic!("expected an error of the framework, got {other:?}"),
    }
}

/// A provider played by the test, and a client that calls it.
async fn played() -> (TcpListener, Invoker, WireClient) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let invoker = net::invoker(&listener.local_addr().unwrap().to_string()).await;
    let client = WireClient::refer(&invoker);
    (listener, invoker, client)
}

async fn accept(listener: &TcpListener) -> Raw {
    Raw::new(listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn lost_connection_fails_a_thousand_calls_at_once_with_maybe() {
    let (listener, invoker, client) = played().await;
    let mut calls = JoinSet::new();
    for _ in 0..1000 {
        calls.spawn(client.wait().into_future());
    }
    let mut peer = accept(&listener).await;
    // HELLO and all requests have arrived: all of them may have been executed.
    for _ in 0..1001 {
        peer.next().await.unwrap();
    }
    drop((peer, listener));
    let start = Instant::now();
    while let Some(outcome) = calls.join_next().await {
        let error = rpc(outcome.unwrap());
        assert_eq!((error.code, error.executed), (Code::Unavailable, Executed::Maybe));
    }
    // 10 ms alone; generous, since the machine may be busy with other tests.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(invoker.statistics().in_flight, 0);
}

#[tokio::test]
async fn first_frame_is_hello_and_plain_calls_do_not_wait_for_its_answer() {
    let (listener, _, client) = played().await;
    let call = client.echo("x".into()).future();
    let mut peer = accept(&listener).await;
    let hello = peer.next().await.unwrap();
    assert_eq!(
        (hello.kind, hello.status, hello.id, hello.name.as_str()),
        (Kind::Heartbeat, Status::HELLO, -1, "json")
    );
    let hello: serde_json::Value = serde_json::from_slice(&hello.body).unwrap();
    assert_eq!(
        (&hello["hello"], &hello["types"]),
        (&1.into(), &serde_json::json!([16, 17, 18, 19, 20]))
    );
    let request = peer.next().await.unwrap();
    assert_eq!((request.kind, request.status.0), (Kind::Request, 0x01));
    assert!(request.id >= 0);
    peer.send(&raw::response(
        request.id,
        Status::NONE,
        "msgpack",
        b"\x93\xa1x\xc0\xc0",
    ))
    .await;
    assert_eq!(call.await.unwrap(), "x");
}

#[tokio::test]
async fn peer_that_hangs_before_its_hello_is_unavailable_long_before_the_deadline() {
    let (listener, _, client) = played().await;
    let started = Instant::now();
    let call = client
        .double(Attachment::from(bytes::Bytes::from_static(b"raw")))
        .timeout(Duration::from_secs(30))
        .future();
    let peer = accept(&listener).await;
    let error = rpc(call.await);
    assert_eq!((error.code, error.executed), (Code::Unavailable, Executed::No));
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
    drop(peer);
}

#[tokio::test]
async fn feature_waits_for_hello_under_its_deadline_else_unsupported() {
    let (listener, _, client) = played().await;
    let call = client
        .double(Attachment::from(bytes::Bytes::from_static(b"raw")))
        .timeout(Duration::from_secs(1))
        .future();
    let oneway = client.note().timeout(Duration::from_secs(1)).oneway();
    let mut peer = accept(&listener).await;
    assert_eq!(peer.next().await.unwrap().status, Status::HELLO);
    let error = rpc(call.await);
    assert_eq!((error.code, error.executed), (Code::Unsupported, Executed::No));
    assert_eq!(oneway.await.unwrap_err().code, Code::Unsupported);
    // A peer that says HELLO gets them.
    peer.greet(None).await;
    let later = client
        .double(Attachment::from(bytes::Bytes::from_static(b"raw")))
        .future();
    let request = peer.next().await.unwrap();
    assert_eq!((request.kind, request.status.0), (Kind::Request, 0x05));
    assert!(request.body.ends_with(b"raw"));
    drop(later);
    let cancel = peer.next().await.unwrap();
    assert_eq!((cancel.kind, cancel.id), (Kind::Cancel, request.id));
}

#[tokio::test]
async fn nothing_beyond_the_old_protocol_is_sent_to_a_peer_without_hello() {
    let (listener, invoker, client) = played().await;
    let call = client.wait().future();
    let mut peer = accept(&listener).await;
    assert_eq!(peer.next().await.unwrap().status, Status::HELLO);
    let request = peer.next().await.unwrap();
    drop(call);
    // No CANCEL comes: the next frame is the next request, under another id.
    let second = client.echo("x".into()).future();
    let next = peer.next().await.unwrap();
    assert_eq!(next.kind, Kind::Request);
    assert_ne!(next.id, request.id);
    // An answer to the call that was given up finds nobody; the other one gets its own.
    peer.send(&raw::response(
        request.id,
        Status::NONE,
        "msgpack",
        b"\x93\x05\xc0\xc0",
    ))
    .await;
    peer.send(&raw::response(
        next.id,
        Status::NONE,
        "msgpack",
        b"\x93\xa1y\xc0\xc0",
    ))
    .await;
    assert_eq!(second.await.unwrap(), "y");
    assert_eq!(invoker.statistics().answers_dropped, 1);
}

#[tokio::test]
async fn answer_that_cannot_be_read_fails_one_call_only() {
    let (listener, _, client) = played().await;
    let calls = ["1", "2", "3"].map(|text| client.echo(text.into()).future());
    let mut peer = accept(&listener).await;
    peer.next().await.unwrap();
    for _ in 0..3 {
        let request = peer.next().await.unwrap();
        let answer = match request.body.last().unwrap() {
            b'1' => raw::response(request.id, Status::NONE, "msgpack", b"\xc1 nonsense"),
            b'2' => raw::response(request.id, Status::NONE, "json", b"{}"),
            _ => raw::response(request.id, Status::NONE, "msgpack", b"\x93\xa13\xc0\xc0"),
        };
        peer.send(&answer).await;
    }
    let [nonsense, other, good] = calls;
    assert_eq!(rpc(nonsense.await).code, Code::BadReply);
    assert_eq!(rpc(other.await).code, Code::BadReply);
    assert_eq!(good.await.unwrap(), "3");
}

#[tokio::test]
async fn peer_that_breaks_the_protocol_is_left_and_named() {
    for (nonsense, word) in [
        (&b"HTTP/1.1 400 Bad Request\r\n"[..], "HTTP"),
        (b"\x00\x11", "magic"),
        (
            b"\x00\x10\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x7f\xff\xff\xff",
            "name",
        ),
    ] {
        let (listener, _, client) = played().await;
        let call = client.wait().future();
        let mut peer = accept(&listener).await;
        peer.next().await.unwrap();
        peer.next().await.unwrap();
        drop(listener);
        peer.send(nonsense).await;
        let error = rpc(call.await);
        assert_eq!(error.code, Code::Unavailable);
        assert!(error.message.contains(word), "{}", error.message);
        assert!(peer.next().await.is_none());
    }
}

#[tokio::test]
async fn p3_half_open_connection_is_noticed_within_heartbeat_and_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let invoker = Invoker::builder()
        .direct([listener.local_addr().unwrap().to_string()])
        .timeout(Duration::from_secs(30))
        .heartbeat(Duration::from_millis(100), Duration::from_secs(2))
        .build()
        .await
        .unwrap();
    let client = WireClient::refer(&invoker);
    let call = client.wait().future();
    let mut peer = accept(&listener).await;
    peer.next().await.unwrap();
    peer.greet(None).await;
    assert_eq!(peer.next().await.unwrap().kind, Kind::Request);
    // Pings that are answered keep it; then it falls silent.
    let mut answered = Instant::now();
    for _ in 0..3 {
        let ping = peer.next().await.unwrap();
        assert_eq!((ping.kind, ping.status), (Kind::Heartbeat, Status::PING));
        let mut pong = bytes::BytesMut::new();
        frame::pong(&mut pong);
        answered = Instant::now();
        peer.send(&pong).await;
    }
    let error = rpc(call.await);
    assert_eq!((error.code, error.executed), (Code::Unavailable, Executed::Maybe));
    assert!(error.message.contains("nothing was heard"), "{}", error.message);
    // Not before its time, and long before the call's own 30 s.
    let took = answered.elapsed();
    assert!(took >= Duration::from_millis(2100), "{took:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test]
async fn go_away_moves_new_calls_to_a_new_connection_and_lets_old_ones_end() {
    let (listener, _, client) = played().await;
    let old = client.echo("old".into()).future();
    let mut first = accept(&listener).await;
    first.next().await.unwrap();
    let old_id = first.next().await.unwrap().id;
    let mut go_away = bytes::BytesMut::new();
    frame::go_away(&mut go_away);
    first.greet(None).await;
    first.send(&go_away).await;
    // A ping is answered behind the GOAWAY, so that it has been seen.
    let mut ping = bytes::BytesMut::new();
    frame::ping(&mut ping);
    first.send(&ping).await;
    assert_eq!(first.next().await.unwrap().status, Status::NONE);
    let new = client.echo("new".into()).future();
    let mut second = accept(&listener).await;
    second.next().await.unwrap();
    let new_id = second.next().await.unwrap().id;
    second
        .send(&raw::response(
            new_id,
            Status::NONE,
            "msgpack",
            b"\x93\xa3new\xc0\xc0",
        ))
        .await;
    assert_eq!(new.await.unwrap(), "new");
    first
        .send(&raw::response(
            old_id,
            Status::NONE,
            "msgpack",
            b"\x93\xa3old\xc0\xc0",
        ))
        .await;
    assert_eq!(old.await.unwrap(), "old");
    assert!(first.next().await.is_none(), "closed after its last call");
}

#[tokio::test]
async fn too_many_calls_in_flight_are_overloaded_and_not_sent() {
    let (provider, watch) = net::provider().await;
    let invoker = Invoker::builder()
        .direct([provider.local_addr()])
        .in_flight_max(3)
        .timeout(Duration::from_secs(10))
        .build()
        .await
        .unwrap();
    let client = WireClient::refer(&invoker);
    let waiting: Vec<_> = (0..3).map(|_| client.wait().future()).collect();
    watch.until(|watch| value(&watch.started) == 3).await;
    let error = rpc(client.wait().await);
    assert_eq!((error.code, error.executed), (Code::Overloaded, Executed::No));
    watch.gate.add_permits(3);
    for call in waiting {
        assert_eq!(call.await.unwrap(), 1);
    }
    assert_eq!(client.echo("room again".into()).await.unwrap(), "room again");
}

/// A rolling restart: while one provider stops gracefully, the other serves, and no call fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn graceful_restart_under_load_fails_no_call() {
    let (one, other) = (net::provider().await.0, net::provider().await.0);
    let addresses = [one.local_addr().to_owned(), other.local_addr().to_owned()];
    let invoker = Invoker::builder()
        .direct(addresses.clone())
        .fault_tolerance("failover")
        .timeout(Duration::from_secs(10))
        .build()
        .await
        .unwrap();
    let client = WireClient::refer(&invoker);
    // How many calls have succeeded; closed when the callers shall stop.
    let (done, mut calls) = watch::channel(0_u64);
    let done = Arc::new(done);
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let (client, done) = (client.clone(), Arc::clone(&done));
        callers.spawn(async move {
            while done.receiver_count() > 0 {
                client.echo("x".into()).await.expect("no call fails");
                done.send_modify(|calls| *calls += 1);
            }
        });
    }
    let mut providers = [Some(one), Some(other)];
    for round in 0..4 {
        let at = round % 2;
        providers[at]
            .take()
            .unwrap()
            .shutdown(Duration::from_secs(5))
            .await;
        let again = Provider::builder()
            .listen(addresses[at].clone())
            .serve(WireServer::new(Handlers(Watch::default())))
            .start()
            .await
            .unwrap();
        // It serves again before the other one goes.
        let direct = net::invoker(&addresses[at]).await;
        WireClient::refer(&direct).echo("up".into()).await.unwrap();
        providers[at] = Some(again);
        let wanted = *calls.borrow() + 50;
        calls.wait_for(|calls| *calls >= wanted).await.unwrap();
    }
    drop(calls);
    while let Some(done) = callers.join_next().await {
        done.unwrap();
    }
    assert_eq!(invoker.statistics().in_flight, 0);
}

#[tokio::test]
async fn killed_and_restarted_provider_is_found_again() {
    let (provider, _) = net::provider().await;
    let address = provider.local_addr().to_owned();
    let invoker = net::invoker(&address).await;
    let client = WireClient::refer(&invoker);
    assert_eq!(client.echo("1".into()).await.unwrap(), "1");
    provider.shutdown(Duration::from_secs(5)).await;
    // Nobody listens: refused at once, and definitely not executed.
    let error = rpc(client.echo("2".into()).await);
    assert_eq!((error.code, error.executed), (Code::Unavailable, Executed::No));
    let _again = Provider::builder()
        .listen(address)
        .serve(WireServer::new(Handlers(Watch::default())))
        .start()
        .await
        .unwrap();
    let patience = Instant::now() + Duration::from_secs(10);
    while let Err(error) = client.echo("3".into()).await {
        assert!(Instant::now() < patience, "{error:?}");
    }
}

#[tokio::test]
async fn shutdown_ends_calls_with_cancelled() {
    let (_provider, watch, invoker, client) = net::pair().await;
    let mut call = JoinSet::new();
    call.spawn(client.wait().into_future());
    watch.until(|watch| value(&watch.started) == 1).await;
    invoker.shutdown().await;
    assert_eq!(
        rpc(call.join_next().await.unwrap().unwrap()).code,
        Code::Cancelled
    );
    assert_eq!(rpc(client.echo("after".into()).await).code, Code::Cancelled);
}
