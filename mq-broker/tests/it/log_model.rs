//! Random histories of the journal and its store against a plain model in memory, with checkpoints, clean
//! stops, deaths of the process and power cuts in between. A failing case prints its operations.

use std::collections::BTreeMap;

use bytes::Bytes;
use mq_broker::ids::BatchAt;
use mq_broker::log::{Completion, Ticket, Want};
use mq_broker::store::Found;
use mq_broker::store::disk::{Crash, Faults};
use mq_common::ids::{Durability, Lsn};
use proptest::prelude::*;

use crate::support::journal::{Applied, Live, Rig, append, batch, commit, half, trim};
use crate::support::workload::any_crash;

#[derive(Debug, Clone)]
enum Op {
    Append {
        queue: u32,
        bytes: usize,
        batches: usize,
        synced: bool,
    },
    Half {
        bytes: usize,
        batches: usize,
    },
    /// Commits the n-th open one.
    Commit {
        which: usize,
        queue: u32,
    },
    Turn,
    Wait {
        ms: u64,
    },
    Checkpoint,
    /// A checkpoint; what it shows to be dead is freed.
    Reclaim,
    /// Nothing of the queue is needed any longer.
    Trim {
        queue: u32,
    },
    Read {
        queue: u32,
        bytes_max: usize,
    },
    Stop,
    Crash(Crash),
    FailSync {
        after: u64,
        crash: Crash,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let append =
        (0..4_u32, 1..700_usize, 1..4_usize, any::<bool>()).prop_map(|(queue, bytes, batches, synced)| {
            Op::Append {
                queue,
                bytes,
                batches,
                synced,
            }
        });
    prop_oneof![
        12 => append,
        3 => (1..400_usize, 1..3_usize).prop_map(|(bytes, batches)| Op::Half { bytes, batches }),
        3 => (any::<usize>(), 0..4_u32).prop_map(|(which, queue)| Op::Commit { which, queue }),
        6 => Just(Op::Turn),
        1 => (0..1500_u64).prop_map(|ms| Op::Wait { ms }),
        2 => Just(Op::Checkpoint),
        2 => Just(Op::Reclaim),
        1 => (0..4_u32).prop_map(|queue| Op::Trim { queue }),
        4 => (0..4_u32, 1..5000_usize).prop_map(|(queue, bytes_max)| Op::Read { queue, bytes_max }),
        1 => Just(Op::Stop),
        1 => any_crash().prop_map(Op::Crash),
        1 => (1..4_u64, any_crash()).prop_map(|(after, crash)| Op::FailSync { after, crash }),
    ]
}

/// The expected content, kept in a simple form.
struct Model {
    rig: Rig,
    live: Live,
    /// Every entry applied so far; entry n is at n - 1.
    history: Vec<Applied>,
    /// Promised to survive a power cut.
    fsynced: Lsn,
    /// Promised to survive the death of the process.
    flushed: Lsn,
    /// First batch and how many.
    open: Vec<(BatchAt, u32)>,
    proposed: BTreeMap<Ticket, Want>,
    seed: u64,
}

impl Model {
    fn new() -> Self {
        let mut rig = Rig::new(4096);
        // Small enough for the oldest batches to be evicted.
        rig.store_settings.tail_bytes = 2 * 256 * 1024 + 4000;
        rig.settings.zeros_ahead_bytes = 2048;
        let live = rig.open().unwrap();
        let mut model = Self {
            rig,
            live,
            history: Vec::new(),
            fsynced: Lsn(0),
            flushed: Lsn(0),
            open: Vec::new(),
            proposed: BTreeMap::new(),
            seed: 0,
        };
        model.take_applied();
        model.note_marks();
        model
    }

    fn batches(&mut self, count: usize, bytes: usize) -> Vec<mq_common::batch::Batch> {
        let mut next = || {
            self.seed += 1;
            batch(self.seed, bytes)
        };
        (0..count).map(|_| next()).collect()
    }

    fn take_applied(&mut self) {
        self.history.append(&mut self.live.recorder.applied);
        let all = self.history.iter().zip(1..);
        assert!(all.clone().all(|(entry, lsn)| entry.lsn == Lsn(lsn)), "dense");
    }

