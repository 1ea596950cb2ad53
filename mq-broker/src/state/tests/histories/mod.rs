//! Random histories of a shard, checked after every entry against a simple model, and replayed from every
//! checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use proptest::prelude::*;

use super::*;
use crate::state::effects::{GroupChange, Half};
use crate::state::rows::{Changes, Rows};

mod commands;

/// A state, the entries that made it, and what a simple reader of the effects believes.
pub(crate) struct History {
    pub(crate) state: State,
    rng: Rng,
    log: Vec<(Moment, Vec<Command>)>,
    model: Model,
}

#[derive(Default)]
struct Model {
    ends: BTreeMap<QueueKey, u64>,
    placed: BTreeSet<BatchAt>,
    open: BTreeMap<TransactionNumber, Half>,
    decided: BTreeMap<TransactionNumber, (bool, Timestamp)>,
    answers: BTreeMap<TransactionNumber, Vec<(QueueKey, Offset)>>,
    cursors: BTreeMap<(GroupKey, QueueKey), Offset>,
    starts: BTreeMap<QueueKey, u64>,
    lost: BTreeMap<(GroupKey, QueueKey), u64>,
}

pub(crate) fn limits() -> Limits {
    Limits {
        transactions_max: 12,
        decisions_max: 8,
        decision_age_ms_max: 10_000,
        decision_age_ms_min: 1000,
        checks_max: 3,
        undecided_ms_max: 20_000,
    }
}

impl History {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: State::new(shard(), limits()),
            rng: Rng::with_seed(seed),
            log: Vec::new(),
            model: Model::default(),
        }
    }

    /// Applies one more entry.
    pub(crate) fn step(&mut self) {
        let last = self.state.at();
        let pause = match self.rng.u32(0..30) {
            0 => 5000,
            1 => 700,
            2 if self.rng.u32(0..20) == 0 => 3 * 24 * 60 * 60 * 1000,
            _ => self.rng.u64(0..50),
        };
        let at = Moment {
            lsn: Lsn(last.lsn.0 + 1),
            term: Term(last.term.0 + u64::from(self.rng.u32(0..40) == 0)),
            time: Timestamp(last.time.0 + pause),
        };
        let commands: Vec<Command> = (0..self.rng.usize(0..5)).map(|_| self.command()).collect();
        let read_back = commands
            .iter()
            .map(|command| Command::decode(&command.encode()).unwrap());
        let mut effects = Effects::default();
        let outcomes = self.state.apply(at, read_back, &mut effects);
        assert_eq!(outcomes.len(), commands.len());
        self.model.check_effects(&at, &effects);
        self.model.check_outcomes(&commands, &outcomes);
        self.model.check_state(&self.state);
        self.log.push((at, commands));
    }
}

impl Model {
    fn check_effects(&mut self, at: &Moment, effects: &Effects) {
        for queue in &effects.queues_created {
            assert_eq!(self.ends.insert(*queue, 0), None, "a key is given once");
        }
        for placement in &effects.placements {
            let end = self
                .ends
                .get_mut(&placement.queue)
                .expect("only queues that were made get messages");
            assert_eq!(placement.base_offset.0, *end, "offsets are dense");
            *end += u64::from(placement.records);
            let batch = match placement.source {
                Source::Here(index) => BatchAt { lsn: at.lsn, index },
                Source::Half(batch) => batch,
            };
            assert!(batch.lsn <= at.lsn);
            assert!(self.placed.insert(batch), "a batch is placed once");
        }
        self.check_trims(effects);
        for change in &effects.transactions {
            match *change {
                TransactionChange::Opened { number, half } => {
                    assert_eq!(half.first.lsn, at.lsn);
                    assert!(!self.decided.contains_key(&number), "numbers are given once");
                    assert_eq!(self.open.insert(number, half), None);
                }
                TransactionChange::Decided {
                    number,
                    half,
                    committed,
                } => {
                    assert_eq!(
                        self.open.remove(&number),
                        Some(half),
                        "only an open one is decided"
                    );
                    assert_eq!(self.decided.insert(number, (committed, at.time)), None);
                    let visible = batches(half).filter(|batch| self.placed.contains(batch)).count();
                    let all = batches(half).count();
                    assert_eq!(
                        visible,
                        if committed { all } else { 0 },
                        "visible if and only if committed"
                    );
                }
                TransactionChange::Moved { number, from, to } => {
                    assert_eq!((to.first.lsn, to.batches), (at.lsn, from.batches));
                    assert_eq!(self.open.insert(number, to), Some(from), "only an open one moves");
                }
                TransactionChange::Asked { number }
                | TransactionChange::Resumed { number }
                | TransactionChange::Parked { number } => {
                    // It may have been decided later in the same entry.
                    assert!(self.open.contains_key(&number) || self.decided.contains_key(&number));
                }
            }
        }
        for half in self.open.values() {
            assert!(
                batches(*half).all(|batch| !self.placed.contains(&batch)),
                "an open one is invisible"
            );
        }
    }

