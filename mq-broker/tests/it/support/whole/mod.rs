//! A whole core (log, state, store) over a disk in memory, with a real checkpoint beside it, and a plain
//! model of what it must hold. One client, one change after the other, so that what a crash leaves is the
//! model after some of them.
//!
//! What goes on beside the changes (rounds of compaction, checkpoints, what they free, backups, fetches) goes
//! on in pieces: see `beside`.

mod backup;
mod beside;
mod fetching;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use mq_broker::checkpoint::{Checkpoint, Saved};
use mq_broker::core::{Answer, Core, FromEntries, Parts, Published, StartError};
use mq_broker::ids::{BatchAt, QueueKey};
use mq_broker::log::{self, Want};
use mq_broker::state::{Limits, State};
use mq_broker::store::disk::{Crash, TestDisk};
use mq_broker::store::{self, Folder, Found, HoleKind, Moved, Store};
use mq_broker::telemetry::Metrics;
use mq_broker::volatile;
use mq_common::ids::Offset;
use tempfile::TempDir;

use self::beside::Beside;
use super::baton::Stopping;
use super::journal::DATA;
use super::model::{Change, Queue, View, shard};
use super::stepped::Stepped;
use super::workload::Step;

/// How far the client and the checkpoint were at some moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// Changes handed over; at most this many may be found.
    pub(crate) issued: usize,
    /// Changes answered; at least this many must be found after the death of the process.
    pub(crate) flushed: usize,
    /// Changes answered as being on the disk; at least this many must be found after a power cut.
    pub(crate) synced: usize,
    /// Which of [`Whole::saved`] the database may hold.
    pub(crate) checkpoints: Vec<usize>,
}

/// How a broker is set up.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) log: log::Settings,
    /// Whether its file system can be synced as a whole.
    pub(crate) syncs_whole: bool,
}

/// See the module.
pub(crate) struct Whole {
    pub(crate) disk: TestDisk,
    pub(crate) shape: Shape,
    pub(crate) core: Arc<Core>,
    metrics: Metrics,
    checkpoint: Checkpoint,
    /// Of the checkpoint.
    folder: TempDir,
    /// Every checkpoint there was, from the empty one on.
    pub(crate) saved: Vec<Saved>,
    /// The model after each change, from the empty one on.
    pub(crate) views: Vec<View>,
    /// What goes with the marks of the disk's pictures.
    pub(crate) progress: Vec<Progress>,
    now: Progress,
    serial: u64,
    beside: Beside,
    /// What the work came to.
    pub(crate) reached: Reached,
}

/// What there was besides appends: a work that comes to none of it tests nothing of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reached {
    pub(crate) segments_freed: usize,
    pub(crate) batches_moved: u64,
    pub(crate) files_rewritten: usize,
    /// Messages that went for later ones of their keys.
    pub(crate) let_go: u64,
    pub(crate) files_removed: usize,
    /// Rounds that something else fell into.
    pub(crate) rounds_cut: usize,
    /// Rounds in which something failed.
    pub(crate) rounds_failed: usize,
    pub(crate) saves_failed: usize,
    /// Fetches that something else fell into.
    pub(crate) fetches_cut: usize,
    pub(crate) restored: usize,
}

impl std::ops::AddAssign for Reached {
    fn add_assign(&mut self, more: Self) {
        self.segments_freed += more.segments_freed;
        self.batches_moved += more.batches_moved;
        self.files_rewritten += more.files_rewritten;
        self.let_go += more.let_go;
        self.files_removed += more.files_removed;
        self.rounds_cut += more.rounds_cut;
        self.rounds_failed += more.rounds_failed;
        self.saves_failed += more.saves_failed;
        self.fetches_cut += more.fetches_cut;
        self.restored += more.restored;
    }
}

/// Moves the oldest of the journal into queue files, at once; `None` = there was nothing to do.
pub(crate) async fn compact(core: &Arc<Core>, segments: usize) -> Option<Moved> {
    let planned = core.visit(move |holder, core| holder.plan_round(core, segments, &[]));
    let plan = planned.await.unwrap()?;
    Some(core.published().store.compact(&plan, &mut Stopping).unwrap())
}