    fn note_marks(&mut self) {
        let marks = self.live.marks();
        assert_eq!(
            marks.flushed,
            Lsn(self.history.len() as u64),
            "what is flushed is applied"
        );
        self.fsynced = self.fsynced.max(marks.synced);
        self.flushed = self.flushed.max(marks.flushed);
    }

    fn settle(&mut self) {
        self.take_applied();
        for (ticket, completion) in self.live.completions() {
            let want = self.proposed.remove(&ticket).expect("each ticket once");
            match completion {
                Completion::Applied { lsn, reached, result } => {
                    assert_eq!(lsn.0, result / 1000);
                    assert!(want == Want::Flushed || reached == Durability::Fsynced);
                    if reached == Durability::Fsynced {
                        assert!(lsn <= self.live.marks().synced);
                    }
                }
                Completion::Refused(refused) => panic!("{refused}"),
                Completion::Unknown => {}
            }
        }
        self.open = self.open_halves();
    }

    fn turn(&mut self) {
        self.live.turn().unwrap();
        self.settle();
        self.note_marks();
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Append {
                queue,
                bytes,
                batches,
                synced,
            } => {
                let batches = self.batches(batches, bytes);
                let want = if synced { Want::Synced } else { Want::Flushed };
                let ticket = self.live.propose(append(queue, batches), want);
                self.proposed.insert(ticket, want);
            }
            Op::Half { bytes, batches } => {
                let batches = self.batches(batches, bytes);
                let ticket = self.live.propose(half(batches), Want::Flushed);
                self.proposed.insert(ticket, Want::Flushed);
            }
            Op::Commit { which, queue } => {
                self.drain();
                if !self.open.is_empty() {
                    let (first, batches) = self.open[which % self.open.len()];
                    let command = commit(queue, first, &vec![1; batches as usize]);
                    let ticket = self.live.propose(command, Want::Synced);
                    self.proposed.insert(ticket, Want::Synced);
                    self.drain();
                }
            }
            Op::Turn => self.turn(),
            Op::Wait { ms } => {
                self.live.now += ms;
                self.turn();
            }
            Op::Checkpoint => {
                self.drain();
                self.rig.save(&mut self.live);
                self.settle();
                self.note_marks();
            }
            Op::Reclaim => {
                self.drain();
                self.rig.reclaim(&mut self.live).unwrap();
                self.settle();
                self.note_marks();
                let recorder = &self.live.recorder;
                let trimmed = |(queue, end)| recorder.starts.get(queue) == Some(end);
                if self.open.is_empty() && recorder.ends.iter().all(trimmed) {
                    assert_eq!(self.rig.files(), (1, 0), "nothing is needed any more");
                }
            }
            Op::Trim { queue } => {
                let ticket = self.live.propose(trim(queue), Want::Flushed);
                self.proposed.insert(ticket, Want::Flushed);
                self.drain();
            }
            Op::Read { queue, bytes_max } => self.read(queue, bytes_max),
            Op::Stop => {
                self.live.stop().unwrap();
                self.settle();
                self.note_marks();
                assert_eq!(self.live.marks().synced, self.live.marks().appended);
                self.reopen(Crash::LoseUnsynced);
            }
            Op::Crash(crash) => {
                self.drain();
                self.reopen(crash);
            }
            Op::FailSync { after, crash } => self.fail_sync(after, crash),
        }
    }

    /// Until nothing waits: every open half is known then.
    fn drain(&mut self) {
        while !self.proposed.is_empty() {
            self.turn();
        }
    }

    fn fail_sync(&mut self, after: u64, crash: Crash) {
        self.drain();
        self.rig.disk.set_faults(Faults {
            fail_sync: self.rig.disk.syncs() + after,
            ..Faults::default()
        });
        for _ in 0..20 {
            let batches = self.batches(1, 100);
            let ticket = self.live.propose(append(0, batches), Want::Synced);
            self.proposed.insert(ticket, Want::Synced);
            let failed = self.live.turn().is_err();
            self.settle();
            if failed {
                break;
            }
            self.note_marks();
        }
        assert!(self.live.turn().is_err(), "the sync failed");
        // Written, but not applied: it may be found, and nothing is known about it.
        let last = self.history.len();
        self.rig.now = self.live.now + 10;
        self.rig.disk.crash(crash);
        self.open_again();
        self.check_recovered(last, true);
    }

