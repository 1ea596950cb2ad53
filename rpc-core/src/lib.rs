//! An RPC framework: hc-rpc's frame, calls in all forms, fault tolerance and link-time plug-ins.
//!
//! This crate names no registry, balancer, topic or broker: it holds the traits of every plug-in point and, of
//! implementations, only serializers, compressors, filters and fault tolerance.

use std::future::Future;
use std::pin::Pin;

pub mod balance;
pub mod compress;
pub mod error;
pub mod fault;
pub mod filter;
pub mod invoker;
pub mod limits;
pub mod message;
pub mod plugin;
pub mod provider;
pub mod registry;
pub mod serialize;
pub mod transport;

pub use error::{Attempt, CallError, Code, Executed, Never, RpcError};
pub use invoker::{Invoker, InvokerError};
pub use message::{Attachment, Meta};
pub use provider::{Provider, ProviderError};

/// A boxed future that can be spawned.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
