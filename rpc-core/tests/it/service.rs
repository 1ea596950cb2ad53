//! `#[service]` and the forms of a call, in process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rpc_core::{Attachment, CallError, Code, Context, Executed, RpcError};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum GreetError {
    Rude { word: String },
}

/// Greets.
#[rpc_core::service(name = "hc.Greeter")]
trait Greeter {
    /// Says hello.
    async fn greet(&self, name: String) -> Result<String, GreetError>;
    #[rpc(idempotent)]
    async fn count(&self) -> u64;
    async fn lifted(&self, ok: bool) -> Result<(), CallError<GreetError>>;
    async fn send(&self, times: u32, data: Attachment) -> Result<(usize, Attachment), CallError>;
    async fn panics(&self);
    #[rpc(blocking, parameter_types("com.acme.Order"), result_type = "com.acme.Receipt")]
    async fn sleeps(&self, duration: Duration) -> Option<Duration>;
    async fn pair(&self) -> ((), Attachment);
    async fn doubled(&self, value: i32) -> i32 {
        value * 2
    }
}

#[derive(Debug, Default)]
struct Polite {
    greeted: AtomicUsize,
}

impl Greeter for Polite {
    async fn greet(&self, name: String) -> Result<String, GreetError> {
        if name == "oaf" {
            return Err(GreetError::Rude { word: name });
        }
        self.greeted.fetch_add(1, Ordering::Relaxed);
        Ok(format!("hello {name}"))
    }

    async fn count(&self) -> u64 {
        self.greeted.load(Ordering::Relaxed) as u64
    }

    async fn lifted(&self, ok: bool) -> Result<(), CallError<GreetError>> {
        if !ok {
            Err(GreetError::Rude {
                word: "no".to_owned(),
            })?;
        }
        Err(CallError::Rpc(RpcError::new(
            Code::Overloaded,
            Executed::No,
            "not today",
        )))
    }

    async fn send(&self, times: u32, data: Attachment) -> Result<(usize, Attachment), CallError> {
        let bytes = data.len();
        let parts = vec![data.into_bytes(); times as usize];
        Ok((bytes, parts.into()))
    }

    async fn panics(&self) {
        panic!("on purpose");
    }

    async fn sleeps(&self, duration: Duration) -> Option<Duration> {
        tokio::time::sleep(duration).await;
        Context::current().time_left()
    }

    async fn pair(&self) -> ((), Attachment) {
        ((), Bytes::from_static(b"x").into())
    }
}

fn client() -> GreeterClient {
    GreeterClient::local(Polite::default())
}

#[tokio::test]
async fn typed_values_and_errors_cross() {
    let client = client();
    assert_eq!(client.greet("ann".to_owned()).await, Ok("hello ann".to_owned()));
    assert_eq!(client.count().await, Ok(1));
    assert_eq!(client.doubled(21).await, Ok(42));
    let rude = CallError::App(GreetError::Rude {
        word: "oaf".to_owned(),
    });
    assert_eq!(client.greet("oaf".to_owned()).await, Err(rude));
    let rude = CallError::App(GreetError::Rude {
        word: "no".to_owned(),
    });
    assert_eq!(client.lifted(false).await, Err(rude));
    let refused = client.lifted(true).await.unwrap_err();
    let refused = refused.rpc().unwrap();
    assert_eq!((refused.code, refused.executed), (Code::Overloaded, Executed::No));
}

#[tokio::test]
async fn attachments_are_not_copied() {
    let part = Bytes::from(vec![7; 1000]);
    let (bytes, back) = client().send(3, part.clone().into()).await.unwrap();
    assert_eq!(bytes, 1000);
    assert_eq!(back.len(), 3000);
    assert!(
        back.parts()
            .iter()
            .all(|returned| returned.as_ptr() == part.as_ptr())
    );
    let ((), one) = client().pair().await.unwrap();
    assert_eq!(one.into_bytes(), "x");
}

