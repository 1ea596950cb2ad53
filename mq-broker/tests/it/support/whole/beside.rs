//! What goes on beside the changes, a piece at a time, in the order that the broker keeps: a round of
//! compaction, or of passes over keys, on a thread of its own; a checkpoint that is taken, saved (perhaps not
//! at the first try), and what it left dead freed.

use std::path::Path;
use std::sync::Arc;

use mq_broker::background::reclaim::reclaim;
use mq_broker::core::{CoreThread, Snapshot};
use mq_broker::ids::QueueKey;
use mq_broker::store::{Dead, Moved, RoundError, SegmentId};
use mq_common::ids::Offset;

use super::Whole;
use super::backup::Stage;
use super::fetching::Fetching;
use crate::support::baton::{Errand, Go, Stop, Stopping};
use crate::support::model::View;
use crate::support::workload::Piece;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Beside {
    round: Option<Round>,
    /// The last round, as long as what it moved is in no checkpoint: no other one begins.
    unsaved: Option<u64>,
    /// Queue files that the last checkpoint found worth a rewrite.
    sparse: Vec<(QueueKey, Offset)>,
    /// Queues that it found worth a pass over their keys.
    dirty: Vec<QueueKey>,
    pub(super) checkpoint: Checkpointing,
    pub(super) fetching: Option<Fetching>,
    pub(super) stage: Option<Stage>,
}

#[derive(Debug)]
struct Round {
    errand: Errand<Result<Moved, RoundError>>,
    /// Something was made to fail in it.
    is_harmed: bool,
    /// How often it was continued.
    pieces: usize,
}

/// How far a checkpoint is.
#[derive(Debug, Default)]
pub(super) enum Checkpointing {
    #[default]
    Idle,
    /// For a backup, with the sealed segments that belong into it, and what it must hold.
    Taken(Box<Snapshot>, Option<(Vec<SegmentId>, View)>),
    /// A backup links files; then what is dead is freed.
    Staging(Dead),
    Freeing(Dead, Errand<()>),
}

/// Whether something is tried and fails, where this errand stops.
fn harms(at: Stop, go: Go, syncs_whole: bool) -> bool {
    match go {
        Go::On => false,
        Go::Short => at == Stop::Write,
        // A file that is synced alone does not report a failure that was reported to another sync.
        Go::Fail(_) => at != Stop::Synced && at != Stop::Pause && (at != Stop::WriteBack || syncs_whole),
    }
}

/// Goes on as far as this piece; answers whether it was made to fail.
pub(super) fn advance<T: Send + 'static>(errand: &mut Errand<T>, piece: Piece, syncs_whole: bool) -> bool {
    let mut stops = piece.stops;
    let mut is_harmed = false;
    while let Some(at) = errand.at() {
        stops -= 1;
        if stops == 0 && harms(at, piece.last, syncs_whole) {
            is_harmed = matches!(piece.last, Go::Fail(_));
            errand.go(piece.last);
        } else {
            errand.go(Go::On);
        }
        if stops == 0 {
            break;
        }
    }
    is_harmed
}

impl Whole {
    /// Begins a round of compaction if one may begin, or goes on with it.
    pub(super) async fn compact(&mut self, by_keys: bool, segments: usize, piece: Piece) -> bool {
        let Some(round) = &mut self.beside.round else {
            let is_idle = matches!(self.beside.checkpoint, Checkpointing::Idle);
            if is_idle && self.beside.unsaved.is_none() {
                self.begin_round(by_keys, segments).await;
            }
            return true;
        };
        round.is_harmed |= advance(&mut round.errand, piece, self.shape.syncs_whole);
        round.pieces += 1;
        if round.errand.at().is_some() {
            return true;
        }
        self.conclude()
    }

    async fn begin_round(&mut self, by_keys: bool, segments: usize) {
        let sparse = std::mem::take(&mut self.beside.sparse);
        // A round that appends rewrites nothing.
        let segments = if sparse.is_empty() { segments } else { 0 };
        let dirty = if by_keys {
            std::mem::take(&mut self.beside.dirty)
        } else {
            Vec::new()
        };
        let planning = self.core.visit(move |holder, core| match dirty.is_empty() {
            true => holder.plan_round(core, segments, &sparse),
            false => holder.plan_passes(&dirty),
        });
        let Some(plan) = planning.await.unwrap() else {
            return;
        };
        let store = Arc::clone(&self.core.published().store);
        self.beside.round = Some(Round {
            errand: Errand::begin(move || store.compact(&plan, &mut Stopping)),
            is_harmed: false,
            pieces: 0,
        });
    }

    /// The round is done.
    fn conclude(&mut self) -> bool {
        let round = self.beside.round.take().unwrap();
        let reached = &mut self.reached;
        reached.rounds_cut += usize::from(round.pieces > 1);
        reached.rounds_failed += usize::from(round.is_harmed);
        match round.errand.end() {
            Ok(moved) => {
                assert_eq!(moved.holes, 0, "{moved:?}");
                assert!(moved.left_alone == 0 || round.is_harmed, "{moved:?}");
                reached.batches_moved += moved.batches;
                reached.files_rewritten += moved.rewritten;
                reached.let_go += moved.let_go;
                self.beside.unsaved = Some(moved.round);
                true
            }
            Err(error) => {
                assert!(round.is_harmed, "{error}");
                !matches!(error, RoundError::Sync(_))
            }
        }
    }

