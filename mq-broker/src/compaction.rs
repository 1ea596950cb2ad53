//! When the journal is compacted: as soon as it has grown beyond its budget, one round after the other, each on a thread
//! that may block. How a round works is the store's matter.
//!
//! A round that succeeded wants a checkpoint at once: only then can its segments go, and until they went there is no
//! other one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mq_common::ids::Offset;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::core::{Core, Holder};
use crate::ids::QueueKey;
use crate::store::{Dead, Moved, Pace, RoundError};
use crate::telemetry::Metrics;

/// The budget that is not given is at most this.
const BUDGET_BYTES_MAX: u64 = 8 << 30;
/// A round moves at most this much of the journal.
const ROUND_BYTES_MAX: u64 = 1 << 30;
/// A budget that is not given has room for so many segments.
const SEGMENTS_MIN: u64 = 4;
/// Queue files rewritten in one round.
const REWRITES_MAX: usize = 64;
/// After a round that failed, the next try waits this long.
const RETRY: Duration = Duration::from_secs(5);
/// A piece of work that took longer makes nobody wait longer.
const PIECE_MAX: Duration = Duration::from_secs(1);

/// Shorter rests are gathered.
const REST_MIN: Duration = Duration::from_millis(20);

/// How much the journal may hold, fixed at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// From here on it is compacted.
    pub(crate) budget_bytes: u64,
    /// From here on it takes no messages.
    pub(crate) bytes_max: u64,
    segment_bytes: u64,
    disk_percent: u64,
}

impl Limits {
    /// As the settings say, or by what the journal and the disk have.
    pub(crate) fn new(config: &Config, segments: usize, free_bytes: u64) -> Self {
        let segment_bytes = config.journal.segment_bytes;
        let journal_bytes = bytes_of(segments, segment_bytes);
        let budget_bytes = match config.store.journal_budget_bytes {
            0 => (free_bytes.saturating_add(journal_bytes) / 4)
                .min(BUDGET_BYTES_MAX)
                .max(SEGMENTS_MIN * segment_bytes),
            given => given,
        };
        let bytes_max = match config.store.journal_bytes_max {
            0 => budget_bytes.saturating_mul(2),
            given => given,
        };
        Self {
            budget_bytes,
            bytes_max,
            segment_bytes,
            disk_percent: config.store.compaction_disk_percent,
        }
    }