#[tokio::test]
async fn panic_of_a_handler_is_internal_and_says_nothing_else() {
    let error = client().panics().await.unwrap_err();
    let error = error.rpc().unwrap();
    assert_eq!((error.code, error.executed), (Code::Internal, Executed::Yes));
    assert!(!error.message.contains("on purpose"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn time_out_ends_the_call_and_its_handler_knows_it() {
    let error = client()
        .sleeps(Duration::from_secs(5))
        .timeout(Duration::from_secs(2))
        .await
        .unwrap_err();
    assert_eq!(error.rpc().unwrap().code, Code::DeadlineExceeded);
    let left = client()
        .sleeps(Duration::from_secs(1))
        .timeout(Duration::from_secs(3))
        .await
        .unwrap();
    assert_eq!(left, Some(Duration::from_secs(2)));
}

#[tokio::test]
async fn started_call_runs_unpolled_and_stops_when_dropped() {
    #[rpc_core::service(name = "hc.Flag")]
    trait Flag {
        async fn wave(&self, stay: bool);
    }
    struct Flags(std::sync::Mutex<Option<oneshot::Sender<Guard>>>, Arc<AtomicUsize>);
    #[derive(Debug)]
    struct Guard(Arc<AtomicUsize>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    impl Flag for Flags {
        async fn wave(&self, stay: bool) {
            let started = self.0.lock().unwrap().take().unwrap();
            let _guard = Guard(Arc::clone(&self.1));
            started.send(Guard(Arc::default())).unwrap();
            if stay {
                std::future::pending::<()>().await;
            }
        }
    }
    let (sender, started) = oneshot::channel();
    let ended = Arc::new(AtomicUsize::new(0));
    let client = FlagClient::local(Flags(std::sync::Mutex::new(Some(sender)), Arc::clone(&ended)));
    let call = client.wave(true).timeout(Duration::from_secs(60)).future();
    started.await.unwrap();
    drop(call);
    while ended.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn callback_gets_the_outcome_on_its_own_thread() {
    let client = client();
    let (sender, outcome) = oneshot::channel();
    let caller = std::thread::current().id();
    let callback = move |result| {
        sender
            .send((result, std::thread::current().id() == caller))
            .unwrap();
    };
    client.greet("bo".to_owned()).callback(callback).unwrap();
    assert_eq!(outcome.await.unwrap(), (Ok("hello bo".to_owned()), false));
    let (sender, outcome) = oneshot::channel();
    client
        .count()
        .callback_wait(|count| sender.send(count).unwrap())
        .await
        .unwrap();
    assert_eq!(outcome.await.unwrap(), Ok(1));
}

#[tokio::test]
async fn oneway_reaches_the_handler() {
    let client = client();
    client.greet("cy".to_owned()).oneway().await.unwrap();
    while client.count().await.unwrap() == 0 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn methods_say_what_java_must_know() {
    let methods = GreeterClient::METHODS;
    assert_eq!(*methods[0].parameter_types, ["java.lang.String"]);
    assert_eq!(methods[0].result_type, "java.lang.String");
    assert!(methods[1].idempotent && !methods[1].blocking);
    assert_eq!(*methods[3].parameter_types, ["long"]);
    assert!(methods[5].blocking);
    assert_eq!(
        (&*methods[5].parameter_types[0], &*methods[5].result_type),
        ("com.acme.Order", "com.acme.Receipt")
    );
}

/// Asks another service how long it has.
#[rpc_core::service(name = "hc.Front")]
trait Front {
    async fn time_left(&self, timeout: Duration, spawned: bool) -> Option<Duration>;
}

struct Fronting(GreeterClient);

impl Front for Fronting {
    async fn time_left(&self, timeout: Duration, spawned: bool) -> Option<Duration> {
        let call = self.0.sleeps(Duration::ZERO).timeout(timeout);
        let answer = match spawned {
            false => call.await,
            true => {
                let context = Context::current();
                let mut tasks = tokio::task::JoinSet::new();
                tasks.spawn(context.scope(async move { call.await }));
                tasks.join_next().await.unwrap().unwrap()
            }
        };
        answer.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn nested_call_ends_no_later_than_the_call_being_served() {
    let front = FrontClient::local(Fronting(client()));
    let (short, long) = (Duration::from_secs(2), Duration::from_secs(60));
    for spawned in [false, true] {
        let left = front.time_left(long, spawned).timeout(short).await.unwrap();
        assert_eq!(left, Some(short), "spawned: {spawned}");
        let left = front.time_left(short, spawned).timeout(long).await.unwrap();
        assert_eq!(left, Some(short), "spawned: {spawned}");
    }
    assert_eq!(Context::current().deadline(), None);
}
