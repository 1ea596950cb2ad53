//! The batcher under a clock that the tests move.

use mq_common::ids::Timestamp;

use super::*;

fn options(linger_ms: u64) -> Options {
    Options {
        compression: Compression::None,
        batch_bytes: 200,
        batch_records: 100,
        linger: Duration::from_millis(linger_ms),
    }
}

fn shard() -> ShardName {
    ShardName::new("a").unwrap()
}

fn key(queue: u32) -> LaneKey {
    LaneKey {
        topic: 0,
        queue: QueueNumber(queue),
        class: Class::Confirmed,
    }
}

fn push(batcher: &mut Batcher<u32>, queue: u32, payload: &[u8], waiter: u32, now: Instant) -> Pushed {
    let mut entry = Entry {
        record: Record::new(payload, Timestamp(1)),
        waiter: Some(waiter),
        cost: payload.len(),
        pinned: true,
    };
    batcher.push(key(queue), &shard(), &mut entry, now).unwrap()
}

fn take(batcher: &mut Batcher<u32>, now: Instant) -> Vec<(u32, Vec<(u32, u32)>)> {
    let taken = batcher.take(&shard(), Class::Confirmed, 1 << 20, now);
    taken
        .into_iter()
        .map(|(key, parcel)| (key.queue.0, parcel.waiters))
        .collect()
}

#[test]
fn batch_waits_for_its_linger_and_then_is_due() {
    let start = Instant::now();
    let later = start + Duration::from_millis(5);
    let mut batcher = Batcher::new(options(5));
    assert_eq!(push(&mut batcher, 0, b"a", 7, start), Pushed::Began);
    assert_eq!(push(&mut batcher, 0, b"b", 8, later), Pushed::Joined);
    assert_eq!(batcher.due(start), (vec![], Some(later)));
    assert_eq!(take(&mut batcher, start), []);
    assert_eq!(batcher.due(later), (vec![shard()], None));
    assert_eq!(take(&mut batcher, later), [(0, vec![(0, 7), (1, 8)])]);
    assert!(!batcher.is_idle());
    batcher.done(key(0));
    assert!(batcher.is_idle());
}

#[test]
fn full_batch_is_due_before_its_linger_is_over() {
    let start = Instant::now();
    let mut batcher = Batcher::new(options(1000));
    push(&mut batcher, 0, &[0; 100], 1, start);
    assert_eq!(push(&mut batcher, 0, &[0; 100], 2, start), Pushed::Began);
    assert_eq!(take(&mut batcher, start), [(0, vec![(0, 1)])]);
    batcher.done(key(0));
    assert_eq!(take(&mut batcher, start), []);
    batcher.flush();
    assert_eq!(take(&mut batcher, start), [(0, vec![(0, 2)])]);
}

#[test]
fn queue_has_one_call_under_way_and_others_go_on() {
    let start = Instant::now();
    let mut batcher = Batcher::new(options(0));
    push(&mut batcher, 0, b"a", 1, start);
    assert_eq!(take(&mut batcher, start), [(0, vec![(0, 1)])]);
    push(&mut batcher, 0, b"b", 2, start);
    push(&mut batcher, 1, b"c", 3, start);
    assert_eq!(take(&mut batcher, start), [(1, vec![(0, 3)])]);
    assert_eq!(batcher.due(start), (vec![], None));
    batcher.done(key(0));
    assert_eq!(take(&mut batcher, start), [(0, vec![(0, 2)])]);
}

/// Batches of one message each: the limit of bytes is that of one.
fn push_batches(batcher: &mut Batcher<u32>, queue: u32, waiters: std::ops::Range<u32>, now: Instant) {
    for waiter in waiters {
        push(batcher, queue, &[0; 100], waiter, now);
    }
    batcher.flush();
}

