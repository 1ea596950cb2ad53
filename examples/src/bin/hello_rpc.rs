//! A first RPC program: a service with a typed error, its provider, and an invoker that calls it.
//!
//! `cargo run -p examples --bin hello_rpc`
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::error::Error;
use std::time::Duration;

use rpc_core::{CallError, Invoker, Provider};
use serde::{Deserialize, Serialize};

/// Greets people.
#[rpc_core::service(name = "hc.Greeter")]
pub trait Greeter {
    /// A greeting.
    async fn greet(&self, name: String) -> Result<String, GreetError>;
    /// How many names are known; may be repeated if an answer was lost.
    #[rpc(idempotent)]
    async fn count(&self) -> u64;
}

/// Why a greeting fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum GreetError {
    /// There is no name.
    Nameless,
}

impl std::fmt::Display for GreetError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("whom shall I greet?")
    }
}

impl Error for GreetError {}

struct Polite;

impl Greeter for Polite {
    async fn greet(&self, name: String) -> Result<String, GreetError> {
        if name.is_empty() {
            Err(GreetError::Nameless)
        } else {
            Ok(format!("hello, {name}"))
        }
    }

    async fn count(&self) -> u64 {
        2
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let provider = Provider::builder()
        .listen("127.0.0.1:0")
        .serve(GreeterServer::new(Polite).version("1.0"))
        .start()
        .await?;
    println!("serving hc.Greeter on {}", provider.local_addr());

    let invoker = Invoker::builder()
        .direct([provider.local_addr().to_string()])
        .timeout(Duration::from_secs(1))
        .build()
        .await?;
    let greeter = GreeterClient::refer(&invoker).version("1.0");

    // Await the answer; options follow the call.
    let greeting = greeter
        .greet("ada".into())
        .timeout(Duration::from_millis(500))
        .await?;
    println!("await:   {greeting}");
    assert_eq!(greeting, "hello, ada");

    // Two calls at once over one connection.
    let (first, second) = (greeter.greet("brian".into()).future(), greeter.count().future());
    println!("future:  {}, {} known", first.await?, second.await?);

    // The method's own error arrives with its own type.
    match greeter.greet(String::new()).await {
        Err(CallError::App(error)) => println!("error:   {error}"),
        other => return Err(format!("expected the service's own error, got {other:?}").into()),
    }

    // Sent without waiting for an answer.
    greeter.greet("nobody waits".into()).oneway().await?;

    // The same trait without a network.
    let local = GreeterClient::local(Polite);
    println!("local:   {}", local.greet("grace".into()).await?);

    invoker.shutdown().await;
    provider.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
