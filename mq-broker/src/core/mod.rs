//! The core: the log, the state machine and the writing side of the store as one synchronous struct with one
//! holder at a time.
//!
//! A request puts its commands into the inbox. If nobody holds the core, the thread of the request takes it
//! and runs one turn (write, apply, sync, answer) inline, so a lone send pays for no hand-off. While the core
//! is held, requests gather; a holder that releases it with commands waiting wakes the core's thread, which
//! continues turn by turn. That is the group commit: one write and one sync for everything that arrived
//! during the previous sync.
//!
//! What can be read without waiting for a sync (topics, visible ranges, group members) is [`Published`].
//!
//! The one invariant: an answer is given, and an end published, only after the log has reached the durability
//! it claims.

mod acks;
mod applier;
mod blocking;
mod clock;
mod error;
mod holder;
mod inbox;
mod journal_limit;
mod losses;
mod published;
mod rebuild;
mod replies;
mod thread;
mod topics;
mod turn;
mod visibility;
mod visible_ranges;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::background::reclaim;
use crate::log::{Command, Poisoned, Recycler, Refused, Settings, Solo, Space, Want, Watermarks};
use crate::state::State;
use crate::store::{Folder, Store, layout};
use crate::telemetry::Metrics;

use applier::{Applier, Broken};
use blocking::blocking;
use inbox::{Inbox, Origin, Proposal};
use losses::Losses;
use replies::Replies;

pub use acks::Acks;
pub use clock::Clock;
pub use error::StartError;
pub use holder::{Holder, Snapshot};
pub use journal_limit::{JournalFull, JournalLimit};
pub use published::{Published, Volatile};
pub use rebuild::FromEntries;
pub use replies::Answer;
pub use thread::CoreThread;
pub use topics::Topics;
pub use visible_ranges::{VisibleRange, VisibleRanges};

/// The components of the core, loaded but not replayed yet.
#[derive(Debug)]
pub struct Parts {
    /// The data folder.
    pub folder: Arc<Folder>,
    /// The state at the checkpoint.
    pub state: State,
    /// The store at the checkpoint.
    pub store: Arc<Store>,
    /// What is visible without holding the core.
    pub published: Arc<Published>,
    /// Sizes and times of the log.
    pub settings: Settings,
    /// Bytes of commands that may wait in the inbox.
    pub inbox_bytes_max: usize,
    /// Counters.
    pub metrics: Metrics,
}

/// The broker's core. One per process, shared.
#[derive(Debug)]
pub struct Core {
    holder: Mutex<Holder>,
    inbox: Inbox,
    clock: Clock,
    published: Arc<Published>,
    metrics: Metrics,
    failed: CancellationToken,
    recycler: Recycler,
    journal_limit: JournalLimit,
    space: Space,
    segment_bytes: u64,
    /// Bytes of commands written since the start.
    growth: AtomicU64,
}

impl Core {
    /// Opens the log, replays it, and publishes the result. Blocks.
    ///
    /// # Errors
    /// [`StartError`]; nothing was deleted.
    pub fn open(parts: Parts) -> Result<Arc<Self>, StartError> {
        let clock = Clock::start();
        let segment_bytes = u64::from(parts.settings.segment_bytes);
        let from = parts.state.at().lsn;
        let state = &parts.state;
        parts.store.keep_queues(|key| state.queue(key).is_some());
        let ends = |key| state.queue(key).map(|queue| (queue.start, queue.end));
        if let Some(segment) = parts.store.missing(ends).map_err(StartError::Files)? {
            let path = layout::segment_file(parts.folder.path(), segment);
            return Err(StartError::Missing { path });
        }
        let mut applier = Applier::new(
            parts.state,
            parts.store,
            Arc::clone(&parts.published),
            Losses(parts.metrics.clone()),
        );
        let opened = Solo::open(&parts.folder, parts.settings, from, clock.now(), &mut applier);
        match applier.broken() {
            None => {}
            Some(Broken::Command(lsn, error)) => {
                return Err(StartError::Unreadable {
                    lsn: *lsn,
                    reason: error.to_string(),
                });
            }
            Some(Broken::Order(entry)) => {
                return Err(StartError::Contradiction {
                    entry: *entry,
                    checkpoint: applier.state.at(),
                });
            }
        }
        let log = opened?;
        // The log's time continues from its last entry, even if the wall clock has been set back since.
        clock.not_before(applier.state.at().time);
        applier.publish_all(clock.now());
        reclaim::count(&log.recycler(), &parts.metrics);
        let core = Self {
            segment_bytes,
            recycler: log.recycler(),
            space: log.space().clone(),
            holder: Mutex::new(Holder::new(log, applier)),
            inbox: Inbox::new(parts.inbox_bytes_max),
            clock,
            published: parts.published,
            metrics: parts.metrics,
            failed: CancellationToken::new(),
            journal_limit: JournalLimit::default(),
            growth: AtomicU64::new(0),
        };
        core.count_journal();
        Ok(Arc::new(core))
    }

    /// The data that can be read without holding the core.
    #[must_use]
    pub const fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// The broker's time.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Cancelled when the log has failed: nothing may be served after that, and the process must exit.
    #[must_use]
    pub const fn failed(&self) -> &CancellationToken {
        &self.failed
    }