    fn reopen(&mut self, crash: Crash) {
        let last = self.history.len();
        self.rig.now = self.live.now + 10;
        if crash == Crash::KeepAll {
            self.fsynced = self.flushed;
        }
        self.rig.disk.crash(crash);
        self.open_again();
        self.check_recovered(last, false);
    }

    fn open_again(&mut self) {
        self.live = self.rig.open().unwrap();
        self.proposed.clear();
    }

    /// What the start replayed agrees with the history, and holds everything promised.
    fn check_recovered(&mut self, last: usize, unknown_behind: bool) {
        let replayed = std::mem::take(&mut self.live.recorder.applied);
        let from = usize::try_from(self.rig.saved.lsn.0).unwrap();
        let recovered = from + replayed.len() - 1;
        assert!(
            recovered as u64 >= self.fsynced.0,
            "lost: {recovered} of {}",
            self.fsynced
        );
        assert!(recovered <= last + usize::from(unknown_behind), "invented");
        let known = recovered.min(last);
        assert_eq!(replayed[..known - from], self.history[from..known]);
        self.history.truncate(known);
        self.history.extend(replayed.into_iter().skip(known - from));
        self.flushed = Lsn(0);
        self.note_marks();
        self.open = self.open_halves();
        for queue in 0..4 {
            self.read(queue, 900);
        }
    }

    fn open_halves(&self) -> Vec<(BatchAt, u32)> {
        let mut open = BTreeMap::new();
        for entry in &self.history {
            let mut first = BatchAt {
                lsn: entry.lsn,
                index: 0,
            };
            for (meta, bodies) in &entry.commands {
                let count = u32::try_from(bodies.len()).unwrap();
                match meta[0] {
                    b'H' => drop(open.insert(first, count)),
                    b'C' => drop(open.remove(&names(meta))),
                    _ => {}
                }
                first.index += count;
            }
        }
        open.into_iter().collect()
    }

    /// The whole queue, as the history says it is.
    fn read(&self, queue: u32, bytes_max: usize) {
        let mut expected: Vec<(Lsn, &Bytes)> = Vec::new();
        let bodies_of = |lsn: Lsn| {
            let entry = &self.history[usize::try_from(lsn.0).unwrap() - 1];
            entry
                .commands
                .iter()
                .find(|(meta, _)| meta[0] == b'H')
                .map(|(_, bodies)| bodies)
        };
        for entry in &self.history {
            for (meta, bodies) in &entry.commands {
                let of = u32::from_be_bytes(meta[1..5].try_into().unwrap());
                let bodies = match meta[0] {
                    b'A' if of == queue => bodies,
                    b'C' if of == queue => bodies_of(names(meta).lsn).expect("a half before its commit"),
                    b'T' if of == queue => {
                        expected.clear();
                        continue;
                    }
                    _ => continue,
                };
                expected.extend(bodies.iter().flatten().map(|body| (entry.lsn, body)));
            }
        }
        let found = self.live.read_queue(queue, bytes_max);
        let found: Vec<_> = found
            .iter()
            .map(|found| match found {
                Found::Batch { row, region } => (row.lsn, region),
                Found::Hole { .. } => panic!("{found:?}"),
            })
            .collect();
        assert_eq!(found.len(), expected.len(), "queue {queue}");
        assert!(found == expected, "queue {queue}");
    }
}

/// The half messages that a commit names.
fn names(meta: &[u8]) -> BatchAt {
    BatchAt {
        lsn: Lsn(u64::from_be_bytes(meta[5..13].try_into().unwrap())),
        index: u32::from_be_bytes(meta[13..17].try_into().unwrap()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_with_any_crashes_is_what_the_model_says(ops in prop::collection::vec(op(), 1..120)) {
        let mut model = Model::new();
        for op in &ops {
            model.run(op);
        }
        model.drain();
        model.reopen(Crash::LoseUnsynced);
    }
}
