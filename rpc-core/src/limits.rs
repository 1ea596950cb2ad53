//! Every limit of the protocol, in one place. Checked before anything is allocated.

use std::time::Duration;

/// Bytes of a frame's body, by default.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of a serializer's name.
pub const SERIALIZER_NAME_BYTES_MAX: usize = 32;
/// Levels of nesting in a decoded value.
pub const NESTING_DEPTH_MAX: usize = 64;
/// Metadata pairs of one call.
pub const META_PAIRS_MAX: usize = 64;
/// Requests in flight on one connection, by default.
pub const CONNECTION_IN_FLIGHT_MAX: usize = 4096;
/// Bytes waiting to be written on one connection, by default.
pub const CONNECTION_UNWRITTEN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Slots of the responseCallback pool (callbacks that wait for a thread), by default.
pub const CALLBACK_QUEUE_MAX: usize = 1000;
/// Requests running at once in one provider, by default.
pub const PROVIDER_IN_FLIGHT_MAX: usize = 65_536;
/// Bytes of the bodies of all requests running at once in one provider, by default.
pub const PROVIDER_IN_FLIGHT_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Bytes of the read buffers of all connections of one provider, by default.
pub const PROVIDER_READING_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Bytes of answers not yet written, over all connections of one provider, by default.
pub const PROVIDER_BACKLOG_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Bytes that a frame must gain within a provider's `frame_timeout`, once it has begun.
pub const FRAME_PROGRESS_BYTES_MIN: u64 = 1024;
/// Requests running at once in one method of a provider, by default.
pub const METHOD_IN_FLIGHT_MAX: usize = 32_768;
/// Connections of one provider, by default.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Blocking methods running at once in one provider, by default.
pub const BLOCKING_MAX: usize = 64;
/// Bytes of a frame's body before the peer has shown its token, where one is needed.
pub const UNAUTHENTICATED_BODY_BYTES_MAX: usize = 16 * 1024;
/// Items of a stream that may be buffered at its caller, by default.
pub const STREAM_WINDOW_ITEMS: u32 = 256;
/// Bytes of those items, by default.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// A connection's streams wait while it has more unwritten bytes than this, so that other answers do not
/// queue up after many bytes of items.
pub const STREAM_UNWRITTEN_BYTES_MAX: usize = 256 * 1024;
/// Failed calls of one invoker that wait to be repeated in the background.
pub const BACKGROUND_CALLS_MAX: usize = 1000;
/// A handler that holds its thread for this long without awaiting is logged and counted: an async runtime has
/// one thread per core, and everything else scheduled on that thread waits. `#[rpc(blocking)]` is for such
/// handlers.
pub const HANDLER_BLOCKS: Duration = Duration::from_millis(100);
/// By default, a handler that answers at its first poll within this time runs where its requests are read:
/// about what a task for it costs on another core.
pub const QUICK_HANDLER: Duration = Duration::from_micros(5);
