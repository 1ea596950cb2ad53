//! Deletes messages as their topics' settings say: periodically, a round decides the new start of each queue
//! and proposes the changes as commands. All deletions go through the log, so replicas agree, and a restart
//! arrives at the same starts.
//!
//! Ages are measured by the time of the log, which never goes back and does not follow steps of the wall
//! clock while the broker runs. Of a long period without an entry only a part counts (see
//! [`Pauses`](crate::state::Pauses)); to avoid such periods while the broker runs, this task writes an empty
//! entry into an idle log.
//!
//! A round checks only queues that changed, or whose oldest batch may be too old by now (see [`watch`]). A
//! queue's batches are read only when the oldest of them may be too old, or when so much was appended that
//! its size has to be measured again. So a million idle queues cost nothing.
//!
//! The one invariant: nothing that consumers cannot see yet is deleted.

mod decide;
mod look;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mq_common::ids::Offset;
use tokio_util::sync::CancellationToken;

use self::look::{Ages, Visited, decide_all, visit};
use self::watch::Watch;
use crate::config;
use crate::core::{Answer, Core, Holder};
use crate::ids::QueueKey;
use crate::log::{self, Refused, Want};
use crate::state::Command;

/// Queues checked while the core is held once.
const QUEUES_AT_ONCE: usize = 2000;
/// New starts in one command.
const STARTS_AT_ONCE: usize = 10_000;
/// A log without an entry for this long gets one, milliseconds: see [`Pauses`](crate::state::Pauses).
const STANDS_STILL_MS: u64 = 6 * 60 * 60 * 1000;

/// The retention task.
#[derive(Debug)]
pub(crate) struct Retention {
    core: Arc<Core>,
    every: Duration,
    watch: Watch,
    /// Nothing was looked at yet: the broker may have run for long, and this task been begun again after a panic.
    is_new: bool,
}

impl Retention {
    pub(crate) fn new(settings: &config::Retention, core: &Arc<Core>) -> Self {
        Self {
            core: Arc::clone(core),
            every: Duration::from_millis(settings.check_ms),
            watch: Watch::default(),
            is_new: true,
        }
    }

    /// Runs a round at each interval, until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while stop
            .run_until_cancelled(tokio::time::sleep(self.every))
            .await
            .is_some()
        {
            if let Err(refused) = self.round().await {
                // Overloaded, full, or about to stop: the next round does the rest.
                tracing::debug!(%refused, "retention's round was cut short");
            }
        }
    }

    /// Checks all queues for which something may be due.
    async fn round(&mut self) -> Result<(), Refused> {
        self.keep_time().await?;
        let is_new = self.is_new;
        let look = move |holder: &mut Holder, core: &Core| {
            if is_new {
                holder.touch_filled();
            }
            (ages(holder, core), holder.touched())
        };
        let (ages, mut touched) = self.core.visit(look).await?;
        self.is_new = false;
        let mut due = VecDeque::from(self.watch.take_due(ages.now, &ages.pauses));
        while !due.is_empty() || touched > 0 {
            let mut keys: Vec<QueueKey> = due.drain(..QUEUES_AT_ONCE.min(due.len())).collect();
            let changed = touched.min(QUEUES_AT_ONCE - keys.len());
            touched -= changed;
            if let Err(refused) = self.look_at(&mut keys, changed).await {
                self.watch.again(keys.into_iter().chain(due));
                return Err(refused);
            }
        }
        Ok(())
    }

    /// Checks these queues, and up to `changed` more that changed: `keys` contains them afterwards.
    async fn look_at(&mut self, keys: &mut Vec<QueueKey>, changed: usize) -> Result<(), Refused> {
        let mut known = std::mem::take(keys);
        let given = known.clone();
        let look = move |holder: &mut Holder, core: &Core| {
            known.extend(holder.take_touched(changed));
            known.sort_unstable();
            known.dedup();
            let ends = |key| core.published().visible.range(key);
            let visited = visit(holder.state(), known.iter().copied(), ends);
            (known, ages(holder, core), visited)
        };
        let (looked_at, ages, visited) = match self.core.visit(look).await {
            Ok(visited) => visited,
            Err(refused) => {
                *keys = given;
                return Err(refused);
            }
        };
        *keys = looked_at;
        let Visited {
            candidates,
            others,
            hidden,
        } = visited;
        self.watch.again(hidden);
        for key in others {
            self.watch.take(key);
        }
        let known: Vec<_> = candidates
            .into_iter()
            .map(|candidate| (candidate, self.watch.take(candidate.key)))
            .collect();
        let store = Arc::clone(&self.core.published().store);
        let deciding = tokio::task::spawn_blocking(move || decide_all(&*store, &ages, known));
        let decided = match deciding.await {
            Ok(decided) => decided,
            Err(error) => {
                tracing::error!(%error, "a retention round failed; the next one continues");
                self.watch.again(keys.iter().copied());
                return Ok(());
            }
        };
        for (key, seen) in decided.seen {
            self.watch.put(key, seen);
        }
        self.watch.again(decided.failed);
        self.propose(&decided.starts).await
    }

    /// Writes an entry without effect into a log that has had none for too long.
    async fn keep_time(&self) -> Result<(), Refused> {
        let still = |holder: &mut Holder, core: &Core| {
            let last = holder.state().at().time;
            core.clock().now().0.saturating_sub(last.0)
        };
        let still = self.core.visit(still).await?;
        if still >= STANDS_STILL_MS {
            let nothing = Command::Trim { starts: Vec::new() };
            let command = log::Command::new(nothing.encode(), Vec::new());
            // If it is refused, the next round tries again.
            drop(self.core.propose_one(command, Want::Flushed).await);
        }
        Ok(())
    }

    /// Proposes new starts. They need no sync: if they are forgotten, they are found again.
    async fn propose(&self, starts: &[(QueueKey, Offset)]) -> Result<(), Refused> {
        for starts in starts.chunks(STARTS_AT_ONCE) {
            let starts = starts.to_vec();
            tracing::debug!(queues = starts.len(), "retention deletes messages");
            let command = log::Command::new(Command::Trim { starts }.encode(), Vec::new()).that_frees();
            if let Answer::Refused(refused) = self.core.propose_one(command, Want::Flushed).await {
                return Err(refused);
            }
        }
        Ok(())
    }
}

/// What ages are measured by now.
fn ages(holder: &Holder, core: &Core) -> Ages {
    let state = holder.state();
    Ages {
        now: state.at().time.max(core.clock().now()),
        pauses: state.pauses().clone(),
    }
}