    /// Starts only rise, up to the end, and what groups lose is what lies between their cursors and the new
    /// starts.
    fn check_trims(&mut self, effects: &Effects) {
        for trimmed in &effects.trimmed {
            let start = self.starts.entry(trimmed.queue).or_default();
            assert_eq!(trimmed.from.0, *start);
            assert!(*start < trimmed.to.0 && trimmed.to.0 <= self.ends[&trimmed.queue]);
            *start = trimmed.to.0;
        }
        for change in &effects.groups {
            if let GroupChange::Lost {
                group,
                queue,
                from,
                to,
            } = change
            {
                assert!(from < to);
                *self.lost.entry((*group, *queue)).or_default() += to.0 - from.0;
            }
        }
    }

    fn check_outcomes(&mut self, commands: &[Command], outcomes: &[Outcome]) {
        for (command, outcome) in commands.iter().zip(outcomes) {
            let Command::EndTransaction { number, .. } = command else {
                continue;
            };
            match outcome {
                Outcome::Ended(ended) if ended.state == TransactionState::Committed => {
                    assert!(self.decided[number].0, "committed is answered only when it is");
                    let first = self
                        .answers
                        .entry(*number)
                        .or_insert_with(|| ended.placed.clone());
                    assert_eq!(*first, ended.placed, "every answer names the same places");
                }
                Outcome::Ended(ended) if ended.state == TransactionState::RolledBack => {
                    assert!(!self.decided[number].0, "rolled back is answered only when it is");
                }
                Outcome::Refused(Refusal::Conflict { number, state }) => {
                    assert_eq!(self.decided[number].0, *state == TransactionState::Committed);
                }
                _ => {}
            }
        }
    }

    fn check_state(&mut self, state: &State) {
        for (key, queue) in state.queues() {
            assert_eq!(queue.end.0, self.ends[&key]);
            assert_eq!(queue.start.0, self.starts.get(&key).copied().unwrap_or(0));
        }
        let open: Vec<TransactionNumber> = state.transactions().map(|open| open.number).collect();
        for (number, half) in &self.open {
            let mut here = state.transactions_in(half.first.lsn);
            assert!(here.any(|open| open.number == *number && open.half() == *half));
        }
        let expected: Vec<TransactionNumber> = self.open.keys().copied().collect();
        assert_eq!(open, expected, "no transaction is lost");
        for (number, (committed, time)) in &self.decided {
            let age = state.at().time.0 - time.0;
            match state.decided(*number) {
                Some(decided) => assert_eq!(decided.committed, *committed),
                None => assert!(age >= limits().decision_age_ms_min, "forgotten after {age} ms"),
            }
        }
        for (key, group) in state.groups() {
            for (queue, next) in &group.cursors {
                let before = self.cursors.insert((key, *queue), *next);
                assert!(before.is_none_or(|before| before <= *next), "a cursor went back");
                let known = state.queue(*queue).expect("cursors of live queues only");
                assert!(
                    (known.start..=known.end).contains(next),
                    "a cursor lies within its queue"
                );
                let lost = self.lost.get(&(key, *queue)).copied().unwrap_or(0);
                assert_eq!(group.lost(*queue), lost, "every loss is counted");
            }
        }
    }
}

fn batches(half: Half) -> impl Iterator<Item = BatchAt> {
    (0..half.batches).map(move |index| BatchAt {
        lsn: half.first.lsn,
        index: half.first.index + index,
    })
}

/// What a database would hold after these rows were saved into it.
fn save(rows: &mut Rows, dirty: Changes) {
    rows.cursors.retain(|row| !dirty.groups_gone.contains(&row.group));
    rows.groups.retain(|row| !dirty.groups_gone.contains(&row.key));
    rows.queues.retain(|row| !dirty.queues_gone.contains(&row.key));
    rows.transactions
        .retain(|row| !dirty.transactions_gone.contains(&row.number));
    rows.decisions
        .retain(|row| !dirty.decisions_gone.contains(&row.number));
    put(&mut rows.topics, dirty.rows.topics, |row| row.name.clone());
    put(&mut rows.queues, dirty.rows.queues, |row| row.key);
    put(&mut rows.groups, dirty.rows.groups, |row| row.key);
    put(&mut rows.cursors, dirty.rows.cursors, |row| {
        (row.group, row.queue)
    });
    put(&mut rows.transactions, dirty.rows.transactions, |row| row.number);
    put(&mut rows.decisions, dirty.rows.decisions, |row| row.order);
    rows.pauses = dirty.rows.pauses;
    rows.counters = dirty.rows.counters;
}

