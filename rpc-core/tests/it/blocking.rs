//! Calls from threads outside of any runtime.

use std::thread;
use std::time::Duration;

use rpc_core::{CallError, Code, Executed, Invoker, Provider, Stream};
use tokio::runtime::Runtime;

#[rpc_core::service(name = "test.Desk")]
trait Desk {
    async fn double(&self, number: u64) -> Result<u64, String>;
    async fn forever(&self);
    async fn count(&self, end: u64) -> impl Stream<Item = Result<u64, String>>;
}

struct Clerk;

impl Desk for Clerk {
    async fn double(&self, number: u64) -> Result<u64, String> {
        number.checked_mul(2).ok_or_else(|| "too large".to_owned())
    }

    async fn forever(&self) {
        std::future::pending::<()>().await;
    }

    async fn count(&self, end: u64) -> impl Stream<Item = Result<u64, String>> {
        tokio_stream::iter((0..=end).map(move |number| match number == end {
            true => Err("enough".to_owned()),
            false => Ok(number),
        }))
    }
}

async fn start() -> (Provider, Invoker, DeskClient) {
    let provider = Provider::builder()
        .serve(DeskServer::new(Clerk))
        .start()
        .await
        .unwrap();
    let invoker = Invoker::builder().direct([provider.local_addr()]);
    let invoker = invoker.timeout(Duration::from_secs(10)).build().await.unwrap();
    let desk = DeskClient::refer(&invoker);
    (provider, invoker, desk)
}

#[test]
fn threads_outside_wait_for_calls_and_streams() {
    let runtime = Runtime::new().unwrap();
    let (provider, invoker, desk) = runtime.block_on(start());
    let local = runtime.block_on(async { DeskClient::local(Clerk) });
    let threads: Vec<_> = [desk, local]
        .into_iter()
        .map(|desk| {
            thread::spawn(move || {
                for number in 0..100 {
                    assert_eq!(desk.double(number).wait(), Ok(2 * number));
                }
                let error = desk.double(u64::MAX).wait();
                assert_eq!(error, Err(CallError::App("too large".to_owned())));
                let late = desk
                    .forever()
                    .timeout(Duration::from_millis(20))
                    .wait()
                    .unwrap_err();
                assert_eq!(late.rpc().unwrap().code, Code::DeadlineExceeded);
                let mut count = desk.count(1000).wait().unwrap();
                for wanted in 0..1000 {
                    assert_eq!(count.next(), Some(Ok(wanted)));
                }
                assert_eq!(count.next(), Some(Err(CallError::App("enough".to_owned()))));
                assert_eq!(count.next(), None);
                // Dropped before its end.
                assert_eq!(desk.count(u64::MAX).wait().unwrap().take(3).count(), 3);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(invoker.statistics().in_flight, 0);
    drop(provider);
}

#[test]
fn thread_of_a_runtime_is_refused_at_once() {
    let runtime = Runtime::new().unwrap();
    let (_provider, invoker, desk) = runtime.block_on(start());
    runtime.block_on(async {
        let error = desk.double(1).wait().unwrap_err();
        let error = error.rpc().unwrap();
        assert_eq!((error.code, error.executed), (Code::Unsupported, Executed::No));
        assert!(error.message.contains(".await"), "{error}");
        assert_eq!(desk.count(1).wait().unwrap_err().code, Code::Unsupported);
        // What the message says to do there instead.
        let desk = desk.clone();
        let inside = tokio::task::spawn_blocking(move || {
            let refused = desk.double(1).wait().unwrap_err();
            let done = tokio::runtime::Handle::current().block_on(desk.double(2).into_future());
            (refused.rpc().unwrap().code, done)
        });
        assert_eq!(inside.await.unwrap(), (Code::Unsupported, Ok(4)));
    });
    // An iterator that was begun outside is no way around it.
    let mut count = desk.count(9).wait().unwrap();
    assert_eq!(count.next(), Some(Ok(0)));
    let inside = runtime.block_on(async { count.next() });
    assert!(matches!(inside, Some(Err(CallError::Rpc(error))) if error.code == Code::Unsupported));
    assert_eq!(count.next(), None);
    runtime.block_on(invoker.shutdown());
}

#[test]
fn runtime_that_nobody_drives_ends_the_wait_all_the_same() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (_provider, _invoker, desk) = runtime.block_on(start());
    let error = desk
        .double(1)
        .timeout(Duration::from_millis(10))
        .wait()
        .unwrap_err();
    let error = error.rpc().unwrap();
    assert_eq!(
        (error.code, error.executed),
        (Code::DeadlineExceeded, Executed::Maybe)
    );
}

#[test]
fn thread_without_any_runtime_is_told_so() {
    let desk = DeskClient::local(Clerk);
    let error = desk.double(1).wait().unwrap_err();
    assert_eq!(error.rpc().unwrap().code, Code::Unavailable);
}
