//! Takes new connections until the provider says farewell.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Core, connection};
use crate::transport::Listener;

/// Pause after the first failed accept (usually no file descriptors are left); it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// One connection's place.
struct Place(Arc<Core>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
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
                let before = core.connections.fetch_add(1, Ordering::AcqRel);
                let place = Place(Arc::clone(&core));
                if before >= core.limits.connections_max {
                    tracing::warn!(peer = %stream.peer, limit = core.limits.connections_max, "too many connections");
                    continue;
                }
                let serve = connection::run(Arc::clone(&core), stream);
                drop(core.tracker.spawn(async move {
                    serve.await;
                    drop(place);
                }));
            }
            Err(error) => {
                tracing::warn!(%error, ?pause, "no connection can be accepted; trying again");
                // A farewell ends the pause too.
                drop(tokio::time::timeout(pause, core.farewell.cancelled()).await);
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}
