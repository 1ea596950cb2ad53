//! When the journal is compacted: as soon as it has grown beyond its budget, one round after another, each on
//! a thread that may block. How a round works is up to the store.
//!
//! A successful round requests a checkpoint at once: only then can its segments be freed, and until they are,
//! no other round begins.
//!
//! While the journal is within its budget, or nothing of it can be moved, rounds that rewrite sparse queue
//! files alternate with rounds that compact queues by their keys (*passes*). When the journal has used up
//! half of what it may hold beyond its budget, a round of passes ends after its current queue, and the next
//! one takes less; at three quarters it ends within that queue. If that was its first
//! queue, no round takes that queue for a while.

mod preempt;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mq_common::ids::Offset;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::preempt::{PASSES_BYTES_MAX, PreemptiblePace, Preemption};
use crate::background::half_moves::HalfMoves;
use crate::config::Config;
use crate::core::{Core, Holder};
use crate::ids::QueueKey;
use crate::store::{CompactionCandidate, CompactionHints, Moved, Plan, RoundError, Store};
use crate::telemetry::Metrics;

/// A budget that is not configured is at most this.
const BUDGET_BYTES_MAX: u64 = 8 << 30;
/// A round moves at most this much of the journal.
const ROUND_BYTES_MAX: u64 = 1 << 30;
/// A budget that is not configured has room for at least this many segments.
const SEGMENTS_MIN: u64 = 4;
/// Queue files rewritten in one round.
const REWRITES_MAX: usize = 64;
/// The wait after a failed round.
const RETRY: Duration = Duration::from_secs(5);

/// How much the journal may hold, fixed at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Above this it is compacted.
    pub(crate) budget_bytes: u64,
    /// At this size it accepts no messages.
    pub(crate) bytes_max: u64,
    segment_bytes: u64,
    disk_percent: u64,
}

