//! What a round deletes, compared with a walk over all queues.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use mq_common::api::TopicSettings;
use mq_common::api::admin::{QueueHome, Topic};
use mq_common::api::group::GroupMode;
use mq_common::batch::{Builder, BuilderOptions, Record};
use mq_common::ids::{Durability, GroupName, Lsn, QueueNumber, Term, Timestamp, TopicId, TopicName};
use proptest::prelude::*;

use super::look::{Decided, Stored};
use super::watch::Seen;
use super::*;
use crate::background::upkeep::tests::start;
use crate::checkpoint::Saved;
use crate::core::VisibleRange;
use crate::state::command::{Ack, CreateGroup, Part};
use crate::state::tests::shard;
use crate::state::{Declaration, Effects, Limits, Moment, Outcome, State};
use crate::store::disk::TestDisk;
use crate::store::{Extent, ReadError};

const DAY: u64 = 24 * 60 * 60 * 1000;
const QUEUES: u32 = 4;

/// The content of the queues, as a store would report it.
#[derive(Default)]
struct Batches {
    queues: BTreeMap<QueueKey, Vec<Extent>>,
    looks: Cell<usize>,
}

impl Stored for Batches {
    fn extent(&self, queue: QueueKey, offset: Offset, end: Offset) -> Result<Option<Extent>, ReadError> {
        self.looks.set(self.looks.get() + 1);
        let all = self.queues.get(&queue).map_or(&[][..], Vec::as_slice);
        let found = all
            .iter()
            .find(|extent| extent.from <= offset && offset < extent.end);
        Ok(found.copied().filter(|extent| extent.from < end))
    }

    fn bytes_behind(
        &self,
        queue: QueueKey,
        (start, end): (Offset, Offset),
        bytes: u64,
    ) -> Result<Offset, ReadError> {
        self.looks.set(self.looks.get() + 1);
        let (mut from, mut left) = (end, bytes);
        let all = self.queues.get(&queue).map_or(&[][..], Vec::as_slice);
        for extent in all.iter().rev().filter(|extent| extent.from < end) {
            if left == 0 {
                break;
            }
            from = extent.from;
            left = left.saturating_sub(u64::from(extent.bytes));
        }
        Ok(from.max(start))
    }
}

/// A broker's queues, and what retention knows about them.
struct Rig {
    state: State,
    now: Timestamp,
    stored: Batches,
    /// The visible end of each queue.
    shown: BTreeMap<QueueKey, Offset>,
    watch: Watch,
    walk: HashMap<QueueKey, Seen>,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self {
            state: State::new(shard(), Limits::default()),
            now: Timestamp(100 * DAY),
            stored: Batches::default(),
            shown: BTreeMap::new(),
            watch: Watch::default(),
            walk: HashMap::new(),
        };
        rig.apply(Command::CreateTopic(declaration(TopicSettings::default(), 0)));
        rig
    }

    fn apply(&mut self, command: Command) -> Outcome {
        let at = Moment {
            lsn: Lsn(self.state.at().lsn.0 + 1),
            term: Term(1),
            time: self.now,
        };
        let mut outcomes = self.state.apply(at, [command], &mut Effects::default());
        outcomes.remove(0)
    }

    fn append(&mut self, queue: QueueKey, records: u32, bytes: u32, is_whole: bool) {
        let part = Part {
            queue,
            records,
            bytes,
        };
        let Outcome::Appended { base_offset } = self.apply(Command::Append(part)) else {
            panic!("refused");
        };
        self.stored.queues.entry(queue).or_default().push(Extent {
            from: base_offset,
            end: Offset(base_offset.0 + u64::from(records)),
            time: is_whole.then_some(self.now),
            bytes: if is_whole { bytes } else { 0 },
        });
    }

    fn show_all(&mut self) {
        self.shown = self.state.queues().map(|(key, queue)| (key, queue.end)).collect();
    }

    fn settings(&mut self, settings: TopicSettings) {
        let version = self.state.topic(&name()).unwrap().declaration.version;
        self.apply(Command::AlterTopic(declaration(settings, version)));
    }

    fn visit(&self, keys: impl IntoIterator<Item = QueueKey>) -> (Ages, Visited) {
        let ages = Ages {
            now: self.state.at().time.max(self.now),
            pauses: self.state.pauses().clone(),
        };
        let ends = |key| {
            let start = self.state.queue(key)?.start;
            let end = self.shown.get(&key).copied().unwrap_or_default();
            Some(VisibleRange {
                start,
                end: end.max(start),
            })
        };
        (ages, visit(&self.state, keys, ends))
    }

    /// What a round over the queues that are due decides.
    fn round(&mut self) -> BTreeSet<(QueueKey, Offset)> {
        let now = self.state.at().time.max(self.now);
        let mut keys = self.watch.take_due(now, &self.state.pauses().clone());
        keys.extend(self.state.take_touched(usize::MAX));
        keys.sort_unstable();
        keys.dedup();
        let (ages, visited) = self.visit(keys);
        self.watch.again(visited.hidden);
        for key in visited.others {
            self.watch.take(key);
        }
        let known = visited.candidates.into_iter();
        let known = known.map(|candidate| (candidate, self.watch.take(candidate.key)));
        let Decided { starts, seen, failed } = decide_all(&self.stored, &ages, known.collect());
        assert!(failed.is_empty());
        for (key, seen) in seen {
            self.watch.put(key, seen);
        }
        starts.into_iter().collect()
    }

    /// What a walk over all queues decides.
    fn walk(&mut self) -> BTreeSet<(QueueKey, Offset)> {
        let (ages, visited) = self.visit(self.state.queues().map(|(key, _)| key));
        let seen = |key| self.walk.get(&key).copied().unwrap_or_default();
        let known = visited.candidates.into_iter();
        let known = known.map(|candidate| (candidate, seen(candidate.key)));
        let decided = decide_all(&self.stored, &ages, known.collect());
        self.walk = decided.seen.into_iter().collect();
        decided.starts.into_iter().collect()
    }

    fn trim(&mut self, starts: BTreeSet<(QueueKey, Offset)>) {
        let starts = starts.into_iter().collect();
        self.apply(Command::Trim { starts });
    }
}