    /// The next piece of a checkpoint.
    pub(super) async fn checkpoint(&mut self, piece: Piece) -> bool {
        match std::mem::take(&mut self.beside.checkpoint) {
            Checkpointing::Idle => {
                self.take_snapshot().await;
                true
            }
            Checkpointing::Taken(snapshot, backup) => {
                if matches!(piece.last, Go::Fail(_)) {
                    self.fail_to_save(&snapshot).await;
                    // The backup is given up, too.
                    self.beside.checkpoint = Checkpointing::Taken(snapshot, None);
                } else {
                    self.save(&snapshot).await;
                    let dead = snapshot.dead;
                    self.beside.checkpoint = match backup {
                        Some((segments, model)) => {
                            self.begin_stage(&segments, model);
                            Checkpointing::Staging(dead)
                        }
                        None => self.free(dead),
                    };
                }
                true
            }
            Checkpointing::Staging(dead) => {
                let is_staged = self.go_on_staging(piece);
                self.beside.checkpoint = if is_staged {
                    self.free(dead)
                } else {
                    Checkpointing::Staging(dead)
                };
                true
            }
            Checkpointing::Freeing(dead, mut errand) => {
                advance(&mut errand, piece, self.shape.syncs_whole);
                if errand.at().is_some() {
                    self.beside.checkpoint = Checkpointing::Freeing(dead, errand);
                    return true;
                }
                errand.end();
                self.reached.segments_freed += dead.segments.len();
                self.reached.files_removed += dead.files.len();
                self.beside.unsaved.take_if(|round| *round <= dead.hints.rounds);
                self.beside.sparse = dead.hints.sparse;
                self.beside.dirty = dead.hints.candidates.iter().map(|dirty| dirty.queue).collect();
                !self.core.failed().is_cancelled()
            }
        }
    }

    async fn finish_checkpoint(&mut self) -> bool {
        while !matches!(self.beside.checkpoint, Checkpointing::Idle) {
            if !self.checkpoint(Piece::WHOLE).await {
                return false;
            }
        }
        true
    }

    /// What a checkpoint saves. It covers every change before it.
    async fn take_snapshot(&mut self) {
        let snapshot = self.core.visit(|holder, core| holder.snapshot(core)).await;
        self.taken(snapshot.unwrap().unwrap(), None);
    }

    /// `segments`: of a backup.
    pub(super) fn taken(&mut self, snapshot: Snapshot, segments: Option<Vec<SegmentId>>) {
        self.now.synced = self.now.flushed;
        self.note();
        let backup = segments.map(|segments| (segments, self.model().clone()));
        self.beside.checkpoint = Checkpointing::Taken(Box::new(snapshot), backup);
    }

    async fn save(&mut self, snapshot: &Snapshot) {
        let last = self.saved.len() - 1;
        self.now.checkpoints = vec![last, last + 1];
        self.note();
        self.disk.picture();
        let saving = self
            .checkpoint
            .save(&snapshot.state, &snapshot.store, snapshot.synced);
        saving.await.unwrap();
        self.saved.push(self.checkpoint.load().await.unwrap());
        self.now.checkpoints = vec![last + 1];
        self.note();
        self.disk.picture();
    }

    async fn fail_to_save(&mut self, snapshot: &Snapshot) {
        let file = self.folder.path().join("state.db");
        refuse_saves(&file, true).await;
        let saving = self
            .checkpoint
            .save(&snapshot.state, &snapshot.store, snapshot.synced);
        let error = saving.await.unwrap_err();
        assert!(!error.is_failed_sync(), "{error}");
        refuse_saves(&file, false).await;
        self.reached.saves_failed += 1;
    }

    fn free(&self, dead: Dead) -> Checkpointing {
        let (core, metrics, all) = (Arc::clone(&self.core), self.metrics.clone(), dead.clone());
        let freeing = move || {
            // What is left is found again by the next checkpoint.
            reclaim(&core, &metrics, &all);
        };
        Checkpointing::Freeing(dead, Errand::begin(freeing))
    }

    /// A clean stop: everything is on the disk, and in the checkpoint.
    pub(crate) async fn stop(&mut self) -> bool {
        if let Some(round) = &mut self.beside.round {
            // It learns of that at its next pause.
            while let Some(at) = round.errand.at() {
                round.is_harmed |= at == Stop::Pause;
                round.errand.go(if at == Stop::Pause {
                    Go::Fail(libc::EINTR)
                } else {
                    Go::On
                });
            }
            if !self.conclude() {
                return false;
            }
        }
        self.finish_fetch();
        if !self.finish_checkpoint().await {
            return false;
        }
        CoreThread::start(Arc::clone(&self.core)).unwrap().stop().unwrap();
        let snapshot = self.core.last_snapshot().unwrap();
        assert_eq!(snapshot.synced, self.core.watermarks().appended);
        self.now.synced = self.now.flushed;
        self.save(&snapshot).await;
        true
    }
}

/// Whether the database refuses checkpoints.
async fn refuse_saves(file: &Path, refuses: bool) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let change = if refuses {
        "CREATE TRIGGER refuse BEFORE UPDATE ON meta BEGIN SELECT RAISE(ABORT, 'refused'); END"
    } else {
        "DROP TRIGGER refuse"
    };
    sqlx::raw_sql(change).execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
}
