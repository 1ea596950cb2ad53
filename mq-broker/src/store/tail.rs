//! The newest batches of all queues in memory, under one budget. Consumers that keep up are served from here:
//! slices, no copies, no files.
//!
//! How much memory a batch pins: a batch of 16 KiB or more keeps the request body that it came in. That body
//! is at least half of its buffer (rpc-core's reader sees to it), and the batches of a call that keep it are
//! at least half of it (`service/batches.rs`); so a byte that counts here pins four at most, and usually one.
//! A smaller batch is copied into a slab, so that it does not pin the read buffer it came in. Batches are
//! evicted oldest first, across all queues, so the batches of a slab are evicted together, and the slabs hold
//! at most two slabs' worth beyond the counted batches.

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};
use mq_common::ids::Offset;

use super::{Found, PlacedRow};
use crate::ids::QueueKey;

/// Batches from this size on keep the buffer they came in.
pub(crate) const OWN_BUFFER_BYTES: usize = 16 * 1024;
/// Bytes of a slab: what one slice that is still being sent can pin.
const SLAB_BYTES: usize = 256 * 1024;
/// Memory of a batch besides its body: its row, the handle of its bytes, and its share of the queues' tables.
const BATCH_BYTES: usize = size_of::<PlacedRow>() + size_of::<Bytes>() + 32;

/// The newest batches in memory.
#[derive(Debug)]
pub(super) struct Tail {
    queues: HashMap<QueueKey, VecDeque<(PlacedRow, Bytes)>>,
    /// The queue of each batch, oldest first. A deleted queue's entries remain until their turn, or until
    /// they are half of all.
    order: VecDeque<QueueKey>,
    /// Number of entries of `order` whose queues were deleted.
    dead: usize,
    bytes: usize,
    bytes_max: usize,
    slab: BytesMut,
}

