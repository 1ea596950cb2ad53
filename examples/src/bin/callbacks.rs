//! Answers delivered to closures on the invoker's responseCallback pool: the caller's thread continues at
//! once, the closure may block, and a full pool returns an error instead of waiting.
//!
//! `cargo run -p examples --bin callbacks`
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::error::Error;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use rpc_core::{Code, Invoker, Provider};

/// Squares numbers.
#[rpc_core::service(name = "hc.Square")]
pub trait Square {
    /// The square.
    async fn square(&self, number: u64) -> u64;
}

struct Exact;

impl Square for Exact {
    async fn square(&self, number: u64) -> u64 {
        number * number
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let provider = Provider::builder()
        .listen("127.0.0.1:0")
        .serve(SquareServer::new(Exact))
        .start()
        .await?;
    let invoker = Invoker::builder()
        .direct([provider.local_addr().to_string()])
        .callback_threads(2)
        .callback_queue(100)
        .build()
        .await?;
    let square = SquareClient::refer(&invoker);

    let (sender, receiver) = sync_channel(100);
    for number in 1..=100_u64 {
        let sender = sender.clone();
        // `Ok` means that the closure will be called exactly once; `Err` means that the pool is full and it
        // never will be.
        square.square(number).callback(move |outcome| {
            let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
            // The pool's threads may block; this channel has space for every answer.
            drop(sender.send((thread, outcome)));
        })?;
    }
    println!("100 calls are in flight; this thread is free");

    let mut sum = 0;
    for _ in 0..100 {
        let (_thread, outcome) = receiver.recv_timeout(Duration::from_secs(5))?;
        sum += outcome?;
    }
    println!("the sum of the first 100 squares is {sum}");
    assert_eq!(sum, 338_350);

    // A full pool refuses at once.
    let busy = Invoker::builder()
        .direct([provider.local_addr().to_string()])
        .callback_threads(1)
        .callback_queue(1)
        .build()
        .await?;
    let square = SquareClient::refer(&busy);
    let refused = (0..1000).find_map(|number| square.square(number).callback(|_| ()).err());
    let refused = refused.ok_or("a queue of one slot accepted a thousand callbacks")?;
    println!("full:    {refused}");
    assert_eq!(refused.code, Code::Overloaded);

    busy.shutdown().await;
    invoker.shutdown().await;
    provider.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
