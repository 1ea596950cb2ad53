//! Which queue files are dead or sparse, against a walk over all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use mq_common::ids::{QueueNumber, TopicId, TopicName};
use proptest::prelude::*;

use super::*;
use crate::store::{FileSegment, QueueName, Rows};

const PERCENT: u64 = 30;
const BYTES_MIN: u32 = 100;

#[derive(Debug, Clone)]
enum Step {
    /// A round appends this many offsets to a queue, into a new file or into its last one.
    Move(u32, u64, bool),
    Trim(u32, u64),
    Delete(u32),
    Judge,
    /// A start: nothing is known but what the checkpoint has.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let queue = || 0..4_u32;
    prop_oneof![
        4 => (queue(), 1..50_u64, any::<bool>())
            .prop_map(|(queue, count, new)| Step::Move(queue, count, new)),
        4 => (queue(), 1..50_u64).prop_map(|(queue, count)| Step::Trim(queue, count)),
        1 => queue().prop_map(Step::Delete),
        4 => Just(Step::Judge),
        1 => Just(Step::Restart),
    ]
}

fn view(queue: u32, first: u64, end: u64) -> View {
    View {
        queue: QueueKey(queue),
        first: Offset(first),
        generation: 0,
        segment: FileSegment {
            end: Offset(end),
            bytes: u32::try_from(end - first).unwrap() * 10,
            planned_bytes: 1 << 20,
        },
        name: QueueName {
            topic: Arc::new(TopicName::new("orders").unwrap()),
            topic_id: TopicId(7),
            number: QueueNumber(queue),
        },
    }
}

/// What a walk over all files finds: those that are dead, and those that are sparse.
fn walk(index: &Index, ends: impl Fn(QueueKey) -> Option<(Offset, Offset)>) -> [Vec<(QueueKey, Offset)>; 2] {
    let (mut dead, mut sparse) = (Vec::new(), Vec::new());
    for View {
        queue,
        first,
        segment,
        ..
    } in index.files.views()
    {
        match ends(queue) {
            Some((start, _)) if start < segment.end => {
                let valid = segment.end.0 - start.0.max(first.0);
                if segment.bytes >= BYTES_MIN && valid * 100 < (segment.end.0 - first.0) * PERCENT {
                    sparse.push((queue, first));
                }
            }
            _ => dead.push((queue, first)),
        }
    }
    [dead, sparse]
}

proptest! {
    #[test]
    fn what_changed_is_judged_as_a_walk_over_all_files_would(steps in prop::collection::vec(step(), 1..80)) {
        let mut index = Index::default();
        let mut queues: BTreeMap<QueueKey, (Offset, Offset)> = BTreeMap::new();
        queues.extend((0..4).map(|queue| (QueueKey(queue), Default::default())));
        for step in steps {
            match step {
                Step::Move(queue, count, new) => {
                    let key = QueueKey(queue);
                    let Some((_, end)) = queues.get_mut(&key) else { continue };
                    let last = index.files.of(key).next_back();
                    let last = last.filter(|last| !new && last.segment.end == *end);
                    let first = last.map_or(end.0, |last| last.first.0);
                    end.0 += count;
                    let changed = view(queue, first, end.0);
                    index.switch(&[], &[changed], &[]);
                }
                Step::Trim(queue, count) => {
                    let key = QueueKey(queue);
                    let Some((start, end)) = queues.get_mut(&key) else { continue };
                    start.0 = (start.0 + count).min(end.0);
                    index.start_moved([key]);
                }
                Step::Delete(queue) => {
                    queues.remove(&QueueKey(queue));
                    index.start_moved([QueueKey(queue)]);
                }
                Step::Judge => {
                    let ends = |queue| queues.get(&queue).copied();
                    let [dead, sparse] = walk(&index, ends);
                    let before = index.files.gone().len();
                    prop_assert!(index.judge_files(PERCENT, BYTES_MIN, ends));
                    let gone = index.files.gone()[before..].iter();
                    prop_assert_eq!(gone.map(|view| (view.queue, view.first)).collect::<Vec<_>>(), dead);
                    prop_assert_eq!(index.sparse.iter().copied().collect::<Vec<_>>(), sparse);
                }
                Step::Restart => {
                    let listed = index.files.views().into_iter().map(|view| view.row(false));
                    let gone = index.files.gone().iter().map(|view| view.row(true));
                    let files = listed.chain(gone).collect();
                    index = Index::load(Rows { files, ..Rows::default() });
                }
            }
        }
    }
}

#[test]
fn after_a_start_with_very_many_queues_their_files_are_judged_in_parts() {
    let queues = u32::try_from(JUDGED_MAX).unwrap() + 1;
    let files = (0..queues).map(|queue| view(queue, 0, 10).row(false));
    let mut index = Index::load(Rows {
        files: files.collect(),
        ..Rows::default()
    });
    let ends = |_| Some((Offset(10), Offset(10)));
    assert!(!index.judge_files(PERCENT, BYTES_MIN, ends));
    assert_eq!(index.files.gone().len(), JUDGED_MAX);
    assert!(index.judge_files(PERCENT, BYTES_MIN, ends));
    assert_eq!(index.files.gone().len(), queues as usize);
    // Now there is nothing to be done.
    assert!(index.judge_files(PERCENT, BYTES_MIN, |_| panic!("nothing changed")));
}