impl Tail {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            queues: HashMap::new(),
            order: VecDeque::new(),
            dead: 0,
            bytes: 0,
            bytes_max,
            slab: BytesMut::new(),
        }
    }

    /// Bytes that count against the budget.
    #[cfg(test)]
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a batch that was just placed at the end of its queue, and evicts the oldest ones.
    pub(super) fn push(&mut self, row: PlacedRow, region: &Bytes) {
        let cost = region.len() + BATCH_BYTES;
        if cost + 2 * SLAB_BYTES > self.bytes_max {
            return;
        }
        let region = if region.len() < OWN_BUFFER_BYTES {
            self.copy(region)
        } else {
            region.clone()
        };
        self.bytes += cost;
        self.order.push_back(row.queue);
        self.queues.entry(row.queue).or_default().push_back((row, region));
        while self.bytes + 2 * SLAB_BYTES > self.bytes_max && self.pop_oldest() {}
    }

    fn copy(&mut self, region: &[u8]) -> Bytes {
        if self.slab.capacity() < region.len() {
            self.slab = BytesMut::with_capacity(SLAB_BYTES);
        }
        self.slab.extend_from_slice(region);
        self.slab.split().freeze()
    }

    fn pop_oldest(&mut self) -> bool {
        let Some(queue) = self.order.pop_front() else {
            return false;
        };
        let Some(batches) = self.queues.get_mut(&queue) else {
            self.dead -= 1;
            return true;
        };
        if let Some((_, region)) = batches.pop_front() {
            self.bytes -= region.len() + BATCH_BYTES;
        }
        if batches.is_empty() {
            self.queues.remove(&queue);
        } else if batches.len() < batches.capacity() / 4 {
            // The capacity of a burst is not kept for the trickle after it.
            batches.shrink_to(2 * batches.len());
        }
        true
    }

    /// The queue was deleted.
    pub(super) fn remove(&mut self, queue: QueueKey) {
        for (_, region) in self.queues.remove(&queue).into_iter().flatten() {
            self.bytes -= region.len() + BATCH_BYTES;
            self.dead += 1;
        }
        // So seldom that each entry is visited about twice in its life.
        if self.dead > self.order.len() / 2 {
            let queues = &self.queues;
            self.order.retain(|queue| queues.contains_key(queue));
            self.dead = 0;
        }
    }

    /// The first offset of a queue in memory.
    pub(super) fn first(&self, queue: QueueKey) -> Option<Offset> {
        let (row, _) = self.queues.get(&queue)?.front()?;
        Some(row.base_offset)
    }

    pub(super) fn contains(&self, queue: QueueKey, offset: Offset) -> bool {
        self.find(queue, offset).is_some()
    }

    /// The run of batches from the one that contains `from`, up to the first gap.
    pub(super) fn fetch(&self, queue: QueueKey, from: Offset, end: Offset, bytes_max: usize) -> Vec<Found> {
        let mut found = Vec::new();
        let Some((batches, first)) = self.find(queue, from) else {
            return found;
        };
        let mut next = None;
        let mut bytes = 0;
        for (row, region) in batches.range(first..) {
            let continues = next.is_none_or(|next| next == row.base_offset);
            let fits = bytes == 0 || bytes + region.len() <= bytes_max;
            if !continues || !fits || row.base_offset >= end {
                break;
            }
            next = Some(row.end());
            bytes += region.len();
            found.push(Found::Batch {
                row: *row,
                region: region.clone(),
            });
        }
        found
    }

    fn find(&self, queue: QueueKey, offset: Offset) -> Option<(&VecDeque<(PlacedRow, Bytes)>, usize)> {
        let batches = self.queues.get(&queue)?;
        let at = batches.partition_point(|(row, _)| row.end() <= offset);
        let (row, _) = batches.get(at)?;
        (row.base_offset <= offset).then_some((batches, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(queue: u32, base: u64, count: u32) -> PlacedRow {
        PlacedRow {
            queue: QueueKey(queue),
            base_offset: Offset(base),
            count,
            location: Default::default(),
            checksum: 0,
            lsn: Default::default(),
            term: Default::default(),
            time: Default::default(),
            flags: 0,
        }
    }

    fn bases(found: &[Found]) -> Vec<u64> {
        let base = |found: &Found| match found {
            Found::Batch { row, .. } => row.base_offset.0,
            Found::Hole { .. } => panic!("memory has no holes"),
        };
        found.iter().map(base).collect()
    }

    #[test]
    fn a_run_begins_with_the_batch_that_contains_the_offset() {
        let mut tail = Tail::new(1 << 24);
        for base in [0, 5, 10, 20] {
            tail.push(row(1, base, 5), &Bytes::from_static(b"12345"));
        }
        let fetch = |from, end, max| bases(&tail.fetch(QueueKey(1), Offset(from), Offset(end), max));
        assert_eq!(fetch(0, 100, 1000), [0, 5, 10], "up to the gap");
        assert_eq!(fetch(7, 100, 1000), [5, 10]);
        assert_eq!(fetch(7, 10, 1000), [5], "nothing beyond the visible end");
        assert_eq!(fetch(0, 100, 1), [0], "at least one");
        assert_eq!(fetch(0, 100, 10), [0, 5]);
        assert_eq!(fetch(17, 100, 1000), [0_u64; 0]);
        assert_eq!(fetch(24, 100, 1000), [20]);
        assert_eq!(fetch(25, 100, 1000), [0_u64; 0]);
        assert!(tail.fetch(QueueKey(2), Offset(0), Offset(9), 9).is_empty());
    }

    #[test]
    fn the_budget_holds_and_the_oldest_batch_of_all_queues_leaves_first() {
        let budget = 2 * SLAB_BYTES + 100_000;
        let mut tail = Tail::new(budget);
        for n in 0..1000 {
            tail.push(
                row(u32::try_from(n % 7).unwrap(), n, 1),
                &Bytes::from(vec![0; 1000]),
            );
            assert!(tail.bytes() + 2 * SLAB_BYTES <= budget);
        }
        let kept: Vec<_> = (0..1000)
            .filter(|n| tail.contains(QueueKey(u32::try_from(n % 7).unwrap()), Offset(*n)))
            .collect();
        assert!(kept.len() > 80, "{}", kept.len());
        assert_eq!(kept, (1000 - kept.len() as u64..1000).collect::<Vec<_>>());
        for queue in 0..7 {
            tail.remove(QueueKey(queue));
        }
        assert_eq!(tail.bytes(), 0);
    }

    #[test]
    fn a_burst_leaves_no_room_behind() {
        let mut tail = Tail::new(4 << 20);
        let batch = Bytes::from_static(b"small");
        for queue in 0..20 {
            for base in 0..10_000 {
                tail.push(row(queue, base, 1), &batch);
                // What keeps the rooms of the earlier ones in use.
                for earlier in 0..queue {
                    if base % 500 == 0 {
                        tail.push(row(earlier, 10_000 + base, 1), &batch);
                    }
                }
            }
        }
        let (held, room) = tail.queues.values().fold((0, 0), |(held, room), batches| {
            (held + batches.len(), room + batches.capacity())
        });
        assert!(
            tail.queues.len() == 20 && room <= 4 * held + 20 * 16,
            "{held} of {room}"
        );
    }

    #[test]
    fn queues_that_come_and_go_leave_nothing_behind() {
        let mut tail = Tail::new(1 << 24);
        tail.push(row(0, 0, 1), &Bytes::from_static(b"old"));
        for queue in 1..1000 {
            for base in 0..10 {
                tail.push(row(queue, base, 1), &Bytes::from_static(b"young"));
            }
            tail.remove(QueueKey(queue));
            assert!(
                tail.order.len() < 50,
                "{} entries for one batch",
                tail.order.len()
            );
        }
        assert!(tail.contains(QueueKey(0), Offset(0)));
        assert_eq!(tail.bytes(), 3 + BATCH_BYTES);
        assert!(tail.pop_oldest() && !tail.pop_oldest());
    }

    #[test]
    fn small_batches_leave_their_read_buffer_and_large_ones_keep_theirs() {
        let mut tail = Tail::new(1 << 24);
        let buffer = Bytes::from(vec![7; 64 * 1024]);
        let small = buffer.slice(..OWN_BUFFER_BYTES - 1);
        let large = buffer.slice(..OWN_BUFFER_BYTES);
        tail.push(row(1, 0, 1), &small);
        tail.push(row(1, 1, 1), &large);
        let region = |offset| match tail.fetch(QueueKey(1), Offset(offset), Offset(9), 1).remove(0) {
            Found::Batch { region, .. } => region,
            Found::Hole { .. } => panic!(),
        };
        assert_ne!(region(0).as_ptr(), small.as_ptr());
        assert_eq!(region(0), small);
        assert_eq!(region(1).as_ptr(), large.as_ptr());
    }

    #[test]
    fn a_batch_beyond_the_budget_is_not_kept() {
        let mut tail = Tail::new(2 * SLAB_BYTES + 1000);
        tail.push(row(1, 0, 1), &Bytes::from(vec![0; 2000]));
        assert_eq!(tail.bytes(), 0);
        assert!(!tail.contains(QueueKey(1), Offset(0)));
    }
}
