//! Forms, errors, serializers and fault tolerance of calls, over connections.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rpc_core::filter::{Filter, Next, Side};
use rpc_core::message::{Request, Response};
use rpc_core::{Attachment, BoxFuture, CallError, Code, Context, Executed, Invoker, Provider, RpcError};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};

use crate::net;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum BankError {
    Insufficient { missing: u64 },
    Closed,
}

#[rpc_core::service(name = "test.Bank")]
trait Bank {
    async fn transfer(&self, to: String, amount: u64) -> Result<u64, BankError>;
    async fn refuse(&self, code: u8) -> Result<(), CallError<BankError>>;
    async fn whoami(&self) -> (String, Option<String>);
    #[rpc(idempotent)]
    async fn name(&self) -> Result<String, CallError>;
    async fn audit(&self, line: Option<String>) -> Option<u64>;
    async fn seal(&self, papers: Attachment) -> (u64, Attachment);
    async fn forever(&self);
}

#[derive(Debug, Default)]
struct Branch {
    name: String,
    overloaded: bool,
    called: AtomicUsize,
    given_up: Notify,
}

impl Bank for Arc<Branch> {
    async fn transfer(&self, to: String, amount: u64) -> Result<u64, BankError> {
        match (to.as_str(), amount) {
            ("nobody", _) => Err(BankError::Closed),
            (_, 0..=100) => Ok(100 - amount),
            _ => Err(BankError::Insufficient {
                missing: amount - 100,
            }),
        }
    }

    async fn refuse(&self, code: u8) -> Result<(), CallError<BankError>> {
        let mut error = RpcError::new(Code::from_number(code), Executed::No, "as you wish");
        error.retry_after = Some(Duration::from_millis(3));
        Err(CallError::Rpc(error))
    }

    async fn whoami(&self) -> (String, Option<String>) {
        let context = Context::current();
        let tenant = context.meta().value("tenant").map(str::to_owned);
        (context.peer().unwrap_or_default().to_owned(), tenant)
    }

    async fn name(&self) -> Result<String, CallError> {
        self.called.fetch_add(1, Ordering::SeqCst);
        match self.overloaded {
            true => Err(CallError::Rpc(RpcError::new(
                Code::Overloaded,
                Executed::No,
                "busy",
            ))),
            false => Ok(self.name.clone()),
        }
    }

    async fn audit(&self, line: Option<String>) -> Option<u64> {
        line.map(|line| line.len() as u64)
    }

    async fn seal(&self, papers: Attachment) -> (u64, Attachment) {
        (papers.len() as u64, papers)
    }

    async fn forever(&self) {
        Context::current().cancelled().await;
        self.given_up.notify_one();
    }
}

async fn serve(branch: Branch) -> (Provider, Arc<Branch>, String) {
    let branch = Arc::new(branch);
    let provider = Provider::builder()
        .serve(BankServer::new(Arc::clone(&branch)))
        .start()
        .await
        .unwrap();
    let address = provider.local_addr().to_string();
    (provider, branch, address)
}

async fn invoker(addresses: &[&str], configure: impl FnOnce(Builder) -> Builder) -> Invoker {
    let builder = Invoker::builder()
        .direct(addresses.iter().copied())
        .timeout(Duration::from_secs(10));
    configure(builder).build().await.unwrap()
}

type Builder = rpc_core::invoker::InvokerBuilder;

#[tokio::test]
async fn every_serializer_carries_values_errors_and_attachments() {
    let (_provider, _, address) = serve(Branch::default()).await;
    for serializer in ["msgpack", "json", "inverted"] {
        let invoker = invoker(&[&address], |builder| builder.serializer(serializer)).await;
        let bank = BankClient::refer(&invoker);
        assert_eq!(bank.transfer("ann".to_owned(), 30).await, Ok(70), "{serializer}");
        let missing = BankError::Insufficient { missing: 1 };
        assert_eq!(
            bank.transfer("ann".to_owned(), 101).await,
            Err(CallError::App(missing)),
            "{serializer}"
        );
        let closed = bank.transfer("nobody".to_owned(), 1).await;
        assert_eq!(closed, Err(CallError::App(BankError::Closed)), "{serializer}");
        assert_eq!(bank.audit(None).await, Ok(None), "{serializer}");
        assert_eq!(
            bank.audit(Some("abc".to_owned())).await,
            Ok(Some(3)),
            "{serializer}"
        );
        let papers = bytes::Bytes::from(vec![9; 100_000]);
        let (bytes, back) = bank.seal(papers.clone().into()).await.unwrap();
        assert_eq!((bytes, back.into_bytes()), (100_000, papers), "{serializer}");
        invoker.shutdown().await;
    }
}

