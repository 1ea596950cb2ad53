//! A provider for testing a client in another language: every kind of value, error, attachment and ending
//! described in docs/wire.md. `examples/python/try_it.py` calls all of it.
//!
//! `cargo run -p examples --bin wire_provider -- [--listen HOST:PORT] [--token TOKEN]`; ends when its input
//! ends.
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use rpc_core::{Attachment, Context, Provider, Stream};
use serde::{Deserialize, Serialize};

#[derive(Debug, Parser)]
#[command(about = "Serves hc.Desk, for clients in other languages to be tried against.")]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// The token that clients must show.
    #[arg(long)]
    token: Option<String>,
}

/// An order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    id: u64,
    customer: String,
    cents: i64,
}

/// Why an order is not placed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum DeskError {
    /// Too few pieces.
    TooFew {
        /// The minimum.
        wanted: u32,
    },
}

impl fmt::Display for DeskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::TooFew { wanted } = self;
        write!(f, "at least {wanted} must be ordered")
    }
}

/// A service that offers every kind of method.
#[rpc_core::service(name = "hc.Desk")]
pub trait Desk {
    /// Describes the order in words.
    async fn place(&self, order: Order, pieces: u32) -> Result<String, DeskError>;
    /// Returns its argument.
    async fn same(&self, order: Order) -> Order;
    /// No parameters and no result.
    async fn nothing(&self);
    /// The bytes in reverse order; callable with `raw`.
    async fn reversed(&self, bytes: Bytes) -> Bytes;
    /// The attachment's length, and the attachment twice.
    async fn twice(&self, data: Attachment) -> (u64, Attachment);
    /// Returns the text after a while, unless the caller has gone.
    async fn after_ms(&self, ms: u64, text: String) -> String;
    /// How many calls of `after_ms` were abandoned by their callers.
    async fn cancelled(&self) -> u64;
    /// Counted by `notes`.
    async fn note(&self);
    /// How often `note` was called.
    async fn notes(&self) -> u64;
    /// The metadata under `key`.
    async fn meta(&self, key: String) -> Option<String>;
    /// The numbers from 1 to `last`, one after the other; more than 1000 end with an error.
    async fn count_to(&self, last: u64) -> impl Stream<Item = Result<u64, DeskError>>;
    /// Panics.
    async fn panics(&self);
}

#[derive(Debug, Default)]
struct Counter {
    cancelled: AtomicU64,
    notes: AtomicU64,
}

impl Desk for Arc<Counter> {
    async fn place(&self, order: Order, pieces: u32) -> Result<String, DeskError> {
        if pieces == 0 {
            return Err(DeskError::TooFew { wanted: 1 });
        }
        let Order { id, customer, cents } = order;
        Ok(format!("order {id} of {customer}: {pieces} x {cents}"))
    }

    async fn same(&self, order: Order) -> Order {
        order
    }

    async fn nothing(&self) {}

    async fn reversed(&self, bytes: Bytes) -> Bytes {
        bytes.iter().rev().copied().collect()
    }

    async fn twice(&self, data: Attachment) -> (u64, Attachment) {
        let bytes = data.into_bytes();
        (bytes.len() as u64, vec![bytes.clone(), bytes].into())
    }

    async fn after_ms(&self, ms: u64, text: String) -> String {
        let context = Context::current();
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(ms)) => {}
            () = context.cancelled() => {
                self.cancelled.fetch_add(1, Ordering::Relaxed);
                // Late on purpose: the caller has to drop an answer that it no longer waits for.
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
        text
    }

    async fn cancelled(&self) -> u64 {
        self.cancelled.load(Ordering::Relaxed)
    }

    async fn note(&self) {
        self.notes.fetch_add(1, Ordering::Relaxed);
    }

    async fn notes(&self) -> u64 {
        self.notes.load(Ordering::Relaxed)
    }

    async fn meta(&self, key: String) -> Option<String> {
        Context::current().meta().value(&key).map(str::to_owned)
    }

    async fn count_to(&self, last: u64) -> impl Stream<Item = Result<u64, DeskError>> {
        let number = |n| {
            if n <= 1000 {
                Ok(n)
            } else {
                Err(DeskError::TooFew { wanted: 1000 })
            }
        };
        tokio_stream::iter((1..=last).map(number))
    }

    async fn panics(&self) {
        panic!("on purpose: the caller gets `Internal`, the provider lives");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let mut provider = Provider::builder()
        .listen(arguments.listen)
        .serve(DeskServer::new(Arc::new(Counter::default())));
    if let Some(token) = arguments.token {
        provider = provider.token(token);
    }
    let provider = provider.start().await?;
    println!("ready {}", provider.local_addr());
    // The program that started it ends it by closing its input.
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    provider.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
