//! Streams: their items, their ends, their windows, and that nothing is left of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rpc_core::transport::Memory;
use rpc_core::{CallError, Code, Executed, Invoker, Provider, Stream};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;

mod by_hand;
mod feed;

use feed::{FeedClient, FeedError, FeedServer, Source, rpc, start};

use crate::alone::alone;

#[tokio::test]
async fn items_come_in_order_and_then_the_end_with_every_serializer() {
    for serializer in ["msgpack", "json", "inverted"] {
        let side = start(serializer).await;
        let mut numbers = side.feed.numbers(5000).stream();
        for wanted in 0..5000 {
            assert_eq!(numbers.next().await, Some(Ok(wanted)), "{serializer}");
        }
        assert_eq!(numbers.next().await, None, "{serializer}");
        assert_eq!(numbers.next().await, None, "{serializer}");
        assert_eq!(side.feed.numbers(0).stream().next().await, None);
        side.drained().await;
    }
}

#[tokio::test]
async fn items_come_in_process_too_and_errors_are_typed_everywhere() {
    let side = start("msgpack").await;
    let local = FeedClient::local(Arc::new(Source::default()));
    for feed in [&side.feed, &local] {
        let some: Vec<_> = feed.numbers(1000).stream().collect().await;
        assert!(some.len() == 1000 && some.iter().all(Result::is_ok));
        let mut fallible = feed.fallible(9).stream();
        for wanted in 0..3 {
            assert_eq!(fallible.next().await, Some(Ok(wanted)));
        }
        let too_far = FeedError::TooFar { at: 3 };
        assert_eq!(fallible.next().await, Some(Err(CallError::App(too_far))));
        assert_eq!(fallible.next().await, None);
        let mut closed = feed.closed().stream();
        assert_eq!(closed.next().await, Some(Err(CallError::App(FeedError::Closed))));
        assert_eq!(closed.next().await, None);
        let mut overloaded = feed.overloaded().stream();
        assert_eq!(overloaded.next().await, Some(Ok(1)));
        let error = rpc(overloaded.next().await);
        assert_eq!((error.code, error.message.as_str()), (Code::Overloaded, "busy"));
        let mut panicking = feed.panic().stream();
        assert_eq!(panicking.next().await, Some(Ok(1)));
        let error = rpc(panicking.next().await);
        assert_eq!((error.code, error.executed), (Code::Internal, Executed::Yes));
    }
    side.drained().await;
}

#[tokio::test]
async fn items_bring_attachments() {
    let side = start("msgpack").await;
    for bytes in [0, 1, 10_000, 2_000_000] {
        let mut pieces = side.feed.pieces(5, bytes).stream();
        for wanted in 0..5 {
            let (number, piece) = pieces.next().await.unwrap().unwrap();
            assert_eq!((number, piece.len()), (wanted, bytes));
        }
        assert!(pieces.next().await.is_none());
    }
    side.drained().await;
}

#[tokio::test]
async fn handler_is_ahead_of_the_caller_by_no_more_than_the_window() {
    let side = start("msgpack").await;
    let local = FeedClient::local(Arc::clone(&side.source));
    for (feed, window) in [(&side.feed, 8_u32), (&side.feed, 1), (&local, 8), (&local, 1)] {
        let before = side.source.made();
        let mut numbers = feed.numbers(u64::MAX).window(window, 1 << 20).stream();
        for taken in 1..=100 {
            numbers.next().await.unwrap().unwrap();
            if taken % 10 == 0 {
                // Other calls of the connection go on, and give the handler every chance to run ahead.
                for number in 0..10 {
                    assert_eq!(side.feed.once(number).await, Ok(number));
                }
            }
            let made = side.source.made() - before;
            assert!(made <= taken + window as usize, "{made} made, {taken} taken");
        }
    }
    side.drained().await;
}

#[tokio::test]
async fn window_counts_bytes_too_and_lets_any_item_pass_alone() {
    let side = start("msgpack").await;
    let mut pieces = side.feed.pieces(20, 100_000).window(1000, 150_000).stream();
    for taken in 1..=20 {
        pieces.next().await.unwrap().unwrap();
        for number in 0..10 {
            assert_eq!(side.feed.once(number).await, Ok(number));
        }
        let made = side.source.made();
        assert!(made <= taken + 3, "{made} made, {taken} taken");
    }
    assert!(pieces.next().await.is_none());
    let small = side.feed.pieces(10, 300_000).window(1, 1).stream();
    assert_eq!(small.collect::<Vec<_>>().await.len(), 10);
    side.drained().await;
}

#[test]
fn items_about_as_large_as_what_may_wait_to_be_written_all_arrive() {
    alone(|| async {
        let network = Memory::default();
        let source = Arc::new(Source::default());
        let provider = Provider::builder()
            .listen("test:0")
            .transport(Arc::new(network.clone()))
            .unwritten_bytes_max(1 << 20)
            .serve(FeedServer::new(Arc::clone(&source)))
            .start()
            .await
            .unwrap();
        let invoker = Invoker::builder()
            .direct([provider.local_addr()])
            .transport(Arc::new(network));
        let feed = FeedClient::refer(&invoker.build().await.unwrap());
        let pieces = feed.pieces(20, 900_000).window(1000, u32::MAX).stream();
        assert_eq!(pieces.collect::<Vec<_>>().await.len(), 20);
        source.until_open(0).await;
    });
}

