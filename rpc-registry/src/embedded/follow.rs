//! The follower: keeps one server's answer about one service in the merged list.
//!
//! It uses a long poll and not a stream, because here the long poll is the better choice. Only the newest
//! list matters, and a poll that names the last known one skips all in between, where a stream would queue
//! them for a slow reader. A list counts for one lease and has to be confirmed within it even if nothing
//! changes, so a stream would have to repeat itself at the same rate: all it saves is one small request per
//! answer, at most one in 10 ms and usually two per lease. Each answer is also the proof that the server is
//! alive, with a deadline of its own, and the next request may use another connection: nothing has to be
//! resumed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rpc_core::registry::{ServiceKey, Snapshot};
use tokio::sync::watch;

use super::api::{Picture, Watch};
use super::client::{ANSWER_WITHIN, RETRY_WITHIN, Shared};
use super::merge::Merge;
use super::server::now;
use crate::backoff::Backoff;
use crate::cache;

/// The pause after each list: collects simultaneous changes, and limits how often a server can make us work.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks one server for one list, again and again.
pub(super) struct Follower {
    pub(super) shared: Arc<Shared>,
    pub(super) server: usize,
    pub(super) key: ServiceKey,
    pub(super) merge: Arc<Mutex<Merge>>,
    pub(super) shown: Arc<watch::Sender<Snapshot>>,
}

impl Follower {
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new(RETRY_WITHIN);
        let mut known = None;
        loop {
            match self.ask(known).await {
                Ok(picture) => {
                    known = Some(picture.state);
                    self.show(Some(picture));
                    backoff.reset();
                    tokio::time::sleep(PAUSE).await;
                }
                Err(reason) => {
                    known = None;
                    let server = &self.shared.settings.servers[self.server];
                    tracing::debug!(server, key = %self.key, reason, "no answer; trying again");
                    self.show(None);
                    tokio::time::sleep(backoff.delay()).await;
                }
            }
        }
    }

    async fn ask(&self, known: Option<u64>) -> Result<Picture, String> {
        let settings = &self.shared.settings;
        // An answer arrives at least twice while the last one counts.
        let wait = settings.lease / 2;
        let watch = Watch {
            key: self.key.clone(),
            all: settings.all,
            known,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        };
        let client = self.shared.client().await?;
        let call = client.watch(watch).to_address(&settings.servers[self.server]);
        let answer = call.timeout(wait + ANSWER_WITHIN).await;
        answer.map_err(|error| error.to_string())
    }

    /// Under the lock to the end, so that an older list never follows a newer one.
    fn show(&self, answer: Option<Picture>) {
        let mut merge = self.merge.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Some(picture) => {
                let instances = picture.instances.into_iter().map(|listed| {
                    let instance = Arc::new(listed.into_parts().1);
                    (instance.id.clone(), instance)
                });
                merge.heard(self.server, instances.collect(), picture.warming, now());
            }
            None => merge.failed(self.server),
        }
        let (instances, freshness) = merge.picture(now());
        cache::show(&self.shown, instances, freshness);
    }
}
