//! An RPC framework: hc-rpc's frame, calls in all forms, fault tolerance and link-time plug-ins.
//!
//! This crate names no registry, balancer, topic or broker: it holds the traits of every plug-in point and, of
//! implementations, only serializers, compressors, filters and fault tolerance.

use std::future::Future;
use std::pin::Pin;

// The code that `#[service]` writes says `::rpc_core`, here too.
extern crate self as rpc_core;

pub mod balance;
pub mod call;
mod carrier;
pub mod compress;
pub mod context;
pub mod envelope;
pub mod error;
pub mod fault;
pub mod filter;
pub mod frame;
pub mod invoker;
pub mod limits;
mod link;
pub mod message;
pub mod plugin;
pub mod provider;
pub mod registry;
pub mod serialize;
mod service;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;

pub use call::{Broadcast, Call, CallFuture};
pub use context::Context;
pub use error::{Attempt, CallError, Code, Executed, Never, RpcError};
pub use invoker::{Invoker, InvokerBuilder, InvokerError};
pub use message::{Attachment, Meta};
pub use provider::{Provider, ProviderBuilder, ProviderError};
pub use rpc_core_macros::service;

/// A boxed future that can be spawned.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the code of `#[service]` calls. Not for people: it changes without notice.
#[doc(hidden)]
pub mod __private {
    pub use crate::call::Stub;
    pub use crate::service::{
        ByDebug, ByDisplay, ByName, Words, decode_pair, decode_value, handle, no_such_method,
    };
}
