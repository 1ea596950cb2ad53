//! Very many calls in all forms over connections that are cut at random, given up at random and out of time at random:
//! every answer belongs to its call, nothing runs twice, and `executed` is reported correctly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use rpc_core::{CallError, Executed, Invoker, Provider, RpcError};
use tokio::task::JoinSet;

use crate::flaky::Flaky;

/// Calls by default; `CHURN_CALLS=10000000` makes it the ten millions of the conformance list (build with `--release`).
const CALLS: usize = 40_000;
/// Callers at once.
const CALLERS: usize = 64;
/// Far more than any handler takes: a call that ends by it has lost its answer.
const PATIENCE: Duration = Duration::from_secs(60);

#[rpc_core::service(name = "test.Once")]
trait Once {
    /// Counts its run and returns an answer that only this `nonce` has.
    async fn once(&self, nonce: u64) -> u64;
}

/// The outcome of each call, by its nonce.
#[derive(Debug)]
struct Ledger {
    runs: Vec<AtomicU8>,
    outcomes: Vec<AtomicU8>,
    callbacks: Vec<AtomicU8>,
    next: AtomicUsize,
}

/// Nobody waited for the outcome.
const GIVEN_UP: u8 = 1;
const ANSWERED: u8 = 2;
const NOT_EXECUTED: u8 = 3;
const MAYBE_EXECUTED: u8 = 4;
const EXECUTED: u8 = 5;

impl Ledger {
    fn new(calls: usize) -> Self {
        let zeros = || (0..calls).map(|_| AtomicU8::new(0)).collect();
        Self {
            runs: zeros(),
            outcomes: zeros(),
            callbacks: zeros(),
            next: AtomicUsize::new(0),
        }
    }

    /// The next nonce, until all are taken.
    fn take(&self) -> Option<usize> {
        let nonce = self.next.fetch_add(1, Ordering::Relaxed);
        (nonce < self.runs.len()).then_some(nonce)
    }

    fn note(&self, nonce: usize, outcome: Result<u64, CallError>, patient: bool) {
        let outcome = match outcome {
            Ok(answer) => {
                assert_eq!(answer, answer_to(nonce), "call {nonce} got the answer of another");
                ANSWERED
            }
            Err(CallError::Rpc(error)) => self.failed(nonce, &error, patient),
            Err(CallError::App(never)) => match never {},
        };
        self.note_outcome(nonce, outcome);
    }

    fn note_outcome(&self, nonce: usize, outcome: u8) {
        let before = self.outcomes[nonce].swap(outcome, Ordering::Relaxed);
        assert_eq!(before, 0, "call {nonce} ended twice");
    }

    fn failed(&self, nonce: usize, error: &RpcError, patient: bool) -> u8 {
        let timed_out = error.code == rpc_core::Code::DeadlineExceeded;
        assert!(!(patient && timed_out), "call {nonce} lost its answer: {error}");
        match error.executed {
            Executed::No => NOT_EXECUTED,
            Executed::Maybe => MAYBE_EXECUTED,
            Executed::Yes => EXECUTED,
        }
    }

    /// Compares the reported outcomes with what the handlers did, once nothing runs any longer.
    fn check(&self) -> [usize; 6] {
        let mut totals = [0; 6];
        for (nonce, (runs, outcome)) in self.runs.iter().zip(&self.outcomes).enumerate() {
            let (runs, outcome) = (runs.load(Ordering::Relaxed), outcome.load(Ordering::Relaxed));
            let callbacks = self.callbacks[nonce].load(Ordering::Relaxed);
            totals[usize::from(outcome)] += 1;
            let true_to_word = match outcome {
                ANSWERED | EXECUTED => runs == 1,
                NOT_EXECUTED => runs == 0,
                GIVEN_UP | MAYBE_EXECUTED => runs <= 1,
                _ => panic!("call {nonce} never ended"),
            };
            assert!(true_to_word, "call {nonce}: ran {runs} times, outcome {outcome}");
            assert!(callbacks <= 1, "call {nonce} was called back {callbacks} times");
        }
        totals
    }
}

