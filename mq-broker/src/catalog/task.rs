//! The task that keeps the projection current: it applies changes, reconnects, and verifies the rows from
//! time to time.

use std::path::PathBuf;
use std::time::Duration;

use mq_common::ids::ShardName;
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::feed::{Feed, Mark, Pending};
use super::session::{Session, Taken};
use super::url::DatabaseUrl;
use crate::checkpoint;
use crate::telemetry::Metrics;

/// Wait before the retry after a failure; each further failure doubles it ..
const AGAIN: Duration = Duration::from_millis(250);
/// .. up to this.
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// How long a step may continue after the stop.
const FAREWELL: Duration = Duration::from_millis(500);

/// The settings and sources of the task.
#[derive(Debug)]
pub(super) struct Projection {
    pub(super) feed: Feed,
    pub(super) url: DatabaseUrl,
    pub(super) broker: ShardName,
    /// The broker's own checkpoint.
    pub(super) state_file: PathBuf,
    /// Time limit of a statement.
    pub(super) limit: Duration,
    /// How often an idle projection is compared with the checkpoint.
    pub(super) check_every: Duration,
    pub(super) metrics: Metrics,
}

/// The connection and the outcome of the last step.
#[derive(Debug, Default)]
struct Progress {
    session: Option<Session>,
    /// The kind of error that was logged last; `None` = the projection is current.
    logged: Option<&'static str>,
    /// Nothing has been logged yet.
    silent: bool,
    failures: u32,
}

impl Projection {
    /// Runs until `stop`, then projects the last checkpoint if that takes less than [`FAREWELL`].
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut progress = Progress {
            silent: true,
            ..Progress::default()
        };
        let (mut compare, mut last) = (true, false);
        loop {
            let worked = tokio::select! {
                worked = self.step(&mut progress, compare) => worked,
                () = late(&stop) => return,
            };
            let wait = match worked {
                Ok(()) => {
                    self.well(&mut progress);
                    None
                }
                Err(error) => Some(self.ill(&mut progress, &error)),
            };
            if last {
                break;
            }
            compare = true;
            let rest = async {
                if let Some(wait) = wait {
                    tokio::time::sleep(wait).await;
                } else if tokio::time::timeout(self.check_every, self.feed.changed())
                    .await
                    .is_ok()
                {
                    compare = false;
                }
            };
            if stop.run_until_cancelled(rest).await.is_none() {
                if progress.logged.is_some() {
                    break;
                }
                (compare, last) = (false, true);
            }
        }
        if let Some(session) = progress.session {
            session.close().await;
        }
    }

    /// Projects what is pending; with nothing pending and `compare`, verifies that the rows are there.
    async fn step(&self, progress: &mut Progress, compare: bool) -> Result<(), Error> {
        let compare = compare || progress.session.is_none();
        let mut session = match progress.session.take() {
            Some(session) => session,
            None => Session::open(&self.url, &self.broker, self.limit).await?,
        };
        let (pending, last) = self.feed.take();
        // Put back unless the step succeeds, also when it is cancelled.
        let mut guard = Missed {
            feed: &self.feed,
            armed: !matches!(pending, Pending::Nothing),
        };
        let agrees = match pending {
            Pending::Change(change) => {
                let taken = session.apply(&change).await?;
                if taken != Taken::Apart {
                    self.metrics.catalog_lsn.set(change.to.lsn.0);
                }
                taken != Taken::Apart
            }
            Pending::Gap => false,
            Pending::Nothing => !compare || self.agrees(&mut session, last).await?,
        };
        if !agrees {
            let rows = checkpoint::catalog(&self.state_file).await?;
            session.replace(&rows).await?;
            self.metrics.catalog_rewrites.inc();
            self.metrics.catalog_lsn.set(rows.counters.lsn.0);
            tracing::info!(lsn = %rows.counters.lsn, "all rows of this broker were rewritten in the catalog's database");
        }
        guard.armed = false;
        progress.session = Some(session);
        Ok(())
    }

    /// Whether the rows correspond to the last checkpoint, and are as many as it has.
    async fn agrees(&self, session: &mut Session, last: Mark) -> Result<bool, Error> {
        if session.standing().await? != Some(last) {
            return Ok(false);
        }
        self.metrics.catalog_lsn.set(last.lsn.0);
        let standing = checkpoint::standing(&self.state_file).await?;
        // If the marks differ, a later checkpoint was saved just now and its change is about to be reported.
        Ok(Mark::from(&standing.counters) != last || standing.rows == session.counts().await?)
    }

    fn well(&self, progress: &mut Progress) {
        self.metrics.catalog_current.set(1);
        progress.failures = 0;
        if std::mem::take(&mut progress.silent) || progress.logged.take().is_some() {
            tracing::info!(place = self.url.place(), "the catalog's database is current");
        }
    }

    /// Logs the error unless the previous one was of its kind, and returns how long to wait.
    fn ill(&self, progress: &mut Progress, error: &Error) -> Duration {
        self.metrics.catalog_current.set(0);
        self.metrics.catalog_failures.inc();
        progress.silent = false;
        progress.session = None;
        if progress.logged != Some(error.kind()) {
            tracing::warn!(%error, "the catalog's database is not current; the broker continues without it and retries");
            progress.logged = Some(error.kind());
        }
        let doubled = AGAIN.saturating_mul(1 << progress.failures.min(16));
        progress.failures = progress.failures.saturating_add(1);
        doubled.min(AGAIN_MAX).mul_f64(0.8 + 0.4 * fastrand::f64())
    }
}

/// Returns [`FAREWELL`] after `stop`.
async fn late(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(FAREWELL).await;
}

/// Marks what was taken as missed when dropped armed.
struct Missed<'a> {
    feed: &'a Feed,
    armed: bool,
}

impl Drop for Missed<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.feed.missed();
        }
    }
}
