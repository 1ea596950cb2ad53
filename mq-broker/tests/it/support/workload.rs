//! Random work for a whole core: what comes next is chosen by what there is.

use fastrand::Rng;
use mq_broker::log::Want;
use mq_broker::store::disk::Crash;
use mq_common::batch::{Batch, Builder, BuilderOptions, Record};
use mq_common::ids::Timestamp;
use proptest::prelude::*;

use super::baton::Go;
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
    /// Percentage of topics with key compaction.
    pub(crate) compacting_percent: u32,
    pub(crate) trim: u32,
    pub(crate) seal: u32,
    pub(crate) backup: u32,
    pub(crate) fetch: u32,
    pub(crate) look: u32,
    /// Pieces have as many stops at most as a random power of two from here to there.
    pub(crate) stops: (u32, u32),
    /// One in this many pieces of work is made to fail; 0 = none.
    pub(crate) harm_one_in: u32,
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
    checkpoint: 9,
    compact: 8,
    compacting_percent: 50,
    trim: 2,
    seal: 1,
    backup: 1,
    fetch: 4,
    look: 1,
    stops: (0, 6),
    harm_one_in: 0,
};

/// Any way to crash.
pub(crate) fn any_crash() -> impl Strategy<Value = Crash> {
    prop_oneof![
        Just(Crash::LoseUnsynced),
        Just(Crash::KeepAll),
        any::<u64>().prop_map(Crash::Random),
    ]
}

/// How far a piece of background work advances.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    /// This many stops.
    pub(crate) stops: usize,
    /// How from the last one.
    pub(crate) last: Go,
}

impl Piece {
    /// To its end.
    pub(crate) const WHOLE: Self = Self {
        stops: usize::MAX,
        last: Go::On,
    };

    fn random(weights: &Weights, random: &mut Rng) -> Self {
        let most = 1 << random.u32(weights.stops.0..=weights.stops.1);
        let stops = random.usize(1..=most);
        let is_harmed = weights.harm_one_in > 0 && random.u32(..weights.harm_one_in) == 0;
        let last = match random.u32(..4) {
            0 if is_harmed => Go::Fail(libc::ENOSPC),
            1 if is_harmed => Go::Fail(libc::EIO),
            2.. if is_harmed => Go::Short,
            _ => Go::On,
        };
        Self { stops, last }
    }

    /// The same with nothing that fails.
    pub(crate) const fn unharmed(self) -> Self {
        Self {
            stops: self.stops,
            last: Go::On,
        }
    }
}

/// What is done next.
#[derive(Debug)]
pub(crate) enum Step {
    /// At once.
    Changes(Vec<(Change, Want)>),
    /// Takes one; or saves it, or frees what it left dead. One that fails is not saved.
    Checkpoint(Piece),
    /// Begins to compact queues by their keys, if that is worth it; else to move so many segments at most
    /// into queue files, or to rewrite sparse ones; or goes on with what was begun.
    Compact {
        by_keys: bool,
        segments: usize,
        piece: Piece,
    },
    /// Seals the segment of the journal that is being written.
    Seal,
    /// Begins one; or restores the one that there is.
    Backup,
    /// Begins one; or goes on with it.
    Fetch {
        queue: u32,
        from: u64,
        bytes_max: usize,
        piece: Piece,
    },
    /// Reads everything.
    Look,
}

/// A batch of one to three records, of which no two have the same payload: most with one of a few keys, some
/// of these without a payload.
fn batch(random: &mut Rng) -> Batch {
    let keys: [[u8; 1]; 9] = std::array::from_fn(|key| [b'a' + u8::try_from(key).unwrap()]);
    let records = (0..random.usize(1..4)).map(|_| {
        let key = (random.u8(..10) > 0).then(|| &keys[random.usize(..keys.len())][..]);
        let bytes = match key {
            Some(_) if random.u8(..6) == 0 => 0,
            _ => random.usize(8..400),
        };
        let payload: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
        (key, payload)
    });
    keyed(&records.collect::<Vec<_>>())
}

/// A batch of these keys and payloads.
pub(crate) fn keyed<P: AsRef<[u8]>>(records: &[(Option<&[u8]>, P)]) -> Batch {
    let mut builder = Builder::new(BuilderOptions::default());
    for (key, payload) in records {
        let record = Record::new(payload.as_ref(), Timestamp(1000));
        builder.push(&Record { key: *key, ..record }).unwrap();
    }
    builder.finish().unwrap()
}

fn pick<T: Copy>(all: impl IntoIterator<Item = T>, random: &mut Rng) -> Option<T> {
    let all: Vec<T> = all.into_iter().collect();
    (!all.is_empty()).then(|| all[random.usize(..all.len())])
}

impl Weights {
    /// What comes next, as the place of its weight.
    fn choose(&self, random: &mut Rng) -> usize {
        let all = [
            self.append,
            self.half,
            self.end,
            self.create,
            self.delete,
            self.group,
            self.ack,
            self.checkpoint,
            self.compact,
            self.trim,
            self.seal,
            self.backup,
            self.fetch,
            self.look,
        ];
        let mut at = random.u32(..all.iter().sum::<u32>());
        let chosen = all.iter().position(|weight| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        chosen.unwrap()
    }
}

impl Step {
    pub(crate) fn next(view: &View, weights: &Weights, random: &mut Rng) -> Self {
        let kind = weights.choose(random);
        if view.topics.is_empty() {
            return Self::create(view, weights, random);
        }
        match kind {
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
                let compacts = view.compacting.contains(&keys[0]);
                let alter = Change::AlterTopic {
                    name,
                    known,
                    queues,
                    compacts,
                };
                Self::Changes(vec![(alter, Want::Synced)])
            }
            3 => Self::create(view, weights, random),
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
            9 => {
                let trim = pick(view.queues.iter(), random).map(|(queue, known)| {
                    let (queue, start) = (*queue, random.u64(known.start..=known.end));
                    (Change::Trim { queue, start }, Want::Flushed)
                });
                Self::appends(view, trim, random)
            }
            7 | 8 | 10.. => Self::beside(kind, view, weights, random),
            _ => Self::appends(view, None, random),
        }
    }

    /// A step of background work.
    fn beside(kind: usize, view: &View, weights: &Weights, random: &mut Rng) -> Self {
        let piece = Piece::random(weights, random);
        match kind {
            7 => Self::Checkpoint(piece),
            8 => Self::Compact {
                by_keys: random.bool(),
                segments: random.usize(1..4),
                piece,
            },
            10 => Self::Seal,
            11 => Self::Backup,
            12 => {
                let filled = view.queues.iter().filter(|(_, known)| known.start < known.end);
                match pick(filled, random) {
                    Some((queue, known)) => Self::Fetch {
                        queue: *queue,
                        from: random.u64(known.start..known.end),
                        bytes_max: random.usize(1..3000),
                        piece,
                    },
                    None => Self::Look,
                }
            }
            _ => Self::Look,
        }
    }

    fn create(view: &View, weights: &Weights, random: &mut Rng) -> Self {
        let free = ["t", "u", "v"]
            .into_iter()
            .find(|name| !view.topics.contains_key(*name));
        let Some(name) = free else {
            return Self::appends(view, None, random);
        };
        let name = name.to_owned();
        let create = Change::CreateTopic {
            name,
            queues: random.u32(1..4),
            compacts: random.u32(..100) < weights.compacting_percent,
        };
        Self::Changes(vec![(create, Want::Synced)])
    }

    /// A few appends, or none next to another change.
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