fn answer_to(nonce: usize) -> u64 {
    (nonce as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)
}

struct Counting(Arc<Ledger>);

impl Once for Counting {
    async fn once(&self, nonce: u64) -> u64 {
        let nonce = usize::try_from(nonce).unwrap();
        self.0.runs[nonce].fetch_add(1, Ordering::Relaxed);
        match nonce % 16 {
            0..8 => {}
            8..15 => tokio::task::yield_now().await,
            _ => tokio::time::sleep(Duration::from_millis(nonce as u64 % 7)).await,
        }
        answer_to(nonce)
    }
}

/// Makes calls, each in a form of its own, until none is left.
async fn call_on(client: OnceClient, ledger: Arc<Ledger>, mut random: fastrand::Rng) {
    while let Some(nonce) = ledger.take() {
        let patient = random.u8(..4) > 0;
        let timeout = match patient {
            true => PATIENCE,
            false => Duration::from_micros(random.u64(1..6000)),
        };
        let call = client.once(nonce as u64).timeout(timeout);
        match random.u8(..10) {
            0 => {
                let started = call.future();
                for _ in 0..random.u8(..4) {
                    tokio::task::yield_now().await;
                }
                drop(started);
                ledger.note_outcome(nonce, GIVEN_UP);
            }
            1 => {
                let moment = Duration::from_micros(random.u64(..3000));
                match tokio::time::timeout(moment, call.into_future()).await {
                    Ok(outcome) => ledger.note(nonce, outcome, patient),
                    Err(_) => ledger.note_outcome(nonce, GIVEN_UP),
                }
            }
            2 => {
                let back = Arc::clone(&ledger);
                let accepted = call
                    .callback_wait(move |outcome| {
                        back.callbacks[nonce].fetch_add(1, Ordering::Relaxed);
                        back.note(nonce, outcome, patient);
                    })
                    .await;
                if accepted.is_err() {
                    ledger.note_outcome(nonce, NOT_EXECUTED);
                }
            }
            3 => match call.oneway().await {
                Ok(()) => ledger.note_outcome(nonce, MAYBE_EXECUTED),
                Err(error) => {
                    let outcome = ledger.failed(nonce, &error, patient);
                    ledger.note_outcome(nonce, outcome);
                }
            },
            4 => ledger.note(nonce, call.future().await, patient),
            _ => ledger.note(nonce, call.await, patient),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_no_answer_is_mismatched_doubled_or_lost_under_cancels_timeouts_and_resets() {
    let calls = std::env::var("CHURN_CALLS").map_or(CALLS, |calls| calls.parse().unwrap());
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let ledger = Arc::new(Ledger::new(calls));
    let provider = Provider::builder()
        .serve(OnceServer::new(Counting(Arc::clone(&ledger))))
        .start()
        .await
        .unwrap();
    let network = Arc::new(Flaky::new(32 * 1024, seed));
    let invoker = Invoker::builder()
        .direct([provider.local_addr()])
        .transport(Arc::clone(&network) as _)
        .fault_tolerance("failover")
        .timeout(PATIENCE)
        .build()
        .await
        .unwrap();
    let client = OnceClient::refer(&invoker);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(call_on(client.clone(), Arc::clone(&ledger), random.fork()));
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    // Given-up calls may still be under way: the drain waits for their handlers, the shutdown for all callbacks.
    invoker.shutdown().await;
    provider.shutdown(PATIENCE).await;
    let [never, given_up, answered, not, maybe, yes] = ledger.check();
    assert_eq!(invoker.statistics().in_flight, 0);
    println!(
        "{calls} calls, {} connections cut: answered {answered}, given up {given_up}, not executed {not}, \
         maybe {maybe}, executed without an answer {yes}, never ended {never}",
        network.cuts()
    );
    assert!(network.cuts() > 0, "the network was not flaky at all");
    assert!(
        answered > calls / 4,
        "only {answered} of {calls} calls were answered"
    );
}