    /// Segments of one round: of a quarter of the budget, and no more than half of the free space takes.
    fn round_segments(&self, free_bytes: u64) -> usize {
        let bytes = (self.budget_bytes / 4)
            .min(ROUND_BYTES_MAX)
            .max(self.segment_bytes);
        let segments = bytes.min(free_bytes / 2) / self.segment_bytes;
        usize::try_from(segments).unwrap_or(usize::MAX)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Compactor {
    core: Arc<Core>,
    limits: Limits,
    metrics: Metrics,
    stop: CancellationToken,
    round: Option<JoinHandle<Result<Moved, RoundError>>>,
    not_before: Instant,
    /// The last round, as long as what it moved is in no checkpoint.
    unsaved: Option<u64>,
    /// Queue files worth a rewrite, as of the last checkpoint.
    sparse: Vec<(QueueKey, Offset)>,
    /// The last one that was tried: not all of them can be rewritten, and the others get their turn.
    tried: Option<(QueueKey, Offset)>,
}

impl Compactor {
    pub(crate) fn new(core: Arc<Core>, limits: Limits, metrics: Metrics) -> Self {
        tracing::debug!(?limits, "limits of the journal");
        Self {
            core,
            limits,
            metrics,
            stop: CancellationToken::new(),
            round: None,
            not_before: Instant::now(),
            unsaved: None,
            sparse: Vec::new(),
            tried: None,
        }
    }

    /// Looks after the round under way, or begins one if it is time and `may_begin`; answers whether a checkpoint is wanted
    /// at once. Never waits for a round.
    pub(crate) async fn tick(&mut self, may_begin: bool) -> bool {
        let bytes = bytes_of(self.core.recycler().sealed().len() + 1, self.limits.segment_bytes);
        self.core.room().set(bytes, self.limits.bytes_max);
        if let Some(round) = self.round.take_if(|round| round.is_finished()) {
            self.conclude(round.await);
        } else if may_begin
            && self.round.is_none()
            && self.unsaved.is_none()
            && Instant::now() >= self.not_before
        {
            self.begin(bytes).await;
        }
        self.unsaved.is_some()
    }

    /// A checkpoint was saved, and what it left dead was freed. It may have been taken before the last round ended.
    pub(crate) fn saved(&mut self, dead: &Dead) {
        self.unsaved.take_if(|round| *round <= dead.rounds);
        self.core.room().set_held(dead.held as u64);
        self.metrics
            .segments_held
            .set(i64::try_from(dead.held).unwrap_or(i64::MAX));
        self.sparse = next_rewrites(&dead.sparse, self.tried);
        let bytes = self.core.published().store.queue_file_bytes();
        self.metrics
            .queue_file_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Whether a round is under way.
    pub(crate) const fn is_running(&self) -> bool {
        self.round.is_some()
    }

    /// Stops the round under way; what it did is forgotten.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        if let Some(round) = self.round.take() {
            self.conclude(round.await);
        }
    }

    async fn begin(&mut self, bytes: u64) {
        let store = Arc::clone(&self.core.published().store);
        let mut segments = 0;
        if bytes > self.limits.budget_bytes {
            segments = match store.free_bytes() {
                Ok(free) => self.limits.round_segments(free),
                Err(error) => {
                    tracing::warn!(%error, "the free space is not known");
                    self.limits.round_segments(u64::MAX)
                }
            };
        }
        let sparse = std::mem::take(&mut self.sparse);
        if segments == 0 && sparse.is_empty() {
            // No space for a round: but what is sealed can be freed when its messages expire.
            self.seal_at_limit(bytes).await;
            return;
        }
        let planning = self
            .core
            .attend(move |holder, core| Ok(holder.plan_round(core, segments, &sparse)));
        let Ok(planned) = planning.await else { return };
        let Some(plan) = planned else {
            self.seal_at_limit(bytes).await;
            return;
        };
        self.tried = plan.rewrites.last().copied().or(self.tried);
        let mut pacer = Pacer::new(&self.core, &self.stop, self.limits.disk_percent);
        self.round = Some(tokio::task::spawn_blocking(move || {
            store.compact(&plan, &mut pacer)
        }));
    }

    /// Nothing can be moved, and no message is taken that would fill the segment which is being written: but what was
    /// committed in it may be what holds older ones.
    async fn seal_at_limit(&self, bytes: u64) {
        if bytes < self.limits.bytes_max {
            return;
        }
        // Refused only when the broker ends.
        drop(self.core.attend(Holder::seal_segment).await);
    }

    /// Takes note of how a round ended.
    pub(crate) fn conclude(&mut self, done: Result<Result<Moved, RoundError>, tokio::task::JoinError>) {
        match done {
            Ok(Ok(moved)) => {
                tracing::info!(?moved, "moved messages from the journal into queue files");
                self.metrics.compaction_rounds.inc();
                self.metrics.compaction_bytes.inc_by(moved.bytes);
                self.metrics.compaction_holes.inc_by(moved.holes);
                self.unsaved = Some(moved.round);
                return;
            }
            Ok(Err(RoundError::Stopped)) => {}
            Ok(Err(error @ RoundError::Sync(_))) => self.core.fail(&error.to_string()),
            Ok(Err(error)) => {
                tracing::error!(%error, "compaction failed; nothing is lost, it is tried again");
            }
            Err(error) => tracing::error!(%error, "compaction broke"),
        }
        self.not_before = Instant::now() + RETRY;
    }
}

/// The files to rewrite next: those behind the one that was `tried` last, then from the first one on.
fn next_rewrites(
    sparse: &[(QueueKey, Offset)],
    tried: Option<(QueueKey, Offset)>,
) -> Vec<(QueueKey, Offset)> {
    let at = sparse.partition_point(|file| Some(*file) <= tried);
    let (before, behind) = sparse.split_at(at);
    behind.iter().chain(before).take(REWRITES_MAX).copied().collect()
}

fn bytes_of(segments: usize, segment_bytes: u64) -> u64 {
    (segments as u64).saturating_mul(segment_bytes)
}

/// Leaves the disk to the producers while there are any: after each piece of work it waits so long that its share of the
/// time is kept.
struct Pacer {
    core: Arc<Core>,
    stop: CancellationToken,
    runtime: tokio::runtime::Handle,
    percent: u64,
    growth: u64,
    /// Rest that is still to be taken: pieces of work may be shorter than any timer can wait.
    owed: Duration,
}

impl Pacer {
    fn new(core: &Arc<Core>, stop: &CancellationToken, percent: u64) -> Self {
        Self {
            core: Arc::clone(core),
            stop: stop.clone(),
            runtime: tokio::runtime::Handle::current(),
            percent,
            growth: core.journal_growth(),
            owed: Duration::ZERO,
        }
    }
}

impl Pace for Pacer {
    fn pause(&mut self, took: Duration) -> bool {
        self.owed += rest(took, self.percent);
        if self.owed < REST_MIN {
            return !self.stop.is_cancelled();
        }
        let rest = std::mem::take(&mut self.owed);
        let growth = self.core.journal_growth();
        let is_producing = growth != self.growth;
        self.growth = growth;
        if is_producing {
            let stopped = self.stop.cancelled();
            let waited = self
                .runtime
                .block_on(async { tokio::time::timeout(rest, stopped).await });
            return waited.is_err();
        }
        !self.stop.is_cancelled()
    }
}

/// How long to rest after work that took `took`, to use this share of the time.
fn rest(took: Duration, percent: u64) -> Duration {
    let percent = u32::try_from(percent.clamp(1, 100)).unwrap_or(100);
    took.min(PIECE_MAX) * (100 - percent) / percent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(budget: u64, max: u64, segments: usize, free: u64) -> Limits {
        let mut config = Config::merge(&[]).unwrap();
        config.store.journal_budget_bytes = budget;
        config.store.journal_bytes_max = max;
        Limits::new(&config, segments, free)
    }

    #[test]
    fn the_budget_is_given_or_a_quarter_of_what_there_is() {
        const SEGMENT: u64 = 64 << 20;
        assert_eq!(limits(5 << 30, 0, 1, 0).budget_bytes, 5 << 30);
        assert_eq!(limits(5 << 30, 0, 1, 0).bytes_max, 10 << 30);
        assert_eq!(limits(5 << 30, 6 << 30, 1, 0).bytes_max, 6 << 30);
        assert_eq!(limits(0, 0, 16, 7 << 30).budget_bytes, 2 << 30);
        assert_eq!(limits(0, 0, 16, u64::MAX).budget_bytes, 8 << 30);
        assert_eq!(limits(0, 0, 1, 1000).budget_bytes, 4 * SEGMENT);
    }

    #[test]
    fn a_round_takes_a_quarter_of_the_budget_and_shrinks_to_what_is_free() {
        let limits = limits(1 << 30, 0, 1, 0);
        assert_eq!(limits.round_segments(u64::MAX), 4);
        assert_eq!(limits.round_segments(300 << 20), 2);
        assert_eq!(limits.round_segments(100 << 20), 0);
    }

    #[test]
    fn files_that_stay_sparse_leave_the_others_their_turn() {
        let sparse: Vec<_> = (0..100).map(|queue| (QueueKey(queue), Offset(7))).collect();
        let first = next_rewrites(&sparse, None);
        assert_eq!(first, sparse[..64]);
        let second = next_rewrites(&sparse, first.last().copied());
        assert_eq!(second, [&sparse[64..], &sparse[..28]].concat());
        assert_eq!(next_rewrites(&sparse, sparse.last().copied()), first);
        assert_eq!(next_rewrites(&[], first.last().copied()), []);
    }

    #[test]
    fn a_quarter_of_the_time_means_three_quarters_of_rest() {
        let took = Duration::from_millis(10);
        assert_eq!(rest(took, 25), Duration::from_millis(30));
        assert_eq!(rest(took, 100), Duration::ZERO);
        assert_eq!(rest(Duration::from_secs(60), 50), PIECE_MAX);
    }
}
