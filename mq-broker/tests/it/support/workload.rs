//! Random work for a whole core: what comes next is chosen by what there is.

use fastrand::Rng;
use mq_broker::log::Want;
use mq_common::batch::{Batch, Builder, BuilderOptions, Record};
use mq_common::ids::Timestamp;

use super::model::{Change, View};

/// How often something is done, against the others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights {
    pub(crate) append: u32,
    pub(crate) half: u32,
    pub(crate) end: u32,
    pub(crate) create: u32,
    pub(crate) delete: u32,
    pub(crate) group: u32,
    pub(crate) ack: u32,
    pub(crate) checkpoint: u32,
    pub(crate) compact: u32,
    pub(crate) trim: u32,
}

/// Everything about equally.
pub(crate) const MIXED: Weights = Weights {
    append: 10,
    half: 4,
    end: 4,
    create: 1,
    delete: 1,
    group: 1,
    ack: 3,
    checkpoint: 3,
    compact: 2,
    trim: 2,
};

/// What is done next.
#[derive(Debug)]
pub(crate) enum Step {
    /// At once.
    Changes(Vec<(Change, Want)>),
    Checkpoint,
    /// Moves so many segments at most into queue files, and rewrites sparse ones.
    Compact(usize),
}

/// A batch of one to three records that nobody sent before.
fn batch(random: &mut Rng) -> Batch {
    let mut builder = Builder::new(BuilderOptions::default());
    for _ in 0..random.usize(1..4) {
        let bytes: Vec<u8> = (0..random.usize(8..400)).map(|_| random.u8(..)).collect();
        builder.push(&Record::new(&bytes, Timestamp(1000))).unwrap();
    }
    builder.finish().unwrap()
}

fn pick<T: Copy>(all: impl IntoIterator<Item = T>, random: &mut Rng) -> Option<T> {
    let all: Vec<T> = all.into_iter().collect();
    (!all.is_empty()).then(|| all[random.usize(..all.len())])
}

impl Step {
    pub(crate) fn next(view: &View, weights: &Weights, random: &mut Rng) -> Self {
        let Weights {
            append,
            half,
            end,
            create,
            delete,
            group,
            ack,
            checkpoint,
            compact,
            trim,
        } = *weights;
        let all = [
            append, half, end, create, delete, group, ack, checkpoint, compact, trim,
        ];
        let mut at = random.u32(..all.iter().sum::<u32>());
        let kind = all.iter().position(|weight| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        if view.topics.is_empty() {
            return Self::create(view, random);
        }
        match kind.unwrap() {
            0 => Self::appends(view, None, random),
            1 => {
                let parts = (0..random.usize(1..4)).map(|_| {
                    let queue = pick(view.queues.keys().copied(), random).unwrap();
                    (queue, batch(random))
                });
                let half = Change::Half {
                    parts: parts.collect(),
                };
                Self::appends(view, Some((half, Want::Synced)), random)
            }
            2 => {
                let end = pick(view.open.keys().copied(), random).map(|number| {
                    let commit = random.u8(..4) > 0;
                    (Change::End { number, commit }, Want::Synced)
                });
                Self::appends(view, end, random)
            }
            3 if random.bool() => {
                let (name, keys) = pick(view.topics.iter(), random).unwrap();
                let (known, queues) = (view.declared[name], keys.len() as u64 + 1);
                let name = name.clone();
                let queues = u32::try_from(queues).unwrap();
                let alter = Change::AlterTopic { name, known, queues };
                Self::Changes(vec![(alter, Want::Synced)])
            }
            3 => Self::create(view, random),
            4 if view.topics.len() > 1 => {
                let name = pick(view.topics.keys(), random).unwrap().clone();
                Self::Changes(vec![(Change::DeleteTopic { name }, Want::Synced)])
            }
            5 if view.next_group < 8 => {
                let topic = pick(view.topics.keys(), random).unwrap().clone();
                Self::Changes(vec![(Change::CreateGroup { topic }, Want::Synced)])
            }
            6 => {
                let ack = pick(view.cursors.iter(), random).map(|((group, queue), next)| {
                    let (group, queue) = (*group, *queue);
                    let next = random.u64(*next..=view.queues[&queue].end);
                    (Change::Ack { group, queue, next }, Want::Flushed)
                });
                Self::appends(view, ack, random)
            }
            7 => Self::Checkpoint,
            8 => Self::Compact(random.usize(1..4)),
            9 => {
                let trim = pick(view.queues.iter(), random).map(|(queue, known)| {
                    let (queue, start) = (*queue, random.u64(known.start..=known.end));
                    (Change::Trim { queue, start }, Want::Flushed)
                });
                Self::appends(view, trim, random)
            }
            _ => Self::appends(view, None, random),
        }
    }

    fn create(view: &View, random: &mut Rng) -> Self {
        let free = ["t", "u", "v"]
            .into_iter()
            .find(|name| !view.topics.contains_key(*name));
        let Some(name) = free else {
            return Self::appends(view, None, random);
        };
        let name = name.to_owned();
        let queues = random.u32(1..4);
        Self::Changes(vec![(Change::CreateTopic { name, queues }, Want::Synced)])
    }

    /// A few appends, or none beside something else.
    fn appends(view: &View, other: Option<(Change, Want)>, random: &mut Rng) -> Self {
        let least = usize::from(other.is_none());
        let mut changes: Vec<_> = (0..random.usize(least..3))
            .map(|_| {
                let queue = pick(view.queues.keys().copied(), random).unwrap();
                let batch = batch(random);
                let want = [Want::Flushed, Want::Synced][random.usize(..2)];
                (Change::Append { queue, batch }, want)
            })
            .collect();
        let at = random.usize(..=changes.len());
        if let Some(change) = other {
            changes.insert(at, change);
        }
        Self::Changes(changes)
    }
}