fn name() -> TopicName {
    TopicName::new("orders").unwrap()
}

fn declaration(settings: TopicSettings, version: u64) -> Declaration {
    let queues = (0..QUEUES).map(|queue| QueueHome {
        queue: QueueNumber(queue),
        shard: shard(),
    });
    let declared = Declaration::new(&Topic {
        name: name(),
        id: TopicId(7),
        version: 0,
        durability: Durability::Fsynced,
        queues: queues.collect(),
        deleted: false,
        settings,
    });
    Declaration {
        version,
        ..declared.unwrap()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(u32, u32, u32, bool),
    Show,
    Pass(u64),
    /// This many days pass, with an entry only at the end of every second one.
    Sleep(u64),
    Settings(TopicSettings),
    Group(u8),
    /// A group has read this part of a queue, percent.
    Ack(u8, u32, u64),
    /// The task is begun again after a panic.
    Panic,
    Round,
}

fn step() -> impl Strategy<Value = Step> {
    let settings = (
        proptest::option::of(1..4 * DAY),
        proptest::option::of(100..2000_u64),
        any::<bool>(),
        proptest::option::of(DAY..9 * DAY),
    );
    let settings = settings.prop_map(
        |(retention_ms, retention_bytes, consumed, hold_ms)| TopicSettings {
            retention_ms,
            retention_bytes,
            consumed,
            hold_ms: hold_ms.filter(|hold| retention_ms.is_none_or(|age| age <= *hold)),
            ..TopicSettings::default()
        },
    );
    prop_oneof![
        6 => (0..QUEUES, 1..4_u32, 10..300_u32, prop::bool::weighted(0.8))
            .prop_map(|(queue, records, bytes, whole)| Step::Append(queue, records, bytes, whole)),
        3 => Just(Step::Show),
        4 => (1..DAY).prop_map(Step::Pass),
        1 => (2..80_u64).prop_map(Step::Sleep),
        2 => settings.prop_map(Step::Settings),
        1 => (0..3_u8).prop_map(Step::Group),
        3 => (0..3_u8, 0..QUEUES, 0..=100_u64).prop_map(|(group, queue, part)| Step::Ack(group, queue, part)),
        1 => Just(Step::Panic),
        6 => Just(Step::Round),
    ]
}

fn group(rig: &mut Rig, number: u8) -> Outcome {
    rig.apply(Command::CreateGroup(CreateGroup {
        name: GroupName::new(format!("g{number}")).unwrap(),
        topic: name(),
        mode: GroupMode::Stream,
        cursors: Vec::new(),
    }))
}

fn play(rig: &mut Rig, step: Step) {
    match step {
        Step::Append(queue, records, bytes, whole) => rig.append(QueueKey(queue), records, bytes, whole),
        Step::Show => rig.show_all(),
        Step::Pass(ms) => rig.now.0 += ms,
        Step::Sleep(days) => {
            for _ in 0..days / 2 {
                rig.now.0 += 2 * DAY;
                rig.trim(BTreeSet::new());
            }
        }
        Step::Settings(settings) => rig.settings(settings),
        Step::Group(number) => drop(group(rig, number)),
        Step::Ack(number, queue, part) => {
            let Outcome::Group(group) = group(rig, number) else {
                panic!("refused");
            };
            let queue = QueueKey(queue);
            let shown = rig.shown.get(&queue).copied().unwrap_or_default();
            let next = Offset(shown.0 * part / 100);
            let acks = vec![Ack { group, queue, next }];
            rig.apply(Command::Progress { acks });
        }
        Step::Panic => {
            rig.watch = Watch::default();
            rig.walk.clear();
            rig.state.touch_filled();
        }
        Step::Round => {}
    }
}

proptest! {
    #[test]
    fn a_round_lets_go_what_a_walk_over_all_queues_would(steps in prop::collection::vec(step(), 1..80)) {
        let mut rig = Rig::new();
        for (at, step) in steps.into_iter().enumerate() {
            let is_round = matches!(step, Step::Round);
            play(&mut rig, step);
            if is_round {
                let walked = rig.walk();
                let decided = rig.round();
                prop_assert_eq!(&decided, &walked, "step {}", at);
                rig.trim(decided);
            }
        }
    }
}

#[test]
fn queues_at_rest_are_not_looked_at_until_their_oldest_batch_is_too_old() {
    let mut rig = Rig::new();
    rig.settings(TopicSettings {
        retention_ms: Some(1000),
        ..TopicSettings::default()
    });
    for queue in 0..QUEUES {
        rig.append(QueueKey(queue), 1, 100, true);
        rig.now.0 += 100;
    }
    rig.show_all();
    assert!(rig.round().is_empty());
    for _ in 0..6 {
        rig.now.0 += 100;
        let looks = rig.stored.looks.get();
        assert!(rig.round().is_empty());
        assert_eq!(rig.stored.looks.get(), looks);
        assert_eq!(rig.state.touched(), 0);
    }
    rig.now.0 += 1;
    let first = BTreeSet::from([(QueueKey(0), Offset(1))]);
    assert_eq!(rig.round(), first);
}

#[test]
fn a_queue_of_a_deleted_topic_is_forgotten() {
    let mut rig = Rig::new();
    rig.settings(TopicSettings::of_new_topic());
    rig.append(QueueKey(0), 1, 100, true);
    rig.show_all();
    rig.round();
    let kept = rig.watch.take(QueueKey(0));
    assert!(kept.oldest.is_some());
    rig.watch.put(QueueKey(0), kept);
    rig.apply(Command::DeleteTopic {
        name: name(),
        drop_transactions: false,
    });
    rig.round();
    assert_eq!(rig.watch.take(QueueKey(0)), Seen::default());
}

#[tokio::test]
async fn retention_begun_again_lets_go_what_a_queue_at_rest_has() {
    let (core, _metrics) = start(&TestDisk::default(), Saved::default()).unwrap();
    let settings = TopicSettings {
        retention_ms: Some(100),
        ..TopicSettings::default()
    };
    let mut builder = Builder::new(BuilderOptions::default());
    builder.push(&Record::new(b"value", Timestamp(5))).unwrap();
    let batch = builder.finish().unwrap();
    let part = Part {
        queue: QueueKey(0),
        records: 1,
        bytes: u32::try_from(batch.len()).unwrap(),
    };
    let create = Command::CreateTopic(declaration(settings, 0));
    for (command, batches) in [(create, vec![]), (Command::Append(part), vec![batch])] {
        let answer = core
            .propose_one(log::Command::new(command.encode(), batches), Want::Synced)
            .await;
        assert!(matches!(answer, Answer::Applied { .. }), "{answer:?}");
    }
    let settings = config::Retention { check_ms: 1 };
    Retention::new(&settings, &core).round().await.unwrap();
    let mut again = Retention::new(&settings, &core);
    let deadline = Instant::now() + Duration::from_secs(30);
    while core.published().visible.range(QueueKey(0)).unwrap().start == Offset(0) {
        assert!(Instant::now() < deadline, "the message stays");
        again.round().await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
