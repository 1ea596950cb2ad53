//! A call of a method that returns a stream, before it is made.

use std::fmt;
use std::time::Duration;

use super::items::Items;
use super::streaming::{DecodeItem, Streaming};
use crate::blocking::{self, Blocking};
use crate::call::Call;
use crate::error::{Never, RpcError};
use crate::frame::Window;
use crate::limits;
use crate::registry::Instance;

/// A call of a streaming method that has not been sent. Choose options, then [`StreamCall::stream`].
///
/// ```
/// use rpc_core::{CallError, Stream};
///
/// #[rpc_core::service(name = "doc.Counter")]
/// pub trait Counter {
///     /// The numbers from `from` on; refuses above 100.
///     async fn count(&self, from: u64) -> impl Stream<Item = Result<u64, String>>;
/// }
///
/// struct Plain;
/// impl Counter for Plain {
///     async fn count(&self, from: u64) -> impl Stream<Item = Result<u64, String>> {
///         let numbers = (from..).map(|n| if n <= 100 { Ok(n) } else { Err(format!("{n} is too much")) });
///         tokio_stream::iter(numbers)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let counter = CounterClient::local(Plain);
/// let mut numbers = counter.count(99).stream();
/// assert_eq!(numbers.next().await, Some(Ok(99)));
/// assert_eq!(numbers.next().await, Some(Ok(100)));
/// assert_eq!(numbers.next().await, Some(Err(CallError::App("101 is too much".to_owned()))));
/// assert_eq!(numbers.next().await, None);
/// # }
/// ```
#[must_use = "a stream does not start until `.stream()` is called and its first item is requested"]
pub struct StreamCall<T, E = Never> {
    call: Call<(), E>,
    decode: DecodeItem<T, E>,
    window: Window,
}

impl<T, E> fmt::Debug for StreamCall<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StreamCall").field(&self.call).finish()
    }
}

impl<T, E> StreamCall<T, E> {
    pub(crate) const fn new(call: Call<(), E>, decode: DecodeItem<T, E>) -> Self {
        Self {
            // A stream has no deadline unless one is set; its start has the invoker's time-out.
            call: call.timeout(Duration::MAX),
            decode,
            window: Window {
                items: limits::STREAM_WINDOW_ITEMS,
                bytes: limits::STREAM_WINDOW_BYTES,
            },
        }
    }

    /// How long the whole stream may take, from its start to its last item. Default: unlimited. Within a
    /// handler a stream never outlasts the call being served. The invoker's own time-out limits only the
    /// start: finding an instance and a connection.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.call = self.call.timeout(timeout);
        self
    }

    /// Adds a pair of metadata.
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.call = self.call.meta(key, value);
        self
    }

    /// The key that a consistent-hash balancer uses.
    pub fn hash_key(mut self, key: u64) -> Self {
        self.call = self.call.hash_key(key);
        self
    }

    /// Streams from this instance and no other.
    pub fn to(mut self, instance: &Instance) -> Self {
        self.call = self.call.to(instance);
        self
    }

    /// Streams from this address (`host:port`) and no other.
    #[expect(
        clippy::wrong_self_convention,
        reason = "a destination, not a conversion; options consume the call"
    )]
    pub fn to_address(mut self, address: &str) -> Self {
        self.call = self.call.to_address(address);
        self
    }

    /// How far the provider may be ahead: at most this many items and bytes are buffered here (and one item
    /// more, if it is large). Each is at least 1. Default 256 items and 1 MiB.
    pub fn window(mut self, items: u32, bytes: u32) -> Self {
        self.window = Window {
            items: items.max(1),
            bytes: bytes.max(1),
        };
        self
    }

    /// The stream as a blocking iterator, for a thread outside any runtime.
    ///
    /// # Errors
    /// `Unsupported`, not executed, on a thread that belongs to a runtime; `Unavailable` without one.
    pub fn wait(self) -> Result<Blocking<T, E>, RpcError> {
        blocking::outside()?;
        let runtime = self.call.runtime()?;
        Ok(Blocking::new(runtime, self.stream()))
    }

    /// The stream. It starts when its first item is requested; a failure is its last item.
    pub fn stream(self) -> Streaming<T, E> {
        let items = Items::inlet(self.window);
        let (begin_within, decode_end) = (self.call.usual_timeout(), self.call.decode());
        let (call, serializer) = self.call.begin(items.clone());
        Streaming::new(call, items, serializer, (self.decode, decode_end), begin_within)
    }
}