/// Compacts the queues by their keys for which it is worth it, at once; `None` = there was nothing to do. All
/// queue files have to be in the checkpoint.
pub(crate) async fn pass(core: &Arc<Core>, compacting: &BTreeSet<u32>) -> Option<Moved> {
    let compacting = compacting.clone();
    let planned = core.visit(move |holder, core| {
        let (store, now) = (&core.published().store, holder.state().at().time);
        let dirty = store.compaction_candidates(now, |queue| compacting.contains(&queue.0));
        let dirty: Vec<QueueKey> = dirty.iter().map(|dirty| dirty.queue).collect();
        holder.plan_passes(&dirty)
    });
    let plan = planned.await.unwrap()?;
    Some(core.published().store.compact(&plan, &mut Stopping).unwrap())
}

impl Shape {
    /// Small segments, and spares or none.
    pub(crate) fn new(spares: usize, syncs_whole: bool) -> Self {
        let log = log::Settings {
            segment_bytes: 4096,
            segments_ahead: 0,
            spares_max: spares,
            zeros_ahead_bytes: if spares == 0 { 0 } else { 2048 },
            chain_start: 7,
            ..log::Settings::default()
        };
        Self { log, syncs_whole }
    }
}

/// A core on this disk with this checkpoint.
pub(crate) fn start(
    disk: &TestDisk,
    shape: &Shape,
    saved: &Saved,
) -> Result<(Arc<Core>, Metrics), StartError> {
    let disk = Stepped::new(disk.clone(), shape.syncs_whole);
    let folder = Folder::open(Arc::new(disk), Path::new(DATA)).expect("the folder is free");
    let state = State::load(shard(), Limits::default(), saved.rows.clone())
        .expect("rows of a checkpoint")
        .numbered_from(saved.transactions_from);
    let sizes = store::Settings {
        tail_bytes: 4096,
        queue_segment_bytes: 700,
        queue_segment_bytes_max: 3000,
        rewrite_valid_percent: 90,
        keys: store::KeySettings {
            dirty_percent: 1,
            tombstone_ms: 0,
            // Fewer keys than there are, so that passes end in the midst of files.
            map_bytes: 200,
        },
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
        settings: shape.log.clone(),
        inbox_bytes_max: 1 << 26,
        metrics: metrics.clone(),
    })?;
    Ok((core, metrics))
}