#[tokio::test]
async fn framework_errors_cross_with_code_advice_and_certainty() {
    let (_provider, _, address) = serve(Branch::default()).await;
    for serializer in ["msgpack", "json"] {
        let invoker = invoker(&[&address], |builder| builder.serializer(serializer)).await;
        let bank = BankClient::refer(&invoker);
        let error = bank.refuse(Code::Draining.number()).await.unwrap_err();
        let error = error.rpc().unwrap();
        assert_eq!((error.code, error.executed), (Code::Draining, Executed::No));
        assert_eq!(
            (error.message.as_str(), error.retry_after),
            ("as you wish", Some(Duration::from_millis(3)))
        );
        assert_eq!(error.attempts.len(), 1);
        assert_eq!(error.attempts[0].address, address);
    }
}

#[tokio::test]
async fn handler_sees_metadata_and_peer() {
    let (_provider, _, address) = serve(Branch::default()).await;
    let invoker = invoker(&[&address], |builder| builder).await;
    let bank = BankClient::refer(&invoker);
    let (peer, tenant) = bank.whoami().meta("tenant", "blue").await.unwrap();
    assert!(peer.starts_with("127.0.0.1:"), "{peer}");
    assert_eq!(tenant.as_deref(), Some("blue"));
    assert_eq!(bank.whoami().await.unwrap().1, None);
}

#[tokio::test]
async fn instances_are_taken_in_turn_from_the_first_call_on() {
    let branch = |name: &str| Branch {
        name: name.to_owned(),
        ..Branch::default()
    };
    let (_one, first, first_address) = serve(branch("first")).await;
    let (_two, second, second_address) = serve(branch("second")).await;
    let invoker = invoker(&[&*first_address, &*second_address], |builder| builder).await;
    let bank = BankClient::refer(&invoker);
    for _ in 0..20 {
        bank.name().await.unwrap();
    }
    let called = [first, second].map(|branch| branch.called.load(Ordering::SeqCst));
    assert_eq!(called, [10, 10]);
}

#[tokio::test]
async fn failover_leaves_the_instance_that_refuses() {
    let busy = Branch {
        name: "busy".to_owned(),
        overloaded: true,
        ..Branch::default()
    };
    let free = Branch {
        name: "free".to_owned(),
        ..Branch::default()
    };
    let (_one, busy, busy_address) = serve(busy).await;
    let (_two, _, free_address) = serve(free).await;
    let addresses = [&*busy_address, &*free_address];
    let over = invoker(&addresses, |builder| builder.fault_tolerance("failover")).await;
    let bank = BankClient::refer(&over);
    for _ in 0..4 {
        assert_eq!(bank.name().await, Ok("free".to_owned()));
    }
    assert!(
        busy.called.load(Ordering::SeqCst) > 0,
        "the busy one was never asked"
    );
    let fast = invoker(&addresses, |builder| builder.fault_tolerance("failfast")).await;
    let bank = BankClient::refer(&fast);
    let refused = bank.name().to_address(&busy_address).await.unwrap_err();
    assert_eq!(refused.rpc().unwrap().code, Code::Overloaded);
    assert_eq!(bank.name().to_address(&free_address).await, Ok("free".to_owned()));
}

#[tokio::test]
async fn failsafe_gives_the_empty_value_where_there_is_one() {
    let (provider, _, address) = serve(Branch::default()).await;
    drop(provider);
    let invoker = invoker(&["127.0.0.1:1"], |builder| builder.fault_tolerance("failsafe")).await;
    let bank = BankClient::refer(&invoker);
    assert_eq!(bank.audit(Some(address)).await, Ok(None));
    assert_eq!(bank.forever().await, Ok(()));
    let error = bank.whoami().await.unwrap_err();
    assert_eq!(error.rpc().unwrap().code, Code::Unavailable);
}

