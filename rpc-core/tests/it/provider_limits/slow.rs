//! Slow methods are kept apart, by the rule, for as long as it says.

use super::*;

#[tokio::test(start_paused = true)]
async fn slow_method_does_not_starve_fast_ones() {
    let (provider, worker, client, _network) = pair(|builder| builder.connection_in_flight_max(64)).await;
    // hc-rpc's rule: ten calls of more than a second.
    for _ in 0..9 {
        client.nap(1100).await.unwrap();
    }
    let many: Vec<_> = (0..50).map(|_| client.nap(1100).future()).collect();
    until(|| worker.started() == 59).await;
    for call in many {
        call.await.unwrap();
    }
    // Now it has 32 places and no more, however many ask, and the connection keeps room for the others.
    let mut naps = JoinSet::new();
    for _ in 0..60 {
        naps.spawn(client.nap(60_000).into_future());
    }
    until(|| provider.running() == 32).await;
    for _ in 0..100 {
        assert_eq!(client.echo("fast".to_owned()).await.unwrap(), "fast");
    }
    assert_eq!(provider.running(), 32);
    let mut refused = 0;
    while let Some(outcome) = naps.join_next().await {
        let outcome = outcome.unwrap();
        if outcome.is_err() {
            overloaded(outcome);
            refused += 1;
        }
    }
    assert_eq!((refused, worker.started()), (28, 59 + 32));
    assert_eq!(provider.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn slow_method_is_fast_again_when_its_slow_calls_are_five_minutes_old() {
    let rule = SlowMethods::default().in_flight_max(1);
    let (provider, _, client, _network) = pair(|builder| builder.slow_methods(rule)).await;
    for _ in 0..10 {
        client.nap(1100).await.unwrap();
    }
    let nap = client.nap(500).future();
    until(|| provider.running() == 1).await;
    overloaded(client.nap(1).await);
    nap.await.unwrap();
    // The oldest of the ten ended 1.1 s after the start.
    sleep(Duration::from_secs(280)).await;
    let nap = client.nap(500).future();
    until(|| provider.running() == 1).await;
    overloaded(client.nap(1).await);
    nap.await.unwrap();
    sleep(Duration::from_secs(20)).await;
    let nap = client.nap(500).future();
    until(|| provider.running() == 1).await;
    client.nap(1).await.unwrap();
    nap.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn quick_calls_in_a_row_forgive_a_bad_moment() {
    let rule = SlowMethods::default().in_flight_max(1).forgiven_after(5);
    let (provider, _, client, _network) = pair(|builder| builder.slow_methods(rule)).await;
    for _ in 0..10 {
        client.nap(1100).await.unwrap();
    }
    for _ in 0..5 {
        client.nap(1).await.unwrap();
    }
    let nap = client.nap(500).future();
    until(|| provider.running() == 1).await;
    client.nap(1).await.unwrap();
    nap.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn long_polls_limited_methods_and_switched_off_rules_are_never_slow() {
    let rule = SlowMethods::default()
        .calls(1, Duration::from_mins(5))
        .in_flight_max(1);
    let limited = |builder: ProviderBuilder| builder.slow_methods(rule).limit_method("test.Work", "nap", 100);
    let (provider, _, client, _network) = pair(limited).await;
    client.poll(5000).await.unwrap();
    client.nap(5000).await.unwrap();
    let both = [client.poll(9000).future(), client.poll(9000).future()];
    let more = [client.nap(9000).future(), client.nap(9000).future()];
    until(|| provider.running() == 4).await;
    for call in both.into_iter().chain(more) {
        call.await.unwrap();
    }
    let (provider, _, client, _network) = pair(|builder| builder.slow_methods(None)).await;
    for _ in 0..20 {
        client.nap(5000).await.unwrap();
    }
    let many: Vec<_> = (0..40).map(|_| client.nap(9000).future()).collect();
    until(|| provider.running() == 40).await;
    drop(many);
}
