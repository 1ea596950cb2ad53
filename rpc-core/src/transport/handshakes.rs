//! Limits handshakes: a number of peers at once, of which each host gets a part. Further peers of a host
//! queue in the order of arrival, so that many clients behind one address all get in when they connect
//! together; and one host can neither occupy all handshakes nor keep everybody else waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::host;

/// The limits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Handshakes at once.
    pub(super) at_once: usize,
    /// Handshakes of one host at once.
    pub(super) host_at_once: usize,
    /// Peers of one host, in a handshake or waiting.
    pub(super) host_max: usize,
}

/// Tracks the peers that are in a handshake or wait for one. Nothing is stored for a host without such a
/// peer.
#[derive(Debug)]
pub(super) struct Handshakes {
    limits: Limits,
    at_once: Arc<Semaphore>,
    hosts: Mutex<HashMap<Box<str>, Host>>,
}

#[derive(Debug)]
struct Host {
    peers: usize,
    at_once: Arc<Semaphore>,
}

/// One peer that waits or is in a handshake, until dropped.
#[derive(Debug)]
pub(super) struct QueuedPeer {
    handshakes: Arc<Handshakes>,
    peer: Arc<str>,
    of_host: Arc<Semaphore>,
}

/// The permission to be in a handshake, until dropped.
#[derive(Debug)]
pub(super) struct HandshakePermit {
    _of_host: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Handshakes {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            at_once: Arc::new(Semaphore::new(limits.at_once)),
            hosts: Mutex::default(),
        })
    }

    /// Adds a peer, unless its host already has as many as allowed.
    pub(super) fn enter(self: &Arc<Self>, peer: &Arc<str>) -> Option<QueuedPeer> {
        let mut hosts = self.hosts();
        let of_host = match hosts.get_mut(host(peer)) {
            Some(known) if known.peers >= self.limits.host_max => return None,
            Some(known) => {
                known.peers += 1;
                Arc::clone(&known.at_once)
            }
            None => {
                let at_once = Arc::new(Semaphore::new(self.limits.host_at_once));
                let first = Host {
                    peers: 1,
                    at_once: Arc::clone(&at_once),
                };
                hosts.insert(Box::from(host(peer)), first);
                at_once
            }
        };
        drop(hosts);
        Some(QueuedPeer {
            handshakes: Arc::clone(self),
            peer: Arc::clone(peer),
            of_host,
        })
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<Box<str>, Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueuedPeer {
    /// Waits for the peer's turn. Dropping the future gives up its place in the queue.
    pub(super) async fn permit(&self) -> HandshakePermit {
        // The host's permit first: a peer that waits for that one holds up no other host.
        let of_host = acquired(&self.of_host).await;
        let of_all = acquired(&self.handshakes.at_once).await;
        HandshakePermit {
            _of_host: of_host,
            _of_all: of_all,
        }
    }
}

impl Drop for QueuedPeer {
    fn drop(&mut self) {
        let mut hosts = self.handshakes.hosts();
        if let Some(known) = hosts.get_mut(host(&self.peer)) {
            known.peers -= 1;
            if known.peers == 0 {
                hosts.remove(host(&self.peer));
            }
        }
    }
}

async fn acquired(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let permit = Arc::clone(semaphore).acquire_owned().await;
    permit.expect("the semaphores of handshakes are never closed")
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn now<T>(waiting: impl Future<Output = T>) -> Option<T> {
        match std::pin::pin!(waiting).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_host_waits_for_its_own_and_no_other_host_does() {
        let handshakes = Handshakes::new(Limits {
            at_once: 3,
            host_at_once: 2,
            host_max: 4,
        });
        let peer = |text: &str| Arc::<str>::from(text);
        let enter = |text: &str| handshakes.enter(&peer(text));
        let peers: Vec<_> = (1..5).map(|port| enter(&format!("a:{port}")).unwrap()).collect();
        assert!(enter("a:5").is_none(), "as many as one host may have");
        let permits: Vec<_> = peers[..2]
            .iter()
            .map(|peer| now(peer.permit()).unwrap())
            .collect();
        assert!(now(peers[2].permit()).is_none());
        let other = enter("b:1").unwrap();
        let all = now(other.permit()).unwrap();
        let third = enter("c:1").unwrap();
        assert!(now(third.permit()).is_none(), "all handshakes are taken");
        drop(permits);
        assert!(now(third.permit()).is_some() && now(peers[2].permit()).is_some());
        drop((all, peers, other, third));
        assert!(handshakes.hosts().is_empty());
        assert!(enter("a:6").is_some());
    }
}
