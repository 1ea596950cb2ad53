//! Streams: a call that is answered with any number of items, bounded by what its caller takes.
//!
//! A stream is one call like any other: it has one place among the calls in flight, one deadline, one outcome, and passes
//! through the same filters and attempts. Its items take a way of their own beside it, [`Items`], which has two ends:
//! `inlet` is the bounded buffer at the caller, [`Outlet`] what a handler's stream is poured into. `credit` is the
//! arithmetic that both agree on. What the frames look like is in `frame/`; who reads and writes them in `invoker/` and
//! `provider/`.
//!
//! The one invariant: nobody holds more of a stream than its window and one item.

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
