//! TCP: the transport of a real process.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::{Listener, Stream, Transport};
use crate::BoxFuture;

/// Unacknowledged bytes end a connection after this time; by default the kernel would retry for about 15
/// minutes.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// Plain TCP with `TCP_NODELAY` (frames are coalesced by us, so Nagle's algorithm would only delay them).
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

impl Transport for Tcp {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let tcp = TcpStream::connect(address).await?;
            prepare(&tcp)?;
            Ok(split(tcp, Arc::from(address)))
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            // Tokio sets SO_REUSEADDR, so that a restart does not fail because of its predecessor's closing
            // connections.
            let listener: Box<dyn Listener> = Box::new(Bound(TcpListener::bind(address).await?));
            Ok(listener)
        })
    }
}

#[derive(Debug)]
struct Bound(TcpListener);

impl Listener for Bound {
    fn local_addr(&self) -> io::Result<String> {
        Ok(self.0.local_addr()?.to_string())
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let (tcp, peer) = accept(&self.0).await?;
            Ok(split(tcp, peer))
        })
    }
}

/// Sets the options that every connection has.
pub(super) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(tcp).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

/// The next peer's connection, prepared, and its address. A connection that has already ended, for example by
/// a reset while it waited in the backlog, is skipped: the listener itself is fine, and others wait in the
/// backlog.
pub(super) async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, Arc<str>)> {
    loop {
        let (error, peer) = match listener.accept().await {
            Ok((tcp, peer)) => match prepare(&tcp) {
                Ok(()) => return Ok((tcp, Arc::from(peer.to_string()))),
                Err(error) => (error, Some(peer)),
            },
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => (error, None),
            Err(error) => return Err(error),
        };
        tracing::debug!(%error, ?peer, "a connection ended before it was accepted");
    }
}

fn split(tcp: TcpStream, peer: Arc<str>) -> Stream {
    let (read, write) = tcp.into_split();
    Stream {
        read: Box::new(read),
        write: Box::new(write),
        peer,
    }
}
