//! TCP: the transport of a real process.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::{Listener, Stream, Transport};
use crate::BoxFuture;

/// Unacknowledged bytes end a connection after this time; the kernel alone would try for about 15 minutes.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// Plain TCP with `TCP_NODELAY` (frames are coalesced by us, so Nagle's algorithm would only delay them).
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

impl Transport for Tcp {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move { stream(TcpStream::connect(address).await?, Some(address)) })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            // Tokio sets SO_REUSEADDR, so that a restart is not refused by its predecessor's closing connections.
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
        Box::pin(async move { stream(self.0.accept().await?.0, None) })
    }
}

/// Sets what every connection has.
pub(super) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(tcp).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

fn stream(tcp: TcpStream, address: Option<&str>) -> io::Result<Stream> {
    prepare(&tcp)?;
    let peer = match address {
        Some(address) => Arc::from(address),
        None => Arc::from(tcp.peer_addr()?.to_string()),
    };
    let (read, write) = tcp.into_split();
    Ok(Stream {
        read: Box::new(read),
        write: Box::new(write),
        peer,
    })
}