    /// Proposes the commands of one request, which stay together and in order. Each is answered once the log
    /// has reached the durability it wants. Dropping the future loses the answers; the commands are still
    /// processed.
    pub async fn propose(&self, commands: Vec<(Command, Want)>) -> Vec<Answer> {
        let count = commands.len();
        if count == 0 {
            return Vec::new();
        }
        let (replies, each) = Replies::new(count);
        let proposals = commands
            .into_iter()
            .zip(each)
            .map(|((command, want), reply)| Proposal { command, want, reply });
        if let Err(refused) = self.inbox.push(proposals.collect()) {
            return vec![Answer::Refused(refused); count];
        }
        self.run_soon().await;
        replies.all().await
    }

    /// Proposes one command.
    pub async fn propose_one(&self, command: Command, want: Want) -> Answer {
        let mut answers = self.propose(vec![(command, want)]).await;
        answers.pop().unwrap_or(Answer::Unknown)
    }

    /// Runs `visit` on the core between two turns.
    ///
    /// # Errors
    /// [`Refused`] when the core accepts no more visits.
    pub async fn visit<R: Send + 'static>(
        &self,
        visit: impl FnOnce(&mut Holder, &Self) -> R + Send + 'static,
    ) -> Result<R, Refused> {
        self.visit_as(Origin::Request, visit).await
    }

    /// Like [`Core::visit`], for the broker's own upkeep: accepted however many requests are waiting. If
    /// `visit` reports a failed log, the broker ends.
    ///
    /// # Errors
    /// [`Refused::ReadOnly`]: the core accepts no more visits, or the log has failed.
    pub(crate) async fn visit_for_upkeep<R: Send + 'static>(
        &self,
        visit: impl FnOnce(&mut Holder, &Self) -> Result<R, Poisoned> + Send + 'static,
    ) -> Result<R, Refused> {
        let visit = |holder: &mut Holder, core: &Self| {
            let visited = visit(holder, core);
            if let Err(poisoned) = &visited {
                core.fail(&poisoned.to_string());
            }
            visited
        };
        let visited = self.visit_as(Origin::Upkeep, visit).await?;
        visited.map_err(|_| Refused::ReadOnly)
    }

    async fn visit_as<R: Send + 'static>(
        &self,
        origin: Origin,
        visit: impl FnOnce(&mut Holder, &Self) -> R + Send + 'static,
    ) -> Result<R, Refused> {
        let (sender, answer) = oneshot::channel();
        let visit = Box::new(move |holder: &mut Holder, core: &Self| {
            // The caller may have gone away.
            drop(sender.send(visit(holder, core)));
        });
        self.inbox.push_visit(origin, visit)?;
        self.run_soon().await;
        answer.await.map_err(|_| Refused::ReadOnly)
    }

    /// The log's watermarks after the last turn.
    #[must_use]
    pub fn watermarks(&self) -> Watermarks {
        self.published.watermarks()
    }

    /// Approximate number of bytes by which the journal has grown since the start.
    #[must_use]
    pub fn journal_growth(&self) -> u64 {
        self.growth.load(Ordering::Relaxed)
    }

    /// Counts the bytes of the journal's segments and updates [`Self::journal_limit`]. The core calls it for each
    /// segment that it begins; a task that frees segments calls it too.
    pub fn count_journal(&self) -> u64 {
        let bytes = (self.recycler.segments() as u64).saturating_mul(self.segment_bytes);
        self.journal_limit.set_bytes(bytes);
        bytes
    }

    /// The handle for freeing dead segments of the journal.
    #[must_use]
    pub const fn recycler(&self) -> &Recycler {
        &self.recycler
    }

    /// The limit on the size of the journal.
    #[must_use]
    pub const fn journal_limit(&self) -> &JournalLimit {
        &self.journal_limit
    }

    /// The monitor of the disk's free space.
    #[must_use]
    pub const fn space(&self) -> &Space {
        &self.space
    }

    /// The changes since the last snapshot, after the core's thread has ended; `None` if the log failed.
    #[must_use]
    pub fn last_snapshot(&self) -> Option<Snapshot> {
        if self.failed.is_cancelled() {
            return None;
        }
        self.holder.lock().ok()?.snapshot(self).ok()
    }

    /// Takes the core if it is free and runs one turn. Yields first, so that commands from the same read of
    /// the socket go into the same turn.
    async fn run_soon(&self) {
        let mut call = CallOnDrop {
            inbox: &self.inbox,
            needed: true,
        };
        tokio::task::yield_now().await;
        if self.inbox.is_empty() {
            call.needed = false;
            return;
        }
        match self.holder.try_lock() {
            Ok(mut holder) => blocking(|| self.turn(&mut holder)),
            // The holder checks the inbox again before it leaves.
            Err(TryLockError::WouldBlock) => {
                call.needed = false;
                return;
            }
            Err(TryLockError::Poisoned(_)) => self.fail("the core panicked"),
        }
        call.needed = !self.inbox.is_empty();
    }

    /// Stops serving for good: the disk failed, or an invariant of ours was violated.
    pub(crate) fn fail(&self, reason: &str) {
        if !self.failed.is_cancelled() {
            tracing::error!(
                reason,
                "the journal failed: nothing is served any longer, the process exits"
            );
        }
        self.failed.cancel();
        self.inbox.refuse_all();
    }
}

/// Wakes the core's thread if dropped while work is left, also when the request that would have done it was
/// cancelled.
struct CallOnDrop<'a> {
    inbox: &'a Inbox,
    needed: bool,
}

impl Drop for CallOnDrop<'_> {
    fn drop(&mut self) {
        if self.needed {
            self.inbox.call();
        }
    }
}
