//! The way of a stream's items, as it stands in a request: at the caller it leads into a buffer, at the provider onto
//! the wire, and in process directly from the one to the other.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::Inlet;
use crate::BoxFuture;
use crate::error::RpcError;
use crate::frame::Window;
use crate::message::Attachment;

/// One item of a stream, still serialized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its value.
    pub value: Bytes,
    /// Bytes beside it.
    pub attachment: Attachment,
}

impl Item {
    /// What it costs of a window: the bytes of its body, without the length that an attachment needs.
    pub(crate) fn bytes(&self) -> usize {
        self.value.len() + self.attachment.len()
    }
}

/// Where the items of a stream go. Cheap to clone: all clones are the same way.
#[derive(Clone)]
pub struct Items(Arc<Way>);

enum Way {
    /// Into the caller's buffer.
    Inlet(Inlet),
    /// To a peer.
    Peer(Box<dyn Sink>),
}

/// Takes items from a handler, no faster than the peer does.
pub(crate) trait Sink: Send + Sync + fmt::Debug {
    /// Whether an item may be sent now.
    fn is_ready(&self) -> bool;

    /// Ends when an item may perhaps be sent.
    fn ready(&self) -> BoxFuture<'_, ()>;

    /// Sends an item. When there is no room for it now, what ends when there may be.
    ///
    /// # Errors
    /// It cannot be sent at all, or nobody takes it any more.
    fn send(&self, item: &Item) -> Result<Option<BoxFuture<'_, ()>>, RpcError>;

    /// Whether an item was ever sent.
    fn has_sent(&self) -> bool;

    /// Ends when the provider leaves and the stream has to end too.
    fn leaving(&self) -> BoxFuture<'static, ()>;
}

impl fmt::Debug for Items {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &*self.0 {
            Way::Inlet(_) => "inlet",
            Way::Peer(_) => "peer",
        };
        f.debug_tuple("Items").field(&name).finish()
    }
}

impl Items {
    /// Into a buffer for this window.
    pub(crate) fn inlet(window: Window) -> Self {
        Self(Arc::new(Way::Inlet(Inlet::new(window))))
    }

    /// To a peer.
    pub(crate) fn peer(sink: impl Sink + 'static) -> Self {
        Self(Arc::new(Way::Peer(Box::new(sink))))
    }

    /// The caller's buffer, if it is one.
    pub(crate) fn as_inlet(&self) -> Option<&Inlet> {
        match &*self.0 {
            Way::Inlet(inlet) => Some(inlet),
            Way::Peer(_) => None,
        }
    }

    /// What a handler sends to.
    pub(super) fn sink(&self) -> &dyn Sink {
        match &*self.0 {
            Way::Inlet(inlet) => inlet,
            Way::Peer(sink) => &**sink,
        }
    }

    /// Whether an item is on its way to the caller, or there: the call cannot be made again, for it would get it twice.
    pub(crate) fn have_begun(&self) -> bool {
        self.sink().has_sent()
    }
}