#[tokio::test]
async fn dropped_future_cancels_the_handlers_context() {
    let (_provider, branch, address) = serve(Branch::default()).await;
    let invoker = invoker(&[&address], |builder| builder).await;
    let bank = BankClient::refer(&invoker);
    bank.transfer("ann".to_owned(), 1).await.unwrap();
    let started = bank.forever().future();
    bank.transfer("ann".to_owned(), 1).await.unwrap();
    drop(started);
    branch.given_up.notified().await;
}

#[tokio::test]
async fn shutdown_calls_every_accepted_callback_once_with_cancelled() {
    let (_provider, _, address) = serve(Branch::default()).await;
    let invoker = invoker(&[&address], |builder| {
        builder.callback_threads(1).callback_queue(3)
    })
    .await;
    let bank = BankClient::refer(&invoker);
    let codes = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..3 {
        let codes = Arc::clone(&codes);
        let note = move |outcome: Result<(), CallError>| {
            codes
                .lock()
                .unwrap()
                .push(outcome.unwrap_err().rpc().unwrap().code);
        };
        bank.forever().callback(note).unwrap();
    }
    let refused = bank
        .forever()
        .callback(|_| panic!("was not accepted"))
        .unwrap_err();
    assert_eq!((refused.code, refused.executed), (Code::Overloaded, Executed::No));
    invoker.shutdown().await;
    assert_eq!(*codes.lock().unwrap(), [Code::Cancelled; 3]);
    let refused = bank
        .forever()
        .callback(|_| panic!("was not accepted"))
        .unwrap_err();
    assert_eq!(refused.code, Code::Cancelled);
}

#[tokio::test]
async fn callbacks_may_block_and_call_again() {
    let (_provider, _, address) = serve(Branch::default()).await;
    let invoker = invoker(&[&address], |builder| builder.callback_threads(1)).await;
    let bank = BankClient::refer(&invoker);
    let (sender, outcome) = oneshot::channel();
    let again = bank.clone();
    let first = move |left: Result<u64, CallError<BankError>>| {
        let call = again.transfer("bo".to_owned(), left.unwrap());
        call.callback(move |left| sender.send(left).unwrap()).unwrap();
    };
    bank.transfer("ann".to_owned(), 60).callback(first).unwrap();
    assert_eq!(outcome.await.unwrap(), Ok(60));
}

/// Records each call and refuses the method `refuse`.
#[derive(Debug, Default)]
struct Gate(Mutex<Vec<String>>);

impl Filter for Gate {
    fn call<'a>(
        &'a self,
        side: Side,
        mut request: Request,
        next: &'a dyn Next,
    ) -> BoxFuture<'a, Result<Response, RpcError>> {
        self.0
            .lock()
            .unwrap()
            .push(format!("{side:?} {}", request.method.name));
        request.meta.0.push(("tenant".to_owned(), format!("{side:?}")));
        match &*request.method.name {
            "refuse" => {
                let error = RpcError::new(Code::Forbidden, Executed::No, "closed");
                Box::pin(std::future::ready(Err(error)))
            }
            _ => next.run(request),
        }
    }
}

#[tokio::test]
async fn filters_run_on_both_sides() {
    let (there, here) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
    let provider = Provider::builder()
        .serve(BankServer::new(Arc::new(Branch::default())))
        .filter(Arc::clone(&there))
        .filter("access_log")
        .start()
        .await
        .unwrap();
    let address = provider.local_addr().to_string();
    let invoker = invoker(&[&address], |builder| builder.filter(Arc::clone(&here))).await;
    let bank = BankClient::refer(&invoker);
    assert_eq!(bank.whoami().await.unwrap().1.as_deref(), Some("Invoker"));
    let error = bank.refuse(1).await.unwrap_err();
    assert_eq!(error.rpc().unwrap().code, Code::Forbidden);
    assert_eq!(*here.0.lock().unwrap(), ["Invoker whoami", "Invoker refuse"]);
    assert_eq!(*there.0.lock().unwrap(), ["Provider whoami"]);
}

