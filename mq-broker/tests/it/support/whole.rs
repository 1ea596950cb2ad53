//! A whole core (log, state, store) over a disk in memory, with a real checkpoint beside it, and a plain model of what
//! it must hold. One client, one change after the other, so that what a crash leaves is the model after some of them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mq_broker::checkpoint::{Checkpoint, Saved};
use mq_broker::core::{Answer, Core, CoreThread, FromEntries, Parts, Published, Snapshot, StartError};
use mq_broker::ids::{BatchAt, QueueKey};
use mq_broker::log::{self, Want};
use mq_broker::reclaim::reclaim;
use mq_broker::state::{Limits, State};
use mq_broker::store::disk::{Crash, TestDisk};
use mq_broker::store::{self, Folder, Found, Moved, Pace, Store};
use mq_broker::telemetry::Metrics;
use mq_broker::volatile;
use mq_common::ids::Offset;
use tempfile::TempDir;

use super::journal::DATA;
use super::model::{Change, Queue, View, shard};

/// How far the client and the checkpoint were at some moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// Changes handed over; so many may be found.
    pub(crate) issued: usize,
    /// Changes answered; so many must be found after the death of the process.
    pub(crate) flushed: usize,
    /// Changes answered as being on the disk; so many must be found after a power cut.
    pub(crate) synced: usize,
    /// Which of [`Whole::saved`] the database may hold.
    pub(crate) checkpoints: Vec<usize>,
}

/// See the module.
pub(crate) struct Whole {
    pub(crate) disk: TestDisk,
    pub(crate) settings: log::Settings,
    pub(crate) core: Arc<Core>,
    metrics: Metrics,
    checkpoint: Checkpoint,
    _folder: TempDir,
    /// Every checkpoint there was, from the empty one on.
    pub(crate) saved: Vec<Saved>,
    /// The model after each change, from the empty one on.
    pub(crate) views: Vec<View>,
    /// What goes with the marks of the disk's pictures.
    pub(crate) progress: Vec<Progress>,
    now: Progress,
    serial: u64,
    /// Queue files that the last checkpoint found worth a rewrite.
    sparse: Vec<(QueueKey, Offset)>,
    /// The last round of compaction is not in a checkpoint yet: no other one may begin.
    compacted: bool,
    /// What the work came to.
    pub(crate) reached: Reached,
}

/// What there was besides appends: a work that comes to none of it tests nothing of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reached {
    pub(crate) segments_freed: usize,
    pub(crate) batches_moved: u64,
    pub(crate) files_rewritten: usize,
    pub(crate) files_removed: usize,
}

/// Waits for nobody.
struct Unhurried;

impl Pace for Unhurried {
    fn pause(&mut self, _took: Duration) -> bool {
        true
    }
}

/// Moves the oldest of the journal into queue files, and rewrites sparse ones; `None` = there was nothing to do.
pub(crate) async fn compact(
    core: &Arc<Core>,
    segments: usize,
    sparse: Vec<(QueueKey, Offset)>,
) -> Option<Moved> {
    let planned = core.visit(move |holder, core| holder.plan_round(core, segments, &sparse));
    let plan = planned.await.unwrap()?;
    Some(core.published().store.compact(&plan, &mut Unhurried).unwrap())
}

/// Small segments, and spares or none.
pub(crate) fn settings(spares: usize) -> log::Settings {
    log::Settings {
        segment_bytes: 4096,
        segments_ahead: 0,
        spares_max: spares,
        zeros_ahead_bytes: if spares == 0 { 0 } else { 2048 },
        chain_start: 7,
        ..log::Settings::default()
    }
}

/// A core on this disk with this checkpoint.
pub(crate) fn start(
    disk: &TestDisk,
    settings: log::Settings,
    saved: &Saved,
) -> Result<(Arc<Core>, Metrics), StartError> {
    let folder = Folder::open(Arc::new(disk.clone()), Path::new(DATA)).expect("the folder is free");
    let state = State::load(shard(), Limits::default(), saved.rows.clone())
        .expect("rows of a checkpoint")
        .numbered_from(saved.transactions_from);
    let sizes = store::Settings {
        tail_bytes: 4096,
        queue_segment_bytes: 700,
        queue_segment_bytes_max: 3000,
        rewrite_valid_percent: 90,
        ..store::Settings::default()
    };
    let store = Store::open(&folder, sizes, saved.store.clone());
    let rebuild = FromEntries {
        folder: Arc::clone(&folder),
        transactions_from: saved.transactions_from,
    };
    let store = Arc::new(store.rebuilt_by(Arc::new(rebuild)));
    let published = Published::new(
        Arc::clone(&store),
        volatile::Settings::default(),
        volatile::Schedule::default(),
    );
    let (metrics, _) = Metrics::new();
    let core = Core::open(Parts {
        folder,
        state,
        store,
        published: Arc::new(published),
        settings,
        inbox_bytes_max: 1 << 26,
        metrics: metrics.clone(),
    })?;
    Ok((core, metrics))
}

