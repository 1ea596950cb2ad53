//! Streams: a call that is answered with any number of items, at the pace at which its caller takes them.
//!
//! A stream is one call like any other: it takes one slot among the calls in flight, has one deadline and one
//! outcome, and passes through the same filters and attempts. Its items travel separately, through [`Items`],
//! which has two ends: `inlet` is the bounded buffer at the caller, [`Outlet`] sends the items of a handler's
//! stream. `credit` is the arithmetic that both share. The frames are defined in `frame/` and are read and
//! written in `invoker/` and `provider/`.
//!
//! The one invariant: neither end holds more of a stream than its window and one item.

mod call;
mod credit;
mod inlet;
mod items;
mod outlet;
mod streaming;

pub use call::StreamCall;
pub(crate) use credit::Credit;
pub(crate) use inlet::Inlet;
pub(crate) use items::Sink;
pub use items::{Item, Items};
pub use outlet::{Outlet, handle_stream};
pub use streaming::{Streaming, decode_item, decode_item_pair};
