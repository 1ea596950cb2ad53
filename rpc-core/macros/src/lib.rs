//! The `#[service]` attribute: from a trait of `async fn`s to the trait itself, a client and a server.
//!
//! `parse` reads the trait into a plain model and rejects what cannot cross the wire, at the span in
//! question; `expand` generates the code. Nearly all of the behaviour is in generic functions of
//! `rpc_core::__private`, so that little is compiled per method.

mod expand;
mod java;
mod parse;
mod returns;

use proc_macro::TokenStream;

/// Makes a trait of `async fn`s a service.
///
/// `#[service(name = "hc.Greeter")] pub trait Greeter { .. }` generates
/// - the trait, whose methods return `impl Future + Send`, so that a plain `async fn` implements them;
/// - `GreeterClient` with `refer(&Invoker)`, `local(implementation)`, `.version(..)`, `.group(..)`,
///   `.serializer(..)` and, for each method of the trait, a method that returns a `Call`;
/// - `GreeterServer<S>` with `new(implementation)`, `.version(..)` and `.group(..)`, for
///   `Provider::builder().serve(..)`.
///
/// A method takes `&self` and owned arguments, among them at most one `Attachment`, and returns `T`,
/// `Result<T, E>` or `Result<T, CallError<E>>`, spelled exactly so; `T` may be `(T, Attachment)`. A method
/// that returns `impl Stream<Item = ..>` of one of these, or a `Result` of such a stream, answers with any
/// number of items; the client's method then returns a `StreamCall`.
///
/// - `#[rpc(idempotent)]` allows a call to be repeated after an attempt that may have been executed.
/// - `#[rpc(blocking)]` runs the handler on the bounded blocking pool.
/// - `#[rpc(in_flight_max = 8)]` limits how many of its calls run at once in a provider.
/// - `#[rpc(long_poll)]` declares that its calls wait for something to happen and do not count as slow for
///   that reason.
/// - `#[rpc(parameter_types("com.acme.Order"), result_type = "com.acme.Receipt")]` names the Java classes for
///   hc-rpc's `json` envelope where they cannot be derived from the Rust types.
#[proc_macro_attribute]
pub fn service(attribute: TokenStream, item: TokenStream) -> TokenStream {
    match parse::service(attribute.into(), item.into()) {
        Ok(service) => expand::expand(&service).into(),
        Err(error) => error.into_compile_error().into(),
    }
}