#[test]
fn call_takes_the_batches_of_a_queue_in_order_but_no_more_than_a_broker_tells_apart() {
    let start = Instant::now();
    let mut batcher = Batcher::new(options(0));
    push_batches(&mut batcher, 0, 0..20, start);
    push_batches(&mut batcher, 1, 100..102, start);
    let expected: Vec<_> = (0..16)
        .map(|waiter| (0, vec![(0, waiter)]))
        .chain([(1, vec![(0, 100)]), (1, vec![(0, 101)])])
        .collect();
    assert_eq!(take(&mut batcher, start), expected);
    for _ in 0..15 {
        batcher.done(key(0));
        assert_eq!(take(&mut batcher, start), [], "its call is not concluded");
    }
    batcher.done(key(0));
    let rest: Vec<_> = (16..20).map(|waiter| (0, vec![(0, waiter)])).collect();
    assert_eq!(take(&mut batcher, start), rest);
}

#[test]
fn call_has_no_more_batches_than_a_broker_takes() {
    let start = Instant::now();
    let mut batcher = Batcher::new(options(0));
    let queues = u32::try_from(CALL_BATCHES_MAX).unwrap() + 3;
    for queue in 0..queues {
        push(&mut batcher, queue, b"a", queue, start);
    }
    let mut take = || batcher.take(&shard(), Class::Confirmed, usize::MAX, start).len();
    assert_eq!([take(), take()], [CALL_BATCHES_MAX, 3]);
}

#[test]
fn queue_with_much_to_send_does_not_fill_a_call_before_the_others() {
    let start = Instant::now();
    let mut batcher = Batcher::new(options(0));
    push_batches(&mut batcher, 0, 0..10, start);
    push_batches(&mut batcher, 1, 100..110, start);
    let bytes = 4 * batcher_bytes(&batcher);
    let taken = batcher.take(&shard(), Class::Confirmed, bytes, start);
    let queues: Vec<u32> = taken.iter().map(|(key, _)| key.queue.0).collect();
    assert_eq!(queues, [0, 0, 1, 1]);
}

/// Batches of a queue, so large that a share of the least bytes holds one of them.
fn large_batches(batcher: &mut Batcher<u32>, queue: u32, count: u32, now: Instant) {
    for waiter in 0..count {
        push(batcher, queue, &[0; 200 * 1024], waiter, now);
        batcher.flush();
    }
}

/// How many batches of each queue a call takes.
fn shares(batcher: &mut Batcher<u32>, now: Instant) -> BTreeMap<u32, usize> {
    let mut shares = BTreeMap::new();
    for (key, _) in batcher.take(&shard(), Class::Confirmed, usize::MAX, now) {
        *shares.entry(key.queue.0).or_default() += 1;
    }
    shares
}

#[test]
fn queue_that_is_alone_has_all_that_may_be_under_way_and_others_share_it() {
    let start = Instant::now();
    let mut batcher = Batcher::new(options(0));
    let batch_bytes = 200 * 1024 + 200;
    let alone = UNDER_WAY_BYTES / batch_bytes;
    large_batches(&mut batcher, 0, 16, start);
    assert_eq!(shares(&mut batcher, start), BTreeMap::from([(0, alone)]));
    // What is under way counts: the second queue has half, though nothing of the first one waits for it.
    large_batches(&mut batcher, 1, 16, start);
    assert_eq!(shares(&mut batcher, start), BTreeMap::from([(1, alone / 2)]));
    for _ in 0..alone {
        batcher.done(key(0));
    }
    for _ in 0..alone / 2 {
        batcher.done(key(1));
    }
    // Many have one batch each.
    for queue in 2..20 {
        large_batches(&mut batcher, queue, 2, start);
    }
    let many = shares(&mut batcher, start);
    assert_eq!((many.len(), many.values().max()), (20, Some(&1)), "{many:?}");
}

