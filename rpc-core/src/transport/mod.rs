//! Sources and sinks of bytes: the only folder of this crate that opens sockets.
//!
//! A transport creates ordered, reliable byte streams between addresses; their content is defined by
//! `frame/`.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::BoxFuture;

#[cfg(feature = "tls")]
mod handshakes;
mod memory;
mod tcp;
#[cfg(feature = "tls")]
mod tls;

pub use memory::Memory;
pub use tcp::Tcp;
#[cfg(feature = "tls")]
pub use tls::{Tls, TlsBuilder, TlsError};

/// One connected byte stream, in two halves that are used from two tasks.
pub struct Stream {
    /// Bytes from the peer.
    pub read: Box<dyn AsyncRead + Send + Unpin>,
    /// Bytes to the peer.
    pub write: Box<dyn AsyncWrite + Send + Unpin>,
    /// The peer's address, for logs and handlers.
    pub peer: Arc<str>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// The host of a peer's address: the same for all its connections, each of which uses a different port.
pub(crate) fn host(peer: &str) -> &str {
    peer.rsplit_once(':').map_or(peer, |(host, _port)| host)
}

/// A bound address at which peers can connect.
pub trait Listener: Send + Sync + fmt::Debug {
    /// The address it is bound to, with the port that the system chose if 0 was requested.
    ///
    /// # Errors
    /// The operating system does not report it.
    fn local_addr(&self) -> io::Result<String>;

    /// Waits for the next peer.
    ///
    /// # Cancel safety
    /// Dropping the future loses no peer.
    ///
    /// # Errors
    /// The operating system's error, for example if no file descriptors are left; the caller pauses and
    /// continues.
    fn accept(&self) -> BoxFuture<'_, io::Result<Stream>>;
}

/// A way to create byte streams.
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// Connects to `address`. The caller limits the time.
    ///
    /// # Errors
    /// The address cannot be parsed, resolved or reached.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>>;

    /// Binds `address` and listens.
    ///
    /// # Errors
    /// The address cannot be parsed, or it is in use.
    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;
}
