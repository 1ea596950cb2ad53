//! Calls over TCP: every form, every ending.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rpc_core::{Attachment, CallError, Code, Executed, RpcError};
use tokio::task::JoinSet;

use crate::net::{self, value};

fn rpc<T: std::fmt::Debug, E: std::fmt::Debug>(outcome: Result<T, CallError<E>>) -> RpcError {
    match outcome {
        Err(CallError::Rpc(error)) => error,
        other => panic!("expected an error of the framework, got {other:?}"),
    }
}

#[tokio::test]
async fn call_goes_there_and_back() {
    let (provider, _, invoker, client) = net::pair().await;
    assert_eq!(client.echo("hello".into()).await.unwrap(), "hello");
    let error = client.fail("own error".into()).await.unwrap_err();
    assert_eq!(error, CallError::App("own error".to_owned()));
    invoker.shutdown().await;
    provider.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_calls_use_one_connection_and_leave_no_slot() {
    let (provider, _, invoker, client) = net::pair().await;
    let mut callers = JoinSet::new();
    for caller in 0..100 {
        let client = client.clone();
        callers.spawn(async move {
            for call in 0..100 {
                let text = format!("{caller}.{call}");
                assert_eq!(client.echo(text.clone()).await.unwrap(), text);
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_eq!(provider.connections(), 1);
    assert_eq!(invoker.statistics().in_flight, 0);
    assert_eq!(invoker.statistics().answers_dropped, 0);
}

#[tokio::test]
async fn attachments_travel_both_ways_beside_small_calls() {
    let (_provider, _, _, client) = net::pair().await;
    for bytes in [0, 1, 100, 8 * 1024 - 1, 8 * 1024, 100_000, 3_000_000] {
        let body = Bytes::from(vec![7; bytes]);
        let (length, twice) = client.double(Attachment::from(body.clone())).await.unwrap();
        assert_eq!(length as usize, bytes);
        assert_eq!(twice.into_bytes(), [&body[..], &body[..]].concat());
        assert_eq!(client.echo("between".into()).await.unwrap(), "between");
    }
}

#[tokio::test]
async fn timeouts_leave_no_slot_and_cancel_the_handler() {
    let (_provider, watch, invoker, client) = net::pair().await;
    client.echo("connected".into()).await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..50 {
        let call = client.wait().timeout(Duration::from_millis(500)).into_future();
        calls.spawn(call);
    }
    let start = Instant::now();
    while let Some(outcome) = calls.join_next().await {
        let error = rpc(outcome.unwrap());
        assert_eq!(
            (error.code, error.executed),
            (Code::DeadlineExceeded, Executed::Maybe)
        );
    }
    // One after the other they would take 25 s.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(invoker.statistics().in_flight, 0);
    watch
        .until(|watch| value(&watch.cancelled) == value(&watch.started))
        .await;
}

#[tokio::test]
async fn handler_knows_how_much_time_is_left() {
    let (_provider, _, _, client) = net::pair().await;
    let left = client.left().timeout(Duration::from_secs(5)).await.unwrap();
    assert!((1_000..=5_000).contains(&left), "{left}");
}

#[tokio::test]
async fn dropped_caller_frees_its_slot_and_cancels_the_handler() {
    let (_provider, watch, invoker, client) = net::pair().await;
    let call = client.wait().future();
    watch.until(|watch| value(&watch.started) == 1).await;
    drop(call);
    watch.until(|watch| value(&watch.cancelled) == 1).await;
    assert_eq!(invoker.statistics().in_flight, 0);
}

#[tokio::test]
async fn oneway_is_handled_without_an_answer() {
    let (_provider, watch, invoker, client) = net::pair().await;
    for _ in 0..10 {
        client.note().oneway().await.unwrap();
    }
    watch.until(|watch| value(&watch.noted) == 10).await;
    assert_eq!(invoker.statistics().answers_dropped, 0);
    assert_eq!(invoker.statistics().in_flight, 0);
}

#[tokio::test]
async fn oneway_calls_before_a_shutdown_are_handled() {
    for _ in 0..3 {
        let (_provider, watch, invoker, client) = net::pair().await;
        client.echo("here".into()).await.unwrap();
        // More than a socket holds, so that the last ones wait for the peer when the invoker is shut down.
        for _ in 0..8 {
            client.echo("x".repeat(2_000_000)).oneway().await.unwrap();
        }
        for _ in 0..3 {
            client.note().oneway().await.unwrap();
        }
        invoker.shutdown().await;
        watch.until(|watch| value(&watch.noted) == 3).await;
    }
}

#[tokio::test]
async fn panic_of_a_handler_is_internal_and_the_connection_lives() {
    let (provider, _, _, client) = net::pair().await;
    let error = rpc(client.panic().await);
    assert_eq!((error.code, error.executed), (Code::Internal, Executed::Yes));
    assert_eq!(client.echo("on".into()).await.unwrap(), "on");
    assert_eq!((provider.connections(), provider.running()), (1, 0));
}

#[tokio::test]
async fn blocking_method_does_not_hold_the_runtime_up() {
    let (_provider, _, _, client) = net::pair().await;
    let blocked = client.block(3000).future();
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(client.echo("x".into()).await.unwrap(), "x");
    }
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(blocked.await.unwrap(), 3);
}

#[tokio::test]
async fn unknown_names_are_not_found_and_not_executed() {
    let (_provider, _, invoker, _) = net::pair().await;
    let client = net::WireClient::refer(&invoker).version("9.9");
    let error = rpc(client.echo("x".into()).await);
    assert_eq!((error.code, error.executed), (Code::NotFound, Executed::No));
}

#[tokio::test]
async fn nobody_listening_is_unavailable_and_not_executed() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let invoker = net::invoker(&address).await;
    let error = rpc(net::WireClient::refer(&invoker).echo("x".into()).await);
    assert_eq!((error.code, error.executed), (Code::Unavailable, Executed::No));
    assert!(error.message.contains(&address), "{}", error.message);
}

#[tokio::test]
async fn late_answer_finds_nobody() {
    let (_provider, watch, invoker, client) = net::pair().await;
    // A first attempt whose caller gives up, and a second one which must not get the first one's answer.
    client.echo("connected".into()).await.unwrap();
    let first = client.wait().timeout(Duration::from_secs(1)).future();
    watch.until(|watch| value(&watch.started) == 1).await;
    let error = rpc(first.await);
    assert_eq!(error.code, Code::DeadlineExceeded);
    let second = client.wait().future();
    watch.until(|watch| value(&watch.started) == 2).await;
    // The cancelled first handler answers 2, and its answer comes before the second one's.
    watch.until(|watch| value(&watch.cancelled) == 1).await;
    client.echo("the first answer is behind us".into()).await.unwrap();
    assert_eq!(invoker.statistics().answers_dropped, 1);
    watch.gate.add_permits(1);
    assert_eq!(second.await.unwrap(), 1);
    assert_eq!(watch.started.load(Ordering::SeqCst), 2);
}