fn put<T, K: Ord>(rows: &mut Vec<T>, new: Vec<T>, key: impl Fn(&T) -> K) {
    for row in new {
        rows.retain(|known| key(known) != key(&row));
        rows.push(row);
    }
    rows.sort_by_key(key);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn replay_from_any_checkpoint_gives_the_same_state(seed in any::<u64>(), steps in 1..250_usize, every in 1..40_usize) {
        let mut history = History::new(seed);
        let mut saved = Rows::default();
        let mut checkpoints = vec![(0, saved.clone())];
        for step in 1..=steps {
            history.step();
            if step % every == 0 {
                save(&mut saved, history.state.take_changes());
                prop_assert_eq!(&saved, &history.state.rows(), "dirty rows are all that changed");
                checkpoints.push((step, saved.clone()));
            }
        }
        for (applied, rows) in checkpoints {
            let mut state = State::load(shard(), limits(), rows).unwrap();
            for (at, commands) in &history.log[applied..] {
                state.apply(*at, commands.iter().cloned(), &mut Effects::default());
            }
            prop_assert_eq!(state.rows(), history.state.rows(), "from the checkpoint after {} entries", applied);
        }
    }

    #[test]
    fn same_entries_give_the_same_outcomes_and_effects(seed in any::<u64>()) {
        let mut history = History::new(seed);
        for _ in 0..80 {
            history.step();
        }
        let run = || {
            let mut state = State::new(shard(), limits());
            let mut effects = Effects::default();
            let outcomes: Vec<Vec<Outcome>> = history
                .log
                .iter()
                .map(|(at, commands)| state.apply(*at, commands.iter().cloned(), &mut effects))
                .collect();
            (outcomes, effects, state.rows())
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn histories_reach_every_outcome() {
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        let mut history = History::new(seed);
        for _ in 0..150 {
            history.step();
        }
        let mut state = State::new(shard(), limits());
        for (at, commands) in &history.log {
            for outcome in state.apply(*at, commands.iter().cloned(), &mut Effects::default()) {
                let text = format!("{outcome:?}");
                let words = text
                    .split(['(', ')', ' ', '{', ','])
                    .filter(|word| !word.is_empty());
                let refused = matches!(outcome, Outcome::Refused(_));
                seen.insert(
                    words
                        .take(if refused { 2 } else { 1 })
                        .collect::<Vec<_>>()
                        .join(" "),
                );
            }
        }
    }
    let expected = [
        "Appended",
        "Done",
        "Ended",
        "Group",
        "Half",
        "Refused Conflict",
        "Refused Invalid",
        "Refused KeyReused",
        "Refused NotAuthority",
        "Refused OpenTransactions",
        "Refused OtherSettings",
        "Refused Outdated",
        "Refused SubscriptionMismatch",
        "Refused TargetGone",
        "Refused TopicExists",
        "Refused TransactionsFull",
        "Refused UnknownQueue",
        "Refused UnknownTopic",
        "Refused UnknownTransaction",
        "Topic",
    ];
    let missing: Vec<_> = expected.iter().filter(|word| !seen.contains(**word)).collect();
    assert!(
        missing.is_empty(),
        "the histories never reached {missing:?}; they reached {seen:?}"
    );
}

#[test]
fn contradicting_rows_are_refused() {
    let mut history = History::new(1);
    let full = |rows: &Rows| {
        !rows.decisions.is_empty()
            && !rows.cursors.is_empty()
            && rows.queues.iter().any(|queue| queue.end > Offset(0))
    };
    while !full(&history.state.rows()) {
        history.step();
    }
    let rows = history.state.rows();
    State::load(shard(), limits(), rows.clone()).unwrap();
    type Break = fn(&mut Rows);
    let breaks: [(&str, Break); 10] = [
        ("a queue twice", |rows| {
            let row = rows.queues[0].clone();
            rows.queues.push(row);
        }),
        ("a queue without its topic", |rows| {
            rows.topics.retain(|topic| topic.deleted);
        }),
        ("a queue that starts behind its end", |rows| {
            rows.queues[0].start = Offset(u64::MAX);
        }),
        ("a queue beyond the next key", |rows| {
            rows.counters.next_queue = QueueKey(0);
        }),
        ("a cursor beyond the end", |rows| {
            rows.cursors[0].next = Offset(u64::MAX);
        }),
        ("a cursor below the start", |rows| {
            let cursor = rows.cursors[0];
            let queue = rows.queues.iter_mut().find(|queue| queue.key == cursor.queue);
            let queue = queue.unwrap();
            queue.start = Offset(cursor.next.0 + 1);
            queue.end = queue.end.max(queue.start);
        }),
        ("a group beyond the next key", |rows| {
            rows.counters.next_group = GroupKey(0);
        }),
        ("more queues than a shard ever makes", |rows| {
            rows.counters.next_queue = QueueKey(u32::MAX);
        }),
        ("more groups than a shard ever makes", |rows| {
            rows.counters.next_group = GroupKey(u32::MAX);
        }),
        ("a decision never taken", |rows| rows.counters.decisions = 0),
    ];
    for (what, change) in breaks {
        let mut broken = rows.clone();
        change(&mut broken);
        assert!(State::load(shard(), limits(), broken).is_err(), "{what}");
    }
}