/// What a start found, all of which it has synced, and shows.
pub(crate) async fn served(core: &Arc<Core>) -> View {
    let view = view(core).await;
    for (key, queue) in &view.queues {
        let visible = core.published().visible.range(QueueKey(*key)).unwrap();
        let all = (Offset(queue.start), Offset(queue.end));
        assert_eq!((visible.start, visible.end), all, "all is visible");
    }
    view
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
        view.declared
            .insert(name.clone(), (declared.id.0, declared.version));
        let queues = rows.queues.iter().filter(|row| row.topic.as_str() == name);
        let keys = queues.filter(|_| declared.settings.compact).map(|row| row.key.0);
        view.compacting.extend(keys);
    }
    for row in &rows.queues {
        view.topics.get_mut(row.topic.as_str()).unwrap().push(row.key.0);
        let visible = core.published().visible.range(row.key).unwrap();
        // What is not synced yet is not shown.
        assert!(
            visible.start == row.start && visible.end <= row.end,
            "{visible:?}"
        );
        let queue = Queue {
            start: row.start.0,
            end: row.end.0,
            batches: read(
                store,
                row.key,
                (row.start, row.end),
                view.compacting.contains(&row.key.0),
            ),
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

fn read(store: &Store, queue: QueueKey, (start, end): (Offset, Offset), compacts: bool) -> Vec<(u64, Bytes)> {
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
            let (row, region) = match one {
                Found::Batch { row, region } => (row, region),
                Found::Hole { from, end, .. } if compacts && is_compacted(&one) && from <= next => {
                    assert!(next < end, "no way on: {one:?}");
                    next = end;
                    continue;
                }
                hole @ Found::Hole { .. } => panic!("queue {} at {next}: {hole:?}", queue.0),
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

/// Whether it stands where messages went for later ones of their keys.
fn is_compacted(found: &Found) -> bool {
    matches!(
        found,
        Found::Hole {
            kind: HoleKind::Compacted,
            ..
        }
    )
}

impl Whole {
    /// A new broker.
    pub(crate) async fn new(shape: Shape) -> Self {
        let disk = TestDisk::default();
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoint = Checkpoint::open(&folder.path().join("state.db"), &shard(), false)
            .await
            .unwrap();
        let saved = vec![checkpoint.load().await.unwrap()];
        let (core, metrics) = start(&disk, &shape, &saved[0]).unwrap();
        let mut whole = Self {
            disk,
            shape,
            core,
            metrics,
            checkpoint,
            folder,
            saved,
            views: vec![View::default()],
            progress: Vec::new(),
            now: Progress {
                checkpoints: vec![0],
                ..Progress::default()
            },
            serial: 0,
            beside: Beside::default(),
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
                Answer::Applied { result: outcome, .. } => {
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

    /// One step; whether the process lives on: if not, the crash comes next.
    pub(crate) async fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Changes(changes) => self.change(&changes).await,
            Step::Checkpoint(piece) => self.checkpoint(piece).await,
            Step::Compact {
                by_keys,
                segments,
                piece,
            } => self.compact(by_keys, segments, piece).await,
            Step::Seal => {
                let sealing = self.core.visit(|holder, core| holder.seal_segment(core));
                sealing.await.unwrap().unwrap();
                true
            }
            Step::Backup => self.back_up().await,
            Step::Fetch {
                queue,
                from,
                bytes_max,
                piece,
            } => {
                self.fetch((queue, from), bytes_max, piece);
                true
            }
            Step::Look => {
                self.look().await;
                true
            }
        }
    }

    /// All that there is must be what the model says, read from its start and from each offset.
    pub(crate) async fn look(&self) {
        let model = self.model();
        let found = view(&self.core).await;
        assert!(model.is_shown_by(&found), "{found:?} is not {model:?}");
        let store = &self.core.published().store;
        for (key, queue) in &model.queues {
            for offset in queue.start..queue.end {
                let found = store.fetch(QueueKey(*key), Offset(offset), Offset(queue.end), 1);
                let found = found.unwrap();
                let compacts = model.compacting.contains(key);
                if compacts && found.first().is_some_and(is_compacted) {
                    continue;
                }
                let Some(Found::Batch { row, region }) =
                    found.first().filter(|_| compacts || found.len() == 1)
                else {
                    panic!("{found:?} at {offset} of queue {key}");
                };
                assert!(row.base_offset.0 <= offset && offset < row.end().0);
                assert!(compacts || queue.batches.contains(&(row.base_offset.0, region.clone())));
            }
        }
    }

    /// Which of the models, from `least` changes on, this is.
    pub(crate) fn find(&self, view: &View, least: usize, most: usize) -> Result<usize, String> {
        let found = (least..=most).find(|at| self.views[*at].is_shown_by(view));
        found.ok_or_else(|| {
            let elsewhere = self.views.iter().position(|known| known.is_shown_by(view));
            format!("found is what there was after {elsewhere:?} changes, expected {least} to {most}")
        })
    }

    /// The crash, and the next start; the model goes back to what was found.
    pub(crate) async fn crash(&mut self, crash: Crash) {
        self.beside = Beside::default();
        self.disk.crash(crash);
        self.drop_backup();
        let (core, metrics) = start(&self.disk, &self.shape, self.saved.last().unwrap()).unwrap();
        (self.core, self.metrics) = (core, metrics);
        let found = served(&self.core).await;
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