/// Everything that a core holds, read as a fetch reads it.
pub(crate) async fn view(core: &Arc<Core>) -> View {
    let rows = core.visit(|holder, _| holder.state().rows()).await.unwrap();
    let store = &core.published().store;
    let mut view = View {
        next_queue: rows.counters.next_queue.0,
        next_group: rows.counters.next_group.0,
        ..View::default()
    };
    for declared in rows.topics.iter().filter(|topic| !topic.deleted) {
        let name = declared.name.to_string();
        view.topics.insert(name.clone(), Vec::new());
        view.declared.insert(name, (declared.id.0, declared.version));
    }
    for row in &rows.queues {
        view.topics.get_mut(row.topic.as_str()).unwrap().push(row.key.0);
        let visible = core.published().tails.ends(row.key).unwrap();
        assert_eq!(
            (visible.start, visible.end),
            (row.start, row.end),
            "all is visible"
        );
        let queue = Queue {
            start: row.start.0,
            end: row.end.0,
            batches: read(store, row.key, row.start, row.end),
        };
        view.queues.insert(row.key.0, queue);
    }
    for cursor in &rows.cursors {
        let of = (cursor.group.0, cursor.queue.0);
        view.cursors.insert(of, cursor.next.0);
        if cursor.lost > 0 {
            view.lost.insert(of, cursor.lost);
        }
    }
    for open in &rows.transactions {
        let half = open.half();
        let parts = open.parts.iter().zip(half.first.index..).map(|(part, index)| {
            let at = BatchAt {
                lsn: half.first.lsn,
                index,
            };
            (part.queue.0, store.half(at).unwrap().expect("a half message").1)
        });
        view.open.insert(open.number.0, parts.collect());
    }
    let decided = rows.decisions.iter().map(|row| (row.number.0, row.committed));
    view.verdicts.extend(decided);
    view
}

fn read(store: &Store, queue: QueueKey, start: Offset, end: Offset) -> Vec<(u64, Bytes)> {
    let mut next = start;
    let mut batches = Vec::new();
    while next < end {
        let found = store.fetch(queue, next, end, 3000).unwrap();
        assert!(
            !found.is_empty(),
            "nothing at {next} of {end} in queue {}",
            queue.0
        );
        for one in found {
            let Found::Batch { row, region } = one else {
                panic!("queue {}: {one:?}", queue.0);
            };
            // Only the first one may have begun before the start.
            let fits = row.base_offset == next || (next == start && row.base_offset < next);
            assert!(fits && row.end() > next, "no gap: {row:?} at {next}");
            next = row.end();
            batches.push((row.base_offset.0, region));
        }
    }
    batches
}

impl Whole {
    /// A new broker.
    pub(crate) async fn new(settings: log::Settings) -> Self {
        let disk = TestDisk::default();
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoint = Checkpoint::open(&folder.path().join("state.db"), &shard(), false)
            .await
            .unwrap();
        let saved = vec![checkpoint.load().await.unwrap()];
        let (core, metrics) = start(&disk, settings.clone(), &saved[0]).unwrap();
        let mut whole = Self {
            disk,
            settings,
            core,
            metrics,
            checkpoint,
            _folder: folder,
            saved,
            views: vec![View::default()],
            progress: Vec::new(),
            now: Progress {
                checkpoints: vec![0],
                ..Progress::default()
            },
            serial: 0,
            sparse: Vec::new(),
            compacted: false,
            reached: Reached::default(),
        };
        whole.note();
        whole
    }

    /// What must be there now.
    pub(crate) fn model(&self) -> &View {
        self.views.last().unwrap()
    }

    /// From now on pictures come with what is known now.
    fn note(&mut self) {
        self.disk.set_mark(self.progress.len() as u64);
        self.progress.push(self.now.clone());
    }