#[tokio::test]
async fn versions_and_groups_are_services_of_their_own() {
    let branch = |name: &str| {
        Arc::new(Branch {
            name: name.to_owned(),
            ..Branch::default()
        })
    };
    let provider = Provider::builder()
        .serve(BankServer::new(branch("plain")))
        .serve(BankServer::new(branch("blue")).group("blue"))
        .serve(BankServer::new(branch("new")).version("2.0"))
        .start()
        .await
        .unwrap();
    let address = provider.local_addr().to_string();
    for serializer in ["msgpack", "json"] {
        let invoker = invoker(&[&address], |builder| builder.serializer(serializer)).await;
        let bank = BankClient::refer(&invoker);
        assert_eq!(bank.name().await, Ok("plain".to_owned()));
        assert_eq!(bank.clone().group("blue").name().await, Ok("blue".to_owned()));
        assert_eq!(bank.clone().version("2.0").name().await, Ok("new".to_owned()));
        let error = bank.version("3.0").name().await.unwrap_err();
        assert_eq!(error.rpc().unwrap().code, Code::NotFound);
    }
}

#[tokio::test]
async fn params_of_another_shape_are_a_bad_request() {
    #[rpc_core::service(name = "test.Wire")]
    trait Other {
        async fn echo(&self, number: u64) -> u64;
    }
    let (_provider, _watch, invoker, client) = net::pair().await;
    let other = OtherClient::refer(&invoker);
    let error = other.echo(7).await.unwrap_err();
    let error = error.rpc().unwrap();
    assert_eq!((error.code, error.executed), (Code::BadRequest, Executed::No));
    assert!(error.message.contains("`echo`"), "{error}");
    assert_eq!(
        client.echo("still here".to_owned()).await,
        Ok("still here".to_owned())
    );
}

#[tokio::test]
async fn broadcast_asks_every_instance() {
    let mut addresses = Vec::new();
    let mut providers = Vec::new();
    for name in ["a", "b", "c"] {
        let branch = Branch {
            name: name.to_owned(),
            overloaded: name == "b",
            ..Branch::default()
        };
        let (provider, _, address) = serve(branch).await;
        providers.push(provider);
        addresses.push(address);
    }
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let all = invoker(&addresses, |builder| builder).await;
    let outcomes = BankClient::refer(&all).name().broadcast().await.unwrap();
    let mut asked: Vec<&str> = outcomes.iter().map(|one| one.instance.address.as_str()).collect();
    asked.sort_unstable();
    let mut known = addresses.clone();
    known.sort_unstable();
    assert_eq!(asked, known);
    let mut names: Vec<_> = outcomes.into_iter().filter_map(|one| one.outcome.ok()).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "c"]);
    let local = BankClient::local(Arc::new(Branch {
        name: "here".to_owned(),
        ..Branch::default()
    }));
    let outcomes = local.name().broadcast().await.unwrap();
    assert_eq!(outcomes[0].outcome, Ok("here".to_owned()));
}

#[tokio::test]
async fn failback_delivers_when_the_provider_is_back() {
    let (provider, _, address) = serve(Branch::default()).await;
    provider.shutdown(Duration::from_secs(5)).await;
    let strategy = Arc::new(rpc_core::fault::Failback::new(1000, Duration::from_millis(10)));
    let invoker = invoker(&[&address], |builder| builder.fault_tolerance(strategy)).await;
    let bank = BankClient::refer(&invoker);
    // No instance is there, and the caller is not notified.
    assert_eq!(bank.audit(Some("late".to_owned())).await, Ok(None));
    let told = Arc::new(Gate::default());
    let back = Provider::builder()
        .listen(address)
        .serve(BankServer::new(Arc::new(Branch::default())))
        .filter(Arc::clone(&told))
        .start()
        .await
        .unwrap();
    let delivered = async {
        while told.0.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), delivered)
        .await
        .expect("the call was not made again");
    assert_eq!(*told.0.lock().unwrap(), ["Provider audit"]);
    invoker.shutdown().await;
    drop(back);
}
