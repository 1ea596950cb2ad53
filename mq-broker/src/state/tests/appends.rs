//! Appending, and what every entry has to keep to.

use super::*;

#[test]
fn offsets_are_dense_per_queue() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 2);
    let outcomes = bench.entry(vec![
        Command::Append(part(queues[0], 3)),
        Command::Append(part(queues[1], 5)),
        Command::Append(part(queues[0], 2)),
    ]);
    let bases = [0, 0, 3].map(|base| Outcome::Appended {
        base_offset: Offset(base),
    });
    assert_eq!(outcomes, bases);
    assert_eq!((bench.end(queues[0]), bench.end(queues[1])), (5, 5));
    assert_eq!(bench.state.queue(queues[0]).unwrap().bytes, 500);
}

#[test]
fn placements_count_the_batches_of_the_whole_entry() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    bench.entry(vec![
        half(None, 1, &[part(queues[0], 1), part(queues[0], 1)]),
        Command::CountChecks { numbers: vec![] },
        Command::Append(part(queues[0], 4)),
    ]);
    assert_eq!(
        bench.effects.placements,
        [Placement {
            queue: queues[0],
            base_offset: Offset(0),
            records: 4,
            source: Source::Here(2),
            visible_at: Durability::Fsynced,
        }]
    );
    assert_eq!(bench.effects.placements[0].end(), Offset(4));
}

#[test]
fn append_to_an_unknown_queue_is_refused_and_the_rest_of_the_entry_applies() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let outcomes = bench.entry(vec![
        Command::Append(part(QueueKey(77), 1)),
        Command::Append(part(queues[0], 1)),
    ]);
    assert_eq!(outcomes[0], Outcome::Refused(Refusal::UnknownQueue));
    assert_eq!(
        outcomes[1],
        Outcome::Appended {
            base_offset: Offset(0)
        }
    );
}

#[test]
fn batch_without_records_is_refused() {
    let mut bench = Bench::new();
    let queues = bench.topic("t", 1);
    let refusal = refused(bench.apply(Command::Append(part(queues[0], 0))));
    assert!(matches!(refusal, Refusal::Invalid(_)));
}

#[test]
#[should_panic(expected = "entry time went back")]
fn entry_time_never_decreases() {
    let mut bench = Bench::new();
    bench.entry(vec![]);
    bench.now.0 -= 1;
    bench.entry(vec![]);
}

#[test]
#[should_panic(expected = "is applied after")]
fn entry_is_applied_once() {
    let mut bench = Bench::new();
    bench.entry(vec![]);
    let at = bench.state.at();
    bench.state.apply(at, [], &mut Effects::default());
}

#[test]
fn queue_is_small_at_rest() {
    assert!(size_of::<Queue>() <= 48, "{}", size_of::<Queue>());
    // Beside it: its number and key in the topic, and two bytes of the declared list.
    assert!(size_of::<Queue>() + size_of::<(QueueNumber, QueueKey)>() + size_of::<u16>() <= 64);
}
