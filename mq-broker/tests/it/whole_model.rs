//! Random histories of a whole core against a plain model: changes of every kind, and alongside them, in
//! pieces, compaction rounds and passes over keys, checkpoints, freed segments, backups and fetches; writes,
//! reads and saves that fail; deaths of the process, power cuts, syncs that fail. A failing case prints its
//! steps.
//!
//! `MODEL_SEEDS=n` tries n long histories from their seeds, `MODEL_SEED=x` begins with another one.

use fastrand::Rng;
use mq_broker::log::Want;
use mq_broker::store::disk::{Crash, Faults};
use proptest::prelude::*;

use crate::support::model::Change;
use crate::support::variable;
use crate::support::whole::{Reached, Shape, Whole};
use crate::support::workload::{MIXED, Step, Weights, any_crash};

/// Some of the work alongside the changes fails.
const HARMED: Weights = Weights {
    append: 14,
    trim: 5,
    checkpoint: 16,
    compact: 14,
    stops: (1, 8),
    harm_one_in: 10,
    ..MIXED
};

#[derive(Debug, Clone)]
enum Op {
    /// This much work, chosen by this seed, and with it the crash if it comes to one.
    Work {
        steps: usize,
        seed: u64,
    },
    Crash(Crash),
    /// A clean stop with its checkpoint, followed by a power cut.
    Stop,
    /// The sync after this many others fails, and then the crash comes.
    FailSync {
        after: u64,
        crash: Crash,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (1..16_usize, any::<u64>()).prop_map(|(steps, seed)| Op::Work { steps, seed }),
        2 => any_crash().prop_map(Op::Crash),
        1 => Just(Op::Stop),
        1 => (1..6_u64, any_crash()).prop_map(|(after, crash)| Op::FailSync { after, crash }),
    ]
}

fn random_crash(random: &mut Rng) -> Crash {
    match random.u32(..4) {
        0 => Crash::LoseUnsynced,
        1 => Crash::KeepAll,
        _ => Crash::Random(random.u64(..)),
    }
}

async fn work(whole: &mut Whole, weights: &Weights, steps: usize, random: &mut Rng) {
    for _ in 0..steps {
        let step = Step::next(whole.model(), weights, random);
        if !whole.step(step).await {
            whole.crash(random_crash(random)).await;
        }
    }
}

async fn run(whole: &mut Whole, op: &Op) {
    match *op {
        Op::Work { steps, seed } => {
            let mut random = Rng::with_seed(seed);
            work(whole, &HARMED, steps, &mut random).await;
        }
        Op::Crash(crash) => whole.crash(crash).await,
        Op::Stop => {
            whole.stop().await;
            whole.crash(Crash::LoseUnsynced).await;
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

fn on_a_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(work);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_of_a_whole_core_is_what_the_model_says(
        ops in prop::collection::vec(op(), 1..24),
        syncs_whole: bool,
    ) {
        on_a_runtime(async {
            let mut whole = Whole::new(Shape::new(0, syncs_whole)).await;
            for op in &ops {
                run(&mut whole, op).await;
            }
            whole.look().await;
            whole.crash(Crash::LoseUnsynced).await;
        });
    }
}

/// One life after another, each ended by a crash, a clean stop or a sync that fails.
#[expect(clippy::print_stderr, reason = "what was tried")]
async fn long_history(seed: u64) -> Reached {
    let mut random = Rng::with_seed(seed);
    let mut whole = Whole::new(Shape::new(0, random.u32(..4) > 0)).await;
    let mut crashes = 0;
    for _ in 0..8 {
        let steps = random.usize(50..300);
        work(&mut whole, &HARMED, steps, &mut random).await;
        whole.look().await;
        if random.u32(..4) == 0 {
            // Or a sync fails meanwhile.
            whole.stop().await;
        }
        whole.crash(random_crash(&mut random)).await;
        crashes += 1;
    }
    eprintln!("seed {seed}: {crashes} lives, {:?}", whole.reached);
    whole.reached
}

#[test]
fn long_histories_with_everything_in_pieces_are_what_the_model_says() {
    let first = variable("MODEL_SEED", 1);
    let mut reached = Reached::default();
    for seed in first..first + variable("MODEL_SEEDS", 3) {
        on_a_runtime(async { reached += long_history(seed).await });
    }
    let Reached {
        segments_freed,
        batches_moved,
        files_rewritten,
        let_go,
        files_removed,
        rounds_cut,
        rounds_failed,
        saves_failed,
        fetches_cut,
        restored,
    } = reached;
    let freed = segments_freed.min(files_removed).min(files_rewritten);
    let cut = rounds_cut.min(rounds_failed).min(fetches_cut);
    assert!(
        freed.min(cut).min(saves_failed).min(restored) > 0 && batches_moved.min(let_go) > 0,
        "{reached:?}"
    );
}
