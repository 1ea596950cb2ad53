//! An RPC framework: hc-rpc's frame, calls in all forms, fault tolerance and link-time plug-ins.
//!
//! This crate names no registry, balancer, topic or broker: it holds the traits of every plug-in point and, of
//! implementations, only serializers, compressors, filters and fault tolerance.
//!
//! A service is a trait; its implementation is served by a [`Provider`] and called through an [`Invoker`]:
//!
//! ```
//! use rpc_core::{CallError, Invoker, Provider};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! pub enum BankError {
//!     Insufficient { missing: u64 },
//! }
//!
//! #[rpc_core::service(name = "hc.Bank")]
//! pub trait Bank {
//!     async fn transfer(&self, to: String, amount: u64) -> Result<u64, BankError>;
//!     /// May be repeated when it is unknown whether it was executed.
//!     #[rpc(idempotent)]
//!     async fn balance(&self) -> u64;
//! }
//!
//! struct Account;
//!
//! impl Bank for Account {
//!     async fn transfer(&self, _to: String, amount: u64) -> Result<u64, BankError> {
//!         100_u64.checked_sub(amount).ok_or_else(|| BankError::Insufficient { missing: amount - 100 })
//!     }
//!     async fn balance(&self) -> u64 {
//!         100
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let provider = Provider::builder().listen("127.0.0.1:0").serve(BankServer::new(Account)).start().await?;
//! let invoker = Invoker::builder().direct([provider.local_addr()]).fault_tolerance("failover").build().await?;
//! let bank = BankClient::refer(&invoker);
//! assert_eq!(bank.transfer("ann".to_owned(), 30).await, Ok(70));
//! let missing = BankError::Insufficient { missing: 1 };
//! assert_eq!(bank.transfer("ann".to_owned(), 101).await, Err(CallError::App(missing)));
//! invoker.shutdown().await;
//! # Ok(()) }
//! ```

use std::future::Future;
use std::pin::Pin;

// The code that `#[service]` writes says `::rpc_core`, here too.
extern crate self as rpc_core;

pub mod balance;
pub mod blocking;
pub mod call;
pub mod compress;
pub mod context;
mod dispatch;
pub mod envelope;
pub mod error;
pub mod fault;
pub mod filter;
pub mod frame;
pub mod generic;
pub mod invoker;
mod keyed_limit;
pub mod limits;
mod link;
pub mod message;
pub mod plugin;
pub mod provider;
mod recovery;
pub mod registry;
mod secret;
pub mod serialize;
mod service;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(feature = "tower")]
pub mod tower;
mod trace;
pub mod transport;

pub use call::{Broadcast, Call, CallFuture};
pub use context::Context;
pub use error::{Attempt, CallError, Code, Executed, Never, RpcError};
pub use invoker::{Invoker, InvokerBuilder, InvokerError};
pub use message::{Attachment, Hold, Meta};
pub use provider::{Provider, ProviderBuilder, ProviderError};
pub use rpc_core_macros::service;
pub use stream::{StreamCall, Streaming};
pub use trace::TraceContext;

/// What a streaming method gives back.
pub use futures_core::Stream;

/// A boxed future that can be spawned.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the code of `#[service]` calls. Not for people: it changes without notice.
#[doc(hidden)]
pub mod __private {
    pub use crate::call::Stub;
    pub use crate::service::{
        ByDebug, ByDisplay, ByName, Words, decode_pair, decode_value, handle, no_such_method,
    };
    pub use crate::stream::{Outlet, decode_item, decode_item_pair, handle_stream};
}