#[test]
fn batch_larger_than_a_share_goes_alone() {
    let start = Instant::now();
    let mut batcher = Batcher::new(options(0));
    let large = vec![0; UNDER_WAY_BYTES + 1];
    for waiter in 0..2 {
        push(&mut batcher, 0, &large, waiter, start);
        batcher.flush();
        assert_eq!(take(&mut batcher, start), [(0, vec![(0, waiter)])]);
        batcher.done(key(0));
    }
}

/// Bytes of one of the batches of [`push_batches`].
fn batcher_bytes(batcher: &Batcher<u32>) -> usize {
    batcher.lanes[&key(0)].ready[0].content.bytes()
}

#[test]
fn failed_batches_go_first_again_in_their_order_when_their_wait_is_over() {
    let start = Instant::now();
    let later = start + Duration::from_millis(50);
    let mut batcher = Batcher::new(options(0));
    push_batches(&mut batcher, 0, 0..3, start);
    let mut under_way = batcher
        .take(&shard(), Class::Confirmed, 10_000, start)
        .into_iter();
    push_batches(&mut batcher, 0, 3..5, start);
    // The first one is taken, the others are not.
    assert!(under_way.next().is_some());
    batcher.done(key(0));
    for (key, mut parcel) in under_way {
        assert_eq!(
            take(&mut batcher, later),
            [],
            "others of its call are not concluded"
        );
        parcel.not_before = Some(later);
        batcher.put_back(key, parcel);
    }
    assert_eq!(take(&mut batcher, start), []);
    assert_eq!(batcher.due(start).1, Some(later));
    let again: Vec<_> = (1..5).map(|waiter| (0, vec![(0, waiter)])).collect();
    assert_eq!(take(&mut batcher, later), again);
    for _ in 0..4 {
        batcher.done(key(0));
    }
    assert!(batcher.is_idle());
}

#[test]
fn unpinned_message_that_does_not_fit_may_go_elsewhere() {
    let start = Instant::now();
    let mut batcher = Batcher::new(options(1000));
    push(&mut batcher, 0, &[0; 100], 1, start);
    let mut entry = Entry {
        record: Record::new(&[0; 100], Timestamp(1)),
        waiter: Some(2),
        cost: 100,
        pinned: false,
    };
    let mut again = |batcher: &mut Batcher<u32>| batcher.push(key(0), &shard(), &mut entry, start);
    assert_eq!(again(&mut batcher), Ok(Pushed::Full));
    assert_eq!(take(&mut batcher, start), [(0, vec![(0, 1)])]);
    assert_eq!(again(&mut batcher), Ok(Pushed::Began));
}

#[test]
fn message_larger_than_a_batch_gets_one_of_its_own_and_one_beyond_the_limit_is_refused() {
    let start = Instant::now();
    let mut batcher = Batcher::new(options(0));
    assert_eq!(push(&mut batcher, 0, &[0; 5000], 1, start), Pushed::Began);
    assert_eq!(take(&mut batcher, start), [(0, vec![(0, 1)])]);
    let huge = vec![0; 5 * 1024 * 1024];
    let mut entry = Entry {
        record: Record::new(&huge, Timestamp(1)),
        waiter: Some(2),
        cost: 1,
        pinned: true,
    };
    let refused = batcher.push(key(1), &shard(), &mut entry, start);
    assert!(matches!(refused, Err(BatchError::TooLarge { .. })), "{refused:?}");
    assert!(entry.waiter.is_some());
    batcher.done(key(0));
    assert!(batcher.is_idle());
}

#[test]
fn call_carries_about_as_many_bytes_as_wished_for() {
    let start = Instant::now();
    let mut batcher = Batcher::new(options(0));
    for queue in 0..5 {
        push(&mut batcher, queue, &[0; 100], queue, start);
    }
    let first = batcher.take(&shard(), Class::Confirmed, 400, start);
    assert_eq!(first.len(), 2);
    assert_eq!(batcher.drain().len(), 3);
    assert_eq!(take(&mut batcher, start), []);
}
