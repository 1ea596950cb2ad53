//! Streams within one process: for tests that want a network without ports.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, mpsc};

use super::{Listener, Stream, Transport};
use crate::BoxFuture;

/// Connections that wait to be accepted; further ones are refused, as by a full TCP backlog.
const BACKLOG: usize = 128;
/// Bytes in flight in each direction before the writer has to wait.
const PIPE_BYTES: usize = 64 * 1024;

/// A network of its own: addresses of one value (and its clones) are unknown to all others.
#[derive(Debug, Clone)]
pub struct Memory {
    network: Arc<Network>,
    host: Arc<str>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            network: Arc::default(),
            host: Arc::from("memory"),
        }
    }
}

impl Memory {
    /// The same network as seen from another host: connections made through it have an address on that host.
    /// The first host is `memory`.
    #[must_use]
    pub fn seen_from(&self, host: &str) -> Self {
        Self {
            network: Arc::clone(&self.network),
            host: Arc::from(host),
        }
    }
}

#[derive(Debug, Default)]
struct Network {
    bound: Mutex<HashMap<String, mpsc::Sender<Stream>>>,
    ports: AtomicU64,
}

impl Network {
    fn bound(&self) -> MutexGuard<'_, HashMap<String, mpsc::Sender<Stream>>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Memory {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let listener = self.network.bound().get(address).cloned();
            let refused = || {
                io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    format!("nothing listens at `{address}`"),
                )
            };
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let caller = self.network.ports.fetch_add(1, Ordering::Relaxed);
            listener
                .ok_or_else(refused)?
                .try_send(stream(theirs, &format!("{}:{caller}", self.host)))
                .map_err(|_full_or_gone| refused())?;
            Ok(stream(ours, address))
        })
    }

    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let address = match address.strip_suffix(":0") {
                Some(host) => format!(
                    "{host}:{}",
                    self.network.ports.fetch_add(1, Ordering::Relaxed) + 1
                ),
                None => address.to_owned(),
            };
            let mut bound = self.network.bound();
            if bound.get(&address).is_some_and(|sender| !sender.is_closed()) {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("`{address}` is already in use"),
                ));
            }
            let (sender, receiver) = mpsc::channel(BACKLOG);
            bound.insert(address.clone(), sender);
            let listener: Box<dyn Listener> = Box::new(Bound {
                address,
                waiting: AsyncMutex::new(receiver),
            });
            Ok(listener)
        })
    }
}

#[derive(Debug)]
struct Bound {
    address: String,
    waiting: AsyncMutex<mpsc::Receiver<Stream>>,
}

impl Listener for Bound {
    fn local_addr(&self) -> io::Result<String> {
        Ok(self.address.clone())
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let next = self.waiting.lock().await.recv().await;
            next.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the network is gone"))
        })
    }
}

fn stream(duplex: tokio::io::DuplexStream, peer: &str) -> Stream {
    let (read, write) = tokio::io::split(duplex);
    Stream {
        read: Box::new(read),
        write: Box::new(write),
        peer: Arc::from(peer),
    }
}