    /// Asks for some changes at once, and enters their answers in the model; whether the log still stands.
    pub(crate) async fn change(&mut self, changes: &[(Change, Want)]) -> bool {
        let commands = changes.iter().map(|(change, want)| {
            self.serial += 1;
            (change.command(self.serial), *want)
        });
        let commands = commands.collect();
        self.now.issued += changes.len();
        self.note();
        let answers = self.core.propose(commands).await;
        let mut stands = true;
        for ((change, want), answer) in changes.iter().zip(answers) {
            let mut next = self.model().clone();
            match answer {
                Answer::Applied { outcome, .. } => {
                    next.apply(change, Some(&outcome));
                    self.now.flushed = self.views.len();
                    if *want == Want::Synced {
                        self.now.synced = self.views.len();
                    }
                }
                Answer::Unknown => {
                    next.apply(change, None);
                    stands = false;
                }
                Answer::Refused(refused) => panic!("{refused}"),
            }
            self.views.push(next);
        }
        self.note();
        stands
    }

    /// What a checkpoint would save. It covers every change before it.
    pub(crate) async fn snapshot(&mut self) -> Snapshot {
        let snapshot = self.core.visit(|holder, core| holder.snapshot(core)).await;
        self.now.synced = self.now.flushed;
        self.note();
        snapshot.unwrap().unwrap()
    }

    /// Takes a checkpoint, and frees what it leaves dead.
    pub(crate) async fn checkpoint(&mut self) {
        let snapshot = self.snapshot().await;
        let last = self.saved.len() - 1;
        self.now.checkpoints = vec![last, last + 1];
        self.note();
        self.disk.picture();
        self.checkpoint
            .save(&snapshot.state, &snapshot.store, snapshot.synced)
            .await
            .unwrap();
        self.saved.push(self.checkpoint.load().await.unwrap());
        self.now.checkpoints = vec![last + 1];
        self.note();
        self.disk.picture();
        reclaim(&self.core, &self.metrics, &snapshot.dead);
        self.reached.segments_freed += snapshot.dead.segments.len();
        self.reached.files_removed += snapshot.dead.files.len();
        self.sparse = snapshot.dead.sparse;
        self.compacted = false;
    }

    /// A clean stop: everything is on the disk, and in the checkpoint.
    pub(crate) async fn stop(&mut self) {
        CoreThread::start(Arc::clone(&self.core)).unwrap().stop().unwrap();
        let snapshot = self.core.last_snapshot().unwrap();
        assert_eq!(snapshot.synced, self.core.watermarks().appended);
        self.checkpoint
            .save(&snapshot.state, &snapshot.store, snapshot.synced)
            .await
            .unwrap();
        self.saved.push(self.checkpoint.load().await.unwrap());
        self.now.synced = self.now.flushed;
        self.now.checkpoints = vec![self.saved.len() - 1];
    }

    /// A round of compaction, if one may begin.
    pub(crate) async fn compact(&mut self, segments: usize) {
        if !self.compacted {
            let sparse = std::mem::take(&mut self.sparse);
            // A round that appends rewrites nothing.
            let segments = if sparse.is_empty() { segments } else { 0 };
            let moved = compact(&self.core, segments, sparse).await;
            self.compacted = moved.is_some();
            if let Some(moved) = moved {
                self.reached.batches_moved += moved.batches;
                self.reached.files_rewritten += moved.rewritten;
            }
        }
    }

    /// Which of the models, from `least` changes on, this is.
    pub(crate) fn find(&self, view: &View, least: usize, most: usize) -> Result<usize, String> {
        let found = (least..=most).find(|at| self.views[*at] == *view);
        found.ok_or_else(|| {
            let elsewhere = self.views.iter().position(|known| known == view);
            format!("found is what there was after {elsewhere:?} changes, expected {least} to {most}")
        })
    }

    /// The crash, and the next start; the model goes back to what was found.
    pub(crate) async fn crash(&mut self, crash: Crash) {
        self.disk.crash(crash);
        let (core, metrics) = start(&self.disk, self.settings.clone(), self.saved.last().unwrap()).unwrap();
        (self.core, self.metrics) = (core, metrics);
        self.compacted = false;
        self.sparse.clear();
        let found = view(&self.core).await;
        let least = if crash == Crash::KeepAll {
            self.now.flushed
        } else {
            self.now.synced
        };
        let at = self.find(&found, least, self.now.issued).unwrap();
        self.views.truncate(at + 1);
        self.now.issued = at;
        self.now.flushed = at;
        // What a start found it has synced.
        self.now.synced = at;
        self.note();
    }
}
