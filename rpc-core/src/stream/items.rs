//! The destination of a stream's items, as part of a request: at the caller a buffer, at the provider the
//! wire, and in process the caller's buffer directly.

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
    /// Bytes sent next to it.
    pub attachment: Attachment,
}

impl Item {
    /// What it costs of a window: the bytes of its body, without the length field that an attachment needs.
    pub(crate) fn bytes(&self) -> usize {
        self.value.len() + self.attachment.len()
    }
}

/// Where the items of a stream go. Cheap to clone: all clones are the same destination.
#[derive(Clone)]
pub struct Items(Arc<Way>);

enum Way {
    /// Into the caller's buffer.
    Inlet(Inlet),
    /// To a peer.
    Peer(Box<dyn Sink>),
}

/// Accepts items from a handler, no faster than the peer does.
pub(crate) trait Sink: Send + Sync + fmt::Debug {
    /// Whether an item may be sent now.
    fn is_ready(&self) -> bool;

    /// Completes when an item may perhaps be sent.
    fn ready(&self) -> BoxFuture<'_, ()>;

    /// Sends an item. If there is no space for it now, returns a future that completes when there may be.
    ///
    /// # Errors
    /// It cannot be sent at all, or its receiver is gone.
    fn send(&self, item: &Item) -> Result<Option<BoxFuture<'_, ()>>, RpcError>;

    /// Whether an item was ever sent.
    fn has_sent(&self) -> bool;

    /// Completes when the provider leaves and the stream has to end too.
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
    /// Into a buffer of this window.
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

    /// The sink that a handler sends to.
    pub(super) fn sink(&self) -> &dyn Sink {
        match &*self.0 {
            Way::Inlet(inlet) => inlet,
            Way::Peer(sink) => &**sink,
        }
    }

    /// Whether an item is on its way to the caller, or has arrived: the call cannot be repeated, since the
    /// caller would get it twice.
    pub(crate) fn have_begun(&self) -> bool {
        self.sink().has_sent()
    }
}
