//! Random histories of a whole core against a plain model: changes of every kind, checkpoints, freed segments, deaths of
//! the process, power cuts, a checkpoint that was taken and not saved, syncs that fail. A failing case prints its steps.

use fastrand::Rng;
use mq_broker::log::Want;
use mq_broker::store::disk::{Crash, Faults};
use proptest::prelude::*;

use crate::support::model::Change;
use crate::support::whole::{Whole, settings};
use crate::support::workload::{MIXED, Step};

#[derive(Debug, Clone)]
enum Op {
    /// So much work, chosen by this seed.
    Work {
        steps: usize,
        seed: u64,
    },
    Crash(Crash),
    /// A clean stop with its checkpoint, and a power cut behind it.
    Stop,
    /// The crash comes when a checkpoint was taken and is not saved.
    CrashBeforeSave(Crash),
    /// The sync after so many others fails, and then the crash comes.
    FailSync {
        after: u64,
        crash: Crash,
    },
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![
        Just(Crash::LoseUnsynced),
        Just(Crash::KeepAll),
        any::<u64>().prop_map(Crash::Random),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (1..8_usize, any::<u64>()).prop_map(|(steps, seed)| Op::Work { steps, seed }),
        2 => crash().prop_map(Op::Crash),
        1 => Just(Op::Stop),
        1 => crash().prop_map(Op::CrashBeforeSave),
        1 => (1..6_u64, crash()).prop_map(|(after, crash)| Op::FailSync { after, crash }),
    ]
}

async fn run(whole: &mut Whole, op: &Op) {
    match *op {
        Op::Work { steps, seed } => {
            let mut random = Rng::with_seed(seed);
            for _ in 0..steps {
                match Step::next(whole.model(), &MIXED, &mut random) {
                    Step::Changes(changes) => assert!(whole.change(&changes).await),
                    Step::Checkpoint => whole.checkpoint().await,
                    Step::Compact(segments) => whole.compact(segments).await,
                }
            }
        }
        Op::Crash(crash) => whole.crash(crash).await,
        Op::Stop => {
            whole.stop().await;
            whole.crash(Crash::LoseUnsynced).await;
        }
        Op::CrashBeforeSave(crash) => {
            drop(whole.snapshot().await);
            whole.crash(crash).await;
        }
        Op::FailSync { after, crash } => {
            let Some(queue) = whole.model().queues.keys().next().copied() else {
                return;
            };
            whole.disk.set_faults(Faults {
                fail_sync: whole.disk.syncs() + after,
                ..Faults::default()
            });
            let mut number = 0;
            loop {
                number += 1;
                let batch = crate::support::batch(&[number.to_string()]);
                let append = Change::Append { queue, batch };
                if !whole.change(&[(append, Want::Synced)]).await {
                    break;
                }
                assert!(number < 100, "the sync failed");
            }
            whole.crash(crash).await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_of_a_whole_core_is_what_the_model_says(ops in prop::collection::vec(op(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut whole = Whole::new(settings(0)).await;
            for op in &ops {
                run(&mut whole, op).await;
            }
            whole.crash(Crash::LoseUnsynced).await;
        });
    }
}