impl Limits {
    /// From the settings, or from the sizes of the journal and the disk's free space.
    pub(crate) fn new(config: &Config, segments: usize, free_bytes: u64) -> Self {
        let segment_bytes = config.journal.segment_bytes;
        let journal_bytes = bytes_of(segments, segment_bytes);
        let budget_bytes = match config.journal.budget_bytes {
            0 => (free_bytes.saturating_add(journal_bytes) / 4)
                .min(BUDGET_BYTES_MAX)
                .max(SEGMENTS_MIN * segment_bytes),
            given => given,
        };
        let bytes_max = match config.journal.bytes_max {
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

    /// Whether the journal has used up this many quarters of what it may hold beyond its budget.
    const fn is_pressed(&self, bytes: u64, quarters: u64) -> bool {
        let beyond = self.bytes_max.saturating_sub(self.budget_bytes) / 4;
        bytes > self.budget_bytes.saturating_add(beyond.saturating_mul(quarters))
    }

    /// Segments of one round: a quarter of the budget, but no more than fit into half of the free space.
    fn round_segments(&self, free_bytes: u64) -> usize {
        let bytes = (self.budget_bytes / 4)
            .min(ROUND_BYTES_MAX)
            .max(self.segment_bytes);
        let segments = bytes.min(free_bytes / 2) / self.segment_bytes;
        usize::try_from(segments).unwrap_or(usize::MAX)
    }
}

/// Runs the rounds.
#[derive(Debug)]
pub(crate) struct Compactor {
    core: Arc<Core>,
    limits: Limits,
    metrics: Metrics,
    stop: CancellationToken,
    round: Option<JoinHandle<Result<Moved, RoundError>>>,
    /// Set if the current round is one that gives way.
    preemption: Option<Preemption>,
    /// Bytes of queues that the next round of passes takes.
    passes_bytes: u64,
    not_before: Instant,
    /// The last round, until what it moved is in a checkpoint.
    unsaved: Option<u64>,
    /// Queue files worth a rewrite, at the last checkpoint.
    sparse: Vec<(QueueKey, Offset)>,
    /// The last one that was tried: some cannot be rewritten, and the others must get their turn.
    tried: Option<(QueueKey, Offset)>,
    /// Queues worth a pass over their keys, at the last checkpoint.
    dirty: Vec<CompactionCandidate>,
    /// The last round was one of passes.
    passed: bool,
    halves: HalfMoves,
    /// At the last checkpoint, sealing the segment being written would have let a round free older ones.
    seals: bool,
}

impl Compactor {
    pub(crate) fn new(core: Arc<Core>, limits: Limits, metrics: Metrics) -> Self {
        tracing::debug!(?limits, "limits of the journal");
        core.journal_limit().set_limit(limits.bytes_max);
        Self {
            halves: HalfMoves::new(Arc::clone(&core), limits.segment_bytes, limits.disk_percent),
            core,
            limits,
            metrics,
            stop: CancellationToken::new(),
            round: None,
            preemption: None,
            passes_bytes: PASSES_BYTES_MAX,
            not_before: Instant::now(),
            unsaved: None,
            sparse: Vec::new(),
            tried: None,
            dirty: Vec::new(),
            passed: false,
            seals: false,
        }
    }

    /// Attends to the current round, or begins one if it is time and `may_begin`; returns whether a
    /// checkpoint is wanted at once. Never waits for a round.
    pub(crate) async fn tick(&mut self, may_begin: bool) -> bool {
        let bytes = self.core.count_journal();
        if let Some(round) = self.round.take_if(|round| round.is_finished()) {
            self.conclude(round.await);
        } else if may_begin
            && self.round.is_none()
            && self.unsaved.is_none()
            && Instant::now() >= self.not_before
        {
            self.begin(bytes).await;
        } else if let Some(preemption) = &self.preemption {
            if self.limits.is_pressed(bytes, 2) {
                preemption.soon.cancel();
            }
            if self.limits.is_pressed(bytes, 3) {
                preemption.now.cancel();
            }
        }
        if bytes > self.limits.budget_bytes {
            self.halves.tick().await;
        }
        self.unsaved.is_some()
    }

    /// A checkpoint was saved, and what it showed to be dead was freed. It may have been taken before the
    /// last round ended.
    pub(crate) fn saved(&mut self, hints: &CompactionHints) {
        self.unsaved.take_if(|round| *round <= hints.rounds);
        self.core.journal_limit().set_held(hints.held as u64);
        self.metrics
            .segments_held
            .set(i64::try_from(hints.held).unwrap_or(i64::MAX));
        self.halves.saved(hints);
        self.seals = hints.unsealed > 0;
        self.sparse = next_rewrites(&hints.sparse, self.tried);
        self.dirty.clone_from(&hints.candidates);
        let bytes = self.core.published().store.queue_file_bytes();
        self.metrics
            .queue_file_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Whether a round is under way.
    pub(crate) const fn is_running(&self) -> bool {
        self.round.is_some()
    }

    /// Stops the current round; its work is discarded.
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
        let is_turn = self.sparse.is_empty() || !self.passed;
        if segments == 0 && is_turn && self.begin_passes(&store).await {
            return;
        }
        self.passed = false;
        let sparse = std::mem::take(&mut self.sparse);
        if segments == 0 && sparse.is_empty() {
            // No space for a round, but a sealed segment can be freed when its messages expire.
            self.seal_if_needed(bytes).await;
            return;
        }
        let planning = self
            .core
            .visit_for_upkeep(move |holder, core| Ok(holder.plan_round(core, segments, &sparse)));
        let Ok(planned) = planning.await else { return };
        let Some(plan) = planned else {
            // What exceeds the budget cannot be moved for now: an open transaction holds it.
            let has_room = !self.limits.is_pressed(bytes, 2);
            if !(has_room && self.begin_passes(&store).await) {
                self.seal_if_needed(bytes).await;
            }
            return;
        };
        self.tried = plan.rewrites.last().copied().or(self.tried);
        self.preemption = None;
        self.start(store, plan, Preemption::of(&self.stop));
    }

    /// Begins a round that compacts queues by their keys; `false` = no queue is worth it, or there is no
    /// space.
    async fn begin_passes(&mut self, store: &Arc<Store>) -> bool {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            return false;
        }
        let free_bytes = store.free_bytes().unwrap_or(u64::MAX) / 2;
        let queues = next_passes(&dirty, free_bytes, self.passes_bytes);
        let planning = self
            .core
            .visit_for_upkeep(move |holder, _| Ok(holder.plan_passes(&queues)));
        let Ok(Some(plan)) = planning.await else {
            return false;
        };
        self.passed = true;
        let preemption = Preemption::of(&self.stop);
        self.preemption = Some(preemption.clone());
        self.start(Arc::clone(store), plan, preemption);
        true
    }

    fn start(&mut self, store: Arc<Store>, plan: Plan, preemption: Preemption) {
        let mut pacer = PreemptiblePace::new(&self.core, preemption, self.limits.disk_percent);
        self.round = Some(tokio::task::spawn_blocking(move || {
            store.compact(&plan, &mut pacer)
        }));
    }

    /// Nothing can be moved. If the journal is above its budget, commits in the segment being written may be
    /// what holds older segments: in an idle broker they would hold them for ever. At the journal's limit, no
    /// message is accepted that would fill the segment.
    async fn seal_if_needed(&mut self, bytes: u64) {
        let seals = std::mem::take(&mut self.seals) && bytes > self.limits.budget_bytes;
        if !seals && bytes < self.limits.bytes_max {
            return;
        }
        // Refused only when the broker ends.
        drop(self.core.visit_for_upkeep(Holder::seal_segment).await);
    }

    /// Records how a round ended.
    pub(crate) fn conclude(&mut self, done: Result<Result<Moved, RoundError>, tokio::task::JoinError>) {
        if let Some(preemption) = self.preemption.take() {
            self.passes_bytes = preemption.bytes_next(self.passes_bytes);
        }
        match done {
            Ok(Ok(moved)) => {
                tracing::info!(
                    ?moved,
                    "moved messages from the journal into queue files, or rewrote some"
                );
                self.count_keys(&moved);
                self.metrics.compaction_rounds.inc();
                self.metrics.compaction_bytes.inc_by(moved.bytes);
                self.metrics.compaction_holes.inc_by(moved.holes);
                self.unsaved = Some(moved.round);
                return;
            }
            // The broker stops, or the journal needs a round that moves messages.
            Ok(Err(RoundError::Stopped)) => return,
            Ok(Err(error @ RoundError::Sync(_))) => self.core.fail(&error.to_string()),
            Ok(Err(error)) => {
                tracing::error!(%error, "compaction failed; nothing is lost, it will be tried again");
            }
            Err(error) => tracing::error!(%error, "a compaction round panicked or was cancelled"),
        }
        self.not_before = Instant::now() + RETRY;
    }

    fn count_keys(&self, moved: &Moved) {
        let count = |count: usize| count as u64;
        self.metrics.keys.passes.inc_by(count(moved.passes));
        self.metrics.keys.messages.inc_by(moved.let_go);
        self.metrics.keys.files_left.inc_by(count(moved.left_alone));
    }
}

/// The queues to compact next, those with the most to gain first: as many as a round takes, among those that
/// there is space to rewrite completely.
fn next_passes(dirty: &[CompactionCandidate], free_bytes: u64, passes_bytes: u64) -> Vec<QueueKey> {
    let mut bytes = 0_u64;
    let fits = dirty.iter().filter(|dirty| {
        let sum = bytes.saturating_add(dirty.all_bytes);
        let fits = sum <= free_bytes && (bytes == 0 || sum <= passes_bytes);
        if fits {
            bytes = sum;
        }
        fits
    });
    fits.map(|dirty| dirty.queue).collect()
}

/// The files to rewrite next: those after the one that was `tried` last, then from the first one on.
fn next_rewrites(
    sparse: &[(QueueKey, Offset)],
    tried: Option<(QueueKey, Offset)>,
) -> Vec<(QueueKey, Offset)> {
    let at = sparse.partition_point(|file| Some(*file) <= tried);
    let (before, after) = sparse.split_at(at);
    after.iter().chain(before).take(REWRITES_MAX).copied().collect()
}

fn bytes_of(segments: usize, segment_bytes: u64) -> u64 {
    (segments as u64).saturating_mul(segment_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(budget: u64, max: u64, segments: usize, free: u64) -> Limits {
        let mut config = Config::merge(&[]).unwrap();
        config.journal.budget_bytes = budget;
        config.journal.bytes_max = max;
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
    fn passes_take_what_has_the_space_to_be_written_again_up_to_a_round() {
        let dirty = |queue, all_bytes| CompactionCandidate {
            queue: QueueKey(queue),
            bytes: all_bytes,
            all_bytes,
        };
        let all = [
            dirty(1, 3 << 30),
            dirty(2, 1 << 29),
            dirty(3, 1 << 29),
            dirty(4, 1),
        ];
        let next = |free| -> Vec<u32> {
            next_passes(&all, free, PASSES_BYTES_MAX)
                .iter()
                .map(|queue| queue.0)
                .collect()
        };
        assert_eq!(next(u64::MAX), [1], "a large one goes alone");
        assert_eq!(next(2 << 30), [2, 3]);
        assert_eq!(next(1 << 29), [2]);
        assert_eq!(next(100), [4]);
        assert_eq!(next(0), [0; 0]);
        assert_eq!(
            next_passes(&all[2..], u64::MAX, 100),
            [QueueKey(3)],
            "less at once"
        );
    }

    #[test]
    fn a_journal_is_pressed_between_its_budget_and_its_end() {
        let limits = limits(4 << 30, 6 << 30, 1, 0);
        assert!(!limits.is_pressed(5 << 30, 2));
        assert!(limits.is_pressed((5 << 30) + 1, 2));
        assert!(!limits.is_pressed((5 << 30) + 1, 3));
    }
}
