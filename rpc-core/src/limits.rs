//! Every bound of the protocol, in one place. Checked before anything is allocated.

use std::time::Duration;

/// Bytes of a frame's body by default.
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
/// Waiting places of the responseCallback pool, by default.
pub const CALLBACK_QUEUE_MAX: usize = 1000;
/// Requests running at once in one provider, by default.
pub const PROVIDER_IN_FLIGHT_MAX: usize = 65_536;
/// Bytes of the bodies of all requests running at once in one provider, by default.
pub const PROVIDER_IN_FLIGHT_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Bytes of the buffers that all connections of one provider are read into, by default.
pub const PROVIDER_READING_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Bytes of answers that wait to be written on all connections of one provider, by default.
pub const PROVIDER_BACKLOG_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// What a frame that has begun has to gain within a provider's `frame_timeout`.
pub const FRAME_PROGRESS_BYTES_MIN: u64 = 1024;
/// Requests running at once in one method of a provider, by default.
pub const METHOD_IN_FLIGHT_MAX: usize = 32_768;
/// Connections of one provider, by default.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Blocking methods running at once in one provider, by default.
pub const BLOCKING_MAX: usize = 64;
/// Bytes of a frame's body before the peer has shown its token, where one is needed.
pub const UNAUTHENTICATED_BODY_BYTES_MAX: usize = 16 * 1024;
/// Items of a stream that may wait at its caller, by default.
pub const STREAM_WINDOW_ITEMS: u32 = 256;
/// Bytes of them, by default.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Unwritten bytes of a connection above which its streams wait, so that other answers stay few bytes behind them.
pub const STREAM_UNWRITTEN_BYTES_MAX: usize = 256 * 1024;
/// Failed calls of one invoker that wait to be made again in the background.
pub const BACKGROUND_CALLS_MAX: usize = 1000;
/// A handler that holds its thread for so long without waiting is told in the log and counted: an async runtime has a thread
/// for each core, and whatever else was to run on this one waits. `#[rpc(blocking)]` is for such handlers.
pub const HANDLER_BLOCKS: Duration = Duration::from_millis(100);
/// Time within which a handler has to answer at its first poll to be run where its requests are read, by default: about
/// what a task for it costs on another core.
pub const QUICK_HANDLER: Duration = Duration::from_micros(5);