#[tokio::test]
async fn full_streams_of_a_connection_do_not_keep_its_calls_waiting() {
    let side = start("msgpack").await;
    let mut readers = tokio::task::JoinSet::new();
    let stop = tokio_util::sync::CancellationToken::new();
    for _ in 0..8 {
        let (mut pieces, stop) = (side.feed.pieces(u64::MAX, 1000).stream(), stop.clone());
        readers.spawn(async move {
            let mut taken = 0_u64;
            while !stop.is_cancelled() {
                pieces.next().await.unwrap().unwrap();
                taken += 1;
            }
            taken
        });
    }
    side.source.until_open(8).await;
    for number in 0..200 {
        assert_eq!(side.feed.once(number).await, Ok(number));
    }
    stop.cancel();
    while let Some(taken) = readers.join_next().await {
        assert!(taken.unwrap() > 0, "every stream got its turn");
    }
    side.drained().await;
}

#[tokio::test]
async fn dropped_stream_is_dropped_at_the_provider_whatever_it_waits_for() {
    let side = start("msgpack").await;
    // One waits for its source, one for room.
    let mut waiting = side.feed.follow(7).stream();
    assert_eq!(waiting.next().await, Some(Ok(7)));
    let mut full = side.feed.numbers(u64::MAX).window(4, 1000).stream();
    assert_eq!(full.next().await, Some(Ok(0)));
    side.source.until_open(2).await;
    drop((waiting, full));
    side.drained().await;
    // In process there is nobody else to tell.
    let source = Arc::new(Source::default());
    let mut waiting = FeedClient::local(Arc::clone(&source)).follow(7).stream();
    assert_eq!(waiting.next().await, Some(Ok(7)));
    assert_eq!(source.open.load(Ordering::SeqCst), 1);
    drop(waiting);
    assert_eq!(source.open.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn ten_thousand_dropped_streams_leave_nothing() {
    let side = start("msgpack").await;
    for _ in 0..50 {
        let mut all = Vec::new();
        for first in 0..200 {
            let mut stream = side.feed.follow(first).stream();
            assert_eq!(stream.next().await, Some(Ok(first)));
            all.push(stream);
        }
    }
    side.drained().await;
    assert_eq!(side.provider.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn deadline_is_that_of_the_whole_stream_and_there_is_none_unless_asked_for() {
    let (network, source) = (Arc::new(Memory::default()), Arc::new(Source::default()));
    let builder = Provider::builder().transport(network.clone()).listen("memory:0");
    let served = FeedServer::new(Arc::clone(&source));
    let provider = builder.serve(served).start().await.unwrap();
    let invoker = Invoker::builder()
        .direct([provider.local_addr()])
        .transport(network);
    let invoker = invoker.timeout(Duration::from_secs(1)).build().await.unwrap();
    let feed = FeedClient::refer(&invoker);
    let mut bounded = feed.slowly(300).timeout(Duration::from_millis(1000)).stream();
    for wanted in 0..4 {
        assert_eq!(bounded.next().await, Some(Ok(wanted)));
    }
    let error = rpc(bounded.next().await);
    assert_eq!(
        (error.code, error.executed),
        (Code::DeadlineExceeded, Executed::Maybe)
    );
    assert_eq!(bounded.next().await, None);
    // Two days, of which nothing is heard but the items: neither the invoker's time-out nor the provider's
    // patience with silent peers ends it.
    let mut endless = feed.slowly(20_000).window(100_000, u32::MAX).stream();
    for wanted in 0..8640 {
        assert_eq!(endless.next().await, Some(Ok(wanted)));
    }
    assert_eq!((provider.running(), invoker.statistics().in_flight), (1, 1));
}

#[tokio::test]
async fn stream_that_cannot_begin_fails_in_the_invokers_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let invoker = Invoker::builder()
        .direct([address])
        .timeout(Duration::from_millis(100));
    let feed = FeedClient::refer(&invoker.build().await.unwrap());
    let error = rpc(feed.numbers(1).stream().next().await);
    assert_eq!(
        (error.code, error.executed),
        (Code::DeadlineExceeded, Executed::No)
    );
}

#[tokio::test]
async fn leaving_provider_ends_its_streams_honestly_and_soon() {
    let side = start("msgpack").await;
    let mut following = side.feed.follow(7).stream();
    assert_eq!(following.next().await, Some(Ok(7)));
    let start = std::time::Instant::now();
    let (shutdown, last) = tokio::join!(side.provider.shutdown(Duration::from_secs(60)), following.next());
    let error = rpc(last);
    assert_eq!(
        (shutdown, error.code, error.executed),
        ((), Code::Draining, Executed::Yes)
    );
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    side.source.until_open(0).await;
}

#[tokio::test]
async fn call_and_stream_of_one_another_are_refused() {
    #[rpc_core::service(name = "test.Feed")]
    trait Mistaken {
        async fn numbers(&self, end: u64) -> u64;
        async fn once(&self, number: u64) -> impl Stream<Item = u64>;
    }
    let side = start("msgpack").await;
    let mistaken = MistakenClient::refer(&side.invoker);
    let error = mistaken.numbers(1).await.unwrap_err();
    let error = error.rpc().unwrap();
    assert_eq!((error.code, error.executed), (Code::BadRequest, Executed::No));
    let error = rpc(mistaken.once(1).stream().next().await);
    assert_eq!((error.code, error.executed), (Code::BadRequest, Executed::No));
    assert_eq!(side.source.made(), 0);
    side.drained().await;
}
