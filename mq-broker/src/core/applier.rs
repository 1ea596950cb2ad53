//! What happens to an entry once it is flushed: the state machine applies it, the store remembers the
//! locations of its batches, and the visible effects are published: topics at once, ends of queues when the
//! log has reached the durability they ask for.

use std::ops::Range;
use std::sync::Arc;

use mq_common::ids::{Lsn, Offset, Timestamp};

use super::Published;
use super::losses::Losses;
use super::visibility::Visibility;
use super::visible_ranges::VisibleRange;
use crate::ids::QueueKey;
use crate::log::{self, Entry};
use crate::state::command::DecodeError;
use crate::state::effects::TransactionChange;
use crate::state::{Command, Effects, Moment, Outcome, State};
use crate::store::{self, PlacedRow, SegmentId, Store};

/// The core's applier. During replay it publishes nothing: see [`Applier::publish_all`].
#[derive(Debug)]
pub(super) struct Applier {
    pub(super) state: State,
    pub(super) store: Arc<Store>,
    published: Arc<Published>,
    visibility: Visibility,
    /// Ends that may become visible as soon as the turn's write is done.
    ends: Vec<(QueueKey, Offset)>,
    losses: Losses,
    effects: Effects,
    halves: Vec<Range<u32>>,
    released_halves: Vec<Lsn>,
    touched: Vec<QueueKey>,
    broken: Option<Broken>,
}

/// Why replay stopped early.
#[derive(Debug)]
pub(super) enum Broken {
    /// An entry's commands are of a version that this program does not know.
    Command(Lsn, DecodeError),
    /// The entry cannot follow the checkpoint.
    Order(Moment),
}

impl Applier {
    pub(super) fn new(state: State, store: Arc<Store>, published: Arc<Published>, losses: Losses) -> Self {
        Self {
            losses,
            state,
            store,
            published,
            visibility: Visibility::default(),
            ends: Vec::new(),
            effects: Effects::default(),
            halves: Vec::new(),
            released_halves: Vec::new(),
            touched: Vec::new(),
            broken: None,
        }
    }

    /// Why replay stopped before the end of the journal, if it did.
    pub(super) const fn broken(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    /// Publishes the whole state after replay, when all of it is synced.
    pub(super) fn publish_all(&self, now: Timestamp) {
        let names: Vec<_> = self
            .state
            .topics()
            .map(|topic| topic.declaration.name.clone())
            .collect();
        self.published.topics.publish(&self.state, &names);
        for (key, queue) in self.state.queues() {
            let ends = VisibleRange {
                start: queue.start,
                end: queue.end,
            };
            self.published.visible.create(key, ends);
        }
        self.published.load_volatile(&self.state, now);
    }

    /// Publishes the ends that the log's progress allows.
    pub(super) fn publish_ends(&mut self, synced: Lsn) {
        let synced = self.visibility.synced(synced);
        self.published.visible.publish(self.ends.drain(..).chain(synced));
    }

    fn prepare(&mut self, entry: &Entry<'_>) {
        self.halves.clear();
        self.released_halves.clear();
        self.touched.clear();
        let trimmed = self.effects.trimmed.iter();
        self.touched.extend(trimmed.map(|trimmed| trimmed.queue));
        let topics = self
            .effects
            .topics
            .iter()
            .filter_map(|name| self.state.topic(name));
        for topic in topics {
            self.touched.extend(topic.here.iter().map(|(_, key)| *key));
        }
        for change in &self.effects.transactions {
            match change {
                TransactionChange::Opened { half, .. } if half.first.lsn == entry.lsn => {
                    self.halves
                        .push(half.first.index..half.first.index + half.batches);
                }
                TransactionChange::Moved { from, to, .. } => {
                    self.halves.push(to.first.index..to.first.index + to.batches);
                    self.released_halves.push(from.first.lsn);
                }
                TransactionChange::Decided { half, .. } => self.released_halves.push(half.first.lsn),
                _ => {}
            }
        }
    }

    fn publish(&mut self, entry: &Entry<'_>) {
        for queue in &self.effects.queues_created {
            self.published.visible.create(*queue, VisibleRange::default());
        }
        self.published.topics.publish(&self.state, &self.effects.topics);
        for placement in &self.effects.placements {
            let end =
                self.visibility
                    .placed(placement.queue, placement.end(), placement.visible_at, entry.lsn);
            self.ends.extend(end.map(|end| (placement.queue, end)));
        }
        self.published.visible.trim(&self.effects.trimmed);
        self.losses.tell(&self.state, &self.effects);
        for queue in &self.effects.queues_dropped {
            self.visibility.remove(*queue);
            self.published.visible.remove(*queue);
        }
        self.published.feed_volatile(&self.state, &self.effects);
    }
}

impl log::Applier for Applier {
    type Result = Outcome;

    fn apply(&mut self, entry: &Entry<'_>, results: &mut Vec<Outcome>) {
        if self.broken.is_some() {
            return;
        }
        let commands: Result<Vec<Command>, DecodeError> = entry
            .commands()
            .map(|command| Command::decode(command.meta))
            .collect();
        let commands = match commands {
            Ok(commands) => commands,
            Err(error) => {
                // Only replay can meet one: this process encoded its own commands itself. The start is
                // refused then.
                self.broken = Some(Broken::Command(entry.lsn, error));
                return;
            }
        };
        let at = Moment {
            lsn: entry.lsn,
            term: entry.term,
            time: entry.time,
        };
        if !self.state.precedes(&at) || !self.store.takes(entry.segment) {
            // Only at a start with a checkpoint of another journal: entries made by the log always follow the
            // state.
            self.broken = Some(Broken::Order(at));
            return;
        }
        self.effects.clear();
        results.extend(self.state.apply(at, commands, &mut self.effects));
        self.prepare(entry);
        let effects = store::Update {
            placements: &self.effects.placements,
            halves: &self.halves,
            released_halves: &self.released_halves,
            deleted: &self.effects.queues_dropped,
            touched: &self.touched,
        };
        self.store.apply(entry, &effects);
        if !entry.replayed {
            self.publish(entry);
        }
    }

    fn rows(&self, segment: SegmentId) -> usize {
        self.store.unsealed_rows(segment)
    }

    fn seal(&mut self, segment: SegmentId) -> Vec<PlacedRow> {
        self.store.seal(segment)
    }

    fn is_broken(&self) -> bool {
        self.broken.is_some()
    }
}
