//! Accepts new connections until the provider starts to leave.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Core, connection};
use crate::call::now;
use crate::transport::{self, Listener};

/// Pause after the first failed accept (usually no file descriptors are left); it doubles up to
/// [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// One connection's permit, counted in the provider and for its address.
struct ConnectionPermit {
    core: Arc<Core>,
    peer: Arc<str>,
    /// Whether it is counted for its address.
    counted: bool,
}

impl ConnectionPermit {
    /// A permit for a connection from `peer`, or the limit that is reached and what it limits.
    fn take(core: &Arc<Core>, peer: &Arc<str>) -> Result<Self, (usize, &'static str)> {
        let before = core.connections.fetch_add(1, Ordering::AcqRel);
        let mut permit = Self {
            core: Arc::clone(core),
            peer: Arc::clone(peer),
            counted: false,
        };
        if before >= core.limits.connections_max {
            return Err((core.limits.connections_max, "connections"));
        }
        if !core.addresses.enter(transport::host(peer)) {
            return Err((core.addresses.max(), "connections of this address"));
        }
        permit.counted = true;
        Ok(permit)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.core.connections.fetch_sub(1, Ordering::AcqRel);
        if self.counted {
            self.core.addresses.leave(transport::host(&self.peer));
        }
    }
}

pub(super) async fn run(core: Arc<Core>, listener: Box<dyn Listener>) {
    let mut pause = PAUSE_MIN;
    loop {
        let accepted = tokio::select! {
            biased;
            () = core.farewell.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                pause = PAUSE_MIN;
                let permit = match ConnectionPermit::take(&core, &stream.peer) {
                    Ok(permit) => permit,
                    Err((limit, of)) => {
                        let peer = &stream.peer;
                        tracing::debug!(%peer, limit, of, "too many connections");
                        if let Some(peers) = core.connections_refused.count(core.clock.micros(now())) {
                            tracing::warn!(%peer, peers, limit, of, "too many connections; they are closed at once");
                        }
                        continue;
                    }
                };
                let serve = connection::run(Arc::clone(&core), stream);
                drop(core.tracker.spawn(async move {
                    serve.await;
                    drop(permit);
                }));
            }
            Err(error) => {
                tracing::warn!(%error, ?pause, "cannot accept connections; trying again");
                // The end of the provider also ends the pause.
                drop(tokio::time::timeout(pause, core.farewell.cancelled()).await);
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}
