//! How much runs at once, and what is refused or dropped before it runs.

use super::*;
use crate::alone::alone;

#[tokio::test(start_paused = true)]
async fn method_limit_of_the_attribute_holds_and_the_builders_goes_over_it() {
    let (_provider, worker, client, _network) = pair(|builder| builder).await;
    let two = [client.narrow().future(), client.narrow().future()];
    until(|| worker.started() == 2).await;
    overloaded(client.narrow().await);
    worker.gate.add_permits(2);
    for call in two {
        call.await.unwrap();
    }
    let one = |builder: ProviderBuilder| {
        builder
            .limit_method("test.Work", "narrow", 5)
            .limit_method("test.Work", "narrow", 1)
    };
    let (_provider, worker, client, _network) = pair(one).await;
    let first = client.narrow().future();
    until(|| worker.started() == 1).await;
    overloaded(client.narrow().await);
    worker.gate.add_permits(1);
    first.await.unwrap();
    let unknown = Provider::builder()
        .serve(WorkServer::new(Worker::new()))
        .limit_method("test.Work", "narow", 1)
        .start()
        .await;
    assert!(
        matches!(unknown, Err(ProviderError::UnknownMethod { .. })),
        "{unknown:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn bytes_of_requests_at_once_are_bounded_over_all_connections() {
    let (provider, worker, client, network) = pair(|builder| builder.in_flight_bytes_max(100_000)).await;
    let other = self::client(&provider, &network, None).await;
    let bytes = |length: usize| Attachment::from(bytes::Bytes::from(vec![1; length]));
    let first = client.hold(bytes(60_000)).future();
    until(|| worker.started() == 1).await;
    overloaded(other.hold(bytes(60_000)).await);
    let second = other.hold(bytes(30_000)).future();
    until(|| worker.started() == 2).await;
    worker.gate.add_permits(2);
    first.await.unwrap();
    second.await.unwrap();
    // One that is too large alone still has its turn when nothing else runs.
    worker.gate.add_permits(1);
    client.hold(bytes(200_000)).await.unwrap();
    assert_eq!(provider.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn connection_limit_comes_before_the_providers_and_that_before_the_methods() {
    let configure = |builder: ProviderBuilder| {
        builder
            .connection_in_flight_max(1)
            .in_flight_max(2)
            .method_in_flight_max(2)
    };
    let (provider, worker, client, network) = pair(configure).await;
    let message = |outcome: Result<(), CallError>| match outcome {
        Err(CallError::Rpc(error)) if error.code == Code::Overloaded => error.message,
        other => panic!("{other:?}"),
    };
    let hold = |client: &WorkClient| client.hold(Attachment::new());
    let first = hold(&client).future();
    until(|| worker.started() == 1).await;
    assert!(message(hold(&client).await).contains("on this connection"));
    let second = self::client(&provider, &network, None).await;
    let waiting = hold(&second).future();
    until(|| worker.started() == 2).await;
    let third = self::client(&provider, &network, None).await;
    assert!(message(hold(&third).await).contains("in this provider"));
    worker.gate.add_permits(2);
    first.await.unwrap();
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn expired_requests_are_dropped_unexecuted() {
    let (provider, worker, client, _network) = pair(|builder| builder.blocking_max(1)).await;
    let first = client.block().future();
    until(|| worker.started() == 1).await;
    // Waits for the only thread until its time is over.
    let late = client.block().timeout(Duration::from_secs(5)).future();
    // A blocked thread holds the clock of the tests.
    until(|| provider.running() == 2).await;
    tokio::time::advance(Duration::from_secs(6)).await;
    let late = late.await;
    assert_eq!(late.unwrap_err().rpc().unwrap().code, Code::DeadlineExceeded);
    worker.gate.add_permits(2);
    first.await.unwrap();
    client.echo("still here".to_owned()).await.unwrap();
    client.block().await.unwrap();
    assert_eq!(worker.started(), 2, "the expired one was never started");
}

#[tokio::test(start_paused = true)]
async fn request_that_arrives_expired_is_answered_and_not_executed() {
    let (provider, worker, _, network) = pair(|builder| builder).await;
    let mut peer = network.connect(provider.local_addr()).await.unwrap();
    let request = raw::request_of("test.Work", 1, "nap", b"\x91\x01", Some(Duration::ZERO));
    peer.write.write_all(&request).await.unwrap();
    let answer = answer(&mut peer).await;
    assert_eq!(raw::failure(&answer), (Code::DeadlineExceeded.number(), 0));
    assert_eq!(worker.started(), 0);
}

#[test]
fn answers_larger_than_half_of_what_may_wait_to_be_written_all_arrive() {
    alone(|| async {
        let (provider, _, client, _network) = pair(|builder| builder.unwritten_bytes_max(8 << 20)).await;
        let mut calls = JoinSet::new();
        for _ in 0..6 {
            calls.spawn(client.blob(5 << 20).future());
        }
        while let Some(answer) = calls.join_next().await {
            let ((), blob) = answer.unwrap().unwrap();
            assert_eq!(blob.len(), 5 << 20);
        }
        assert_eq!(provider.running(), 0);
    });
}

#[tokio::test(start_paused = true)]
async fn request_cancelled_before_its_handler_ran_is_not_executed() {
    let (provider, worker, _, network) = pair(|builder| builder).await;
    let mut peer = network.connect(provider.local_addr()).await.unwrap();
    // Both are read in one go, before the request's task runs.
    let mut out = raw::request_of("test.Work", 1, "nap", b"\x91\x01", None);
    frame::cancel(&mut out, 1);
    peer.write.write_all(&out).await.unwrap();
    assert_eq!(
        raw::failure(&answer(&mut peer).await),
        (Code::Cancelled.number(), 0)
    );
    assert_eq!(worker.started(), 0);
}

#[tokio::test(start_paused = true)]
async fn cancelled_request_does_not_wait_for_a_thread_and_is_not_executed() {
    let (provider, worker, client, _network) = pair(|builder| builder.blocking_max(1)).await;
    let first = client.block().future();
    until(|| worker.started() == 1).await;
    let second = client.block().future();
    // A blocked thread holds the clock of the tests.
    until(|| provider.running() == 2).await;
    drop(second);
    until(|| provider.running() == 1).await;
    worker.gate.add_permits(2);
    first.await.unwrap();
    client.block().await.unwrap();
    assert_eq!(worker.started(), 2, "the cancelled one was never started");
}

#[tokio::test(start_paused = true)]
async fn request_that_has_arrived_when_a_leaving_connection_falls_quiet_is_refused_and_not_lost() {
    let (provider, worker, client, network) = pair(|builder| builder).await;
    drop(client);
    let mut peer = network.connect(provider.local_addr()).await.unwrap();
    let nap = |id| raw::request_of("test.Work", id, "nap", b"\x91\x01", None);
    peer.write.write_all(&nap(1)).await.unwrap();
    assert_eq!(answer(&mut peer).await.id, 1);
    let mut stopping = JoinSet::new();
    stopping.spawn(provider.shutdown(Duration::from_secs(60)));
    // The connection's task wakes at the same moment, and finds both: its time is over, and a request has arrived.
    sleep(Duration::from_millis(500)).await;
    peer.write.write_all(&nap(2)).await.unwrap();
    let refused = answer(&mut peer).await;
    assert_eq!(
        (refused.id, raw::failure(&refused)),
        (2, (Code::Draining.number(), 0))
    );
    stopping.join_next().await.unwrap().unwrap();
    assert_eq!(worker.started(), 1);
}

/// The next answer to a peer that speaks frames.
async fn answer(peer: &mut Stream) -> frame::Frame {
    let mut decoder = frame::Decoder::new(1 << 20);
    let mut buffer = BytesMut::new();
    loop {
        if let Some(answer) = decoder.next(&mut buffer).unwrap() {
            return answer;
        }
        let bytes = peer.read.read_buf(&mut buffer).await.unwrap();
        assert!(bytes > 0, "closed without an answer");
    }
}
