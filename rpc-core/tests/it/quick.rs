//! Quick handlers run where their requests are read, all others as tasks; callers see no difference.

use std::collections::HashSet;
use std::time::Duration;

use rpc_core::{CallError, Code, Executed, Invoker, Provider};
use tokio::task::JoinSet;

#[rpc_core::service(name = "test.Quick")]
trait Quick {
    /// The task it runs in.
    async fn task(&self) -> String;
    /// Quick as often as not.
    async fn sometimes(&self, number: u64) -> u64;
    /// Panics for every seventh number.
    async fn seventh(&self, number: u64) -> u64;
    /// Holds its thread for so long, at once or after a wait.
    async fn holds(&self, ms: u64, later: bool);
}

struct Plain;

impl Quick for Plain {
    async fn task(&self) -> String {
        tokio::task::id().to_string()
    }

    async fn sometimes(&self, number: u64) -> u64 {
        // Whole rows of either kind, so that the method is now quick and now not.
        if number / 100 % 2 == 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        number
    }

    async fn seventh(&self, number: u64) -> u64 {
        assert!(!number.is_multiple_of(7), "on purpose");
        number
    }

    async fn holds(&self, ms: u64, later: bool) {
        if later {
            tokio::task::yield_now().await;
        }
        let until = std::time::Instant::now() + Duration::from_millis(ms);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
    }
}

async fn pair(quick: Duration) -> (Provider, Invoker, QuickClient) {
    let provider = Provider::builder()
        .quick_handlers(quick)
        .serve(QuickServer::new(Plain))
        .start()
        .await
        .unwrap();
    let invoker = Invoker::builder()
        .direct([provider.local_addr()])
        .timeout(Duration::from_secs(20))
        .build()
        .await
        .unwrap();
    let client = QuickClient::refer(&invoker);
    (provider, invoker, client)
}

/// The tasks of the last of many calls, when their method is known.
async fn tasks(client: &QuickClient) -> HashSet<String> {
    let mut tasks = Vec::new();
    for _ in 0..200 {
        tasks.push(client.task().await.unwrap());
    }
    tasks.split_off(100).into_iter().collect()
}

#[tokio::test]
async fn quick_handlers_run_in_the_task_that_reads() {
    let (_provider, _invoker, client) = pair(Duration::from_secs(60)).await;
    assert_eq!(tasks(&client).await.len(), 1);
}

#[tokio::test]
async fn zero_gives_every_request_a_task() {
    let (_provider, _invoker, client) = pair(Duration::ZERO).await;
    assert_eq!(tasks(&client).await.len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_are_answered_however_they_were_begun() {
    let (provider, invoker, client) = pair(Duration::from_secs(60)).await;
    let mut callers = JoinSet::new();
    for caller in 0..20 {
        let client = client.clone();
        callers.spawn(async move {
            for number in caller * 1000..caller * 1000 + 400 {
                assert_eq!(client.sometimes(number).await.unwrap(), number);
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_eq!(invoker.statistics().answers_dropped, 0);
    assert_eq!(provider.running(), 0);
}

#[tokio::test]
async fn panic_of_a_quick_handler_fails_its_call_alone() {
    let (provider, _invoker, client) = pair(Duration::from_secs(60)).await;
    for number in 1..300 {
        match client.seventh(number).await {
            Ok(answer) => assert!(answer == number && number % 7 != 0),
            Err(CallError::Rpc(error)) => {
                assert_eq!((error.code, error.executed), (Code::Internal, Executed::Yes));
                assert_eq!(number % 7, 0);
            }
            Err(CallError::App(never)) => match never {},
        }
    }
    assert_eq!((provider.connections(), provider.running()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handler_that_blocks_its_thread_is_noticed_and_one_that_does_not_is_not() {
    let quick = Duration::from_micros(5);
    for (later, quick) in [(false, quick), (true, quick), (true, Duration::ZERO)] {
        let (provider, _invoker, client) = pair(quick).await;
        let blocked = || {
            let services = provider.insight().services();
            let methods = services.iter().flat_map(|service| &service.methods);
            let blocked = methods.map(|method| (method.name.clone(), method.blocked));
            blocked.filter(|(_, times)| *times > 0).collect::<Vec<_>>()
        };
        client.task().await.unwrap();
        assert!(blocked().is_empty());
        client.holds(110, later).await.unwrap();
        assert_eq!(blocked(), [("holds".to_owned(), 1)], "{later}");
    }
}
