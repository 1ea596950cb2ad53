//! The `#[service]` attribute: from a trait of `async fn`s to the trait itself, a client and a server.
//!
//! `parse` reads the trait into a plain model and refuses what cannot cross a wire, at the span where it stands;
//! `expand` writes the code. Nearly all of what the code does lives in generic functions of `rpc_core::__private`, so
//! that little is compiled per method.

mod expand;
mod java;
mod parse;
mod returns;

use proc_macro::TokenStream;

/// Makes a trait of `async fn`s a service.
///
/// `#[service(name = "hc.Greeter")] pub trait Greeter { .. }` gives
/// - the trait, whose methods return `impl Future + Send`, so that a plain `async fn` implements them;
/// - `GreeterClient` with `refer(&Invoker)`, `local(implementation)`, `.version(..)`, `.group(..)`, `.serializer(..)` and one method per
///   method of the trait which returns a `Call`;
/// - `GreeterServer<S>` with `new(implementation)`, `.version(..)` and `.group(..)`, for `Provider::builder().serve(..)`.
///
/// A method takes `&self` and owned arguments, among them at most one `Attachment`, and returns `T`, `Result<T, E>` or
/// `Result<T, CallError<E>>`, spelled so; `T` may be `(T, Attachment)`. It answers with any number of them if it returns
/// `impl Stream<Item = ..>` of one of these, or a `Result` of that; the client's method then returns a `StreamCall`. `#[rpc(idempotent)]` lets a call be repeated when
/// it may have been executed, `#[rpc(blocking)]` runs the handler on the bounded blocking pool,
/// `#[rpc(in_flight_max = 8)]` bounds how many of its calls run at once in a provider, `#[rpc(long_poll)]` says that its
/// calls wait for something to happen and are not slow for that,
/// `#[rpc(parameter_types("com.acme.Order"), result_type = "com.acme.Receipt")]` names the Java classes that hc-rpc's
/// `json` envelope asks for where they cannot be told from the Rust types.
#[proc_macro_attribute]
pub fn service(attribute: TokenStream, item: TokenStream) -> TokenStream {
    match parse::service(attribute.into(), item.into()) {
        Ok(service) => expand::expand(&service).into(),
        Err(error) => error.into_compile_error().into(),
    }
}
