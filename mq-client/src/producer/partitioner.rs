//! Which queue a message goes to: the one the application chose, else the one of its key, else one queue
//! until its batch is full, then the next. The load balancer chooses the broker of the next batch; this
//! module chooses the queue. Pure.

use std::collections::BTreeMap;

use mq_common::ids::{QueueNumber, ShardName};

use crate::error::RouteError;
use crate::message::Message;
use crate::route::TopicRoute;

/// The choice of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// This queue only.
    Pinned(QueueNumber),
    /// Any queue.
    Free,
}

/// The queue of a message that has a queue or a key.
pub(crate) fn place(route: &TopicRoute, message: &Message) -> Result<Place, RouteError> {
    if let Some(queue) = message.queue {
        route.home(queue)?;
        return Ok(Place::Pinned(queue));
    }
    let key = message.key.as_deref().and_then(|key| route.queue_of_key(key));
    Ok(key.map_or(Place::Free, Place::Pinned))
}

/// The queues that unpinned messages of one topic go to.
#[derive(Debug, Default)]
pub(crate) struct Sticky {
    current: Option<QueueNumber>,
    turns: BTreeMap<ShardName, usize>,
}

impl Sticky {
    /// The queue whose batch is being filled.
    pub(crate) const fn current(&self) -> Option<QueueNumber> {
        self.current
    }

    /// The current queue's batch is full or in flight: the next unpinned message starts one in another queue.
    pub(crate) fn leave(&mut self, queue: QueueNumber) {
        if self.current == Some(queue) {
            self.current = None;
        }
    }

    /// Moves to the shard's next queue in turn, preferring one that is not `busy`. `None` if the shard has no
    /// queues.
    pub(crate) fn advance(
        &mut self,
        shard: &ShardName,
        queues: &[QueueNumber],
        busy: impl Fn(QueueNumber) -> bool,
    ) -> Option<QueueNumber> {
        if !self.turns.contains_key(shard) {
            self.turns.insert(shard.clone(), 0);
        }
        let turn = self.turns.get_mut(shard)?;
        let from = *turn % queues.len().max(1);
        let in_turn = || (from..queues.len()).chain(0..from);
        let index = in_turn()
            .find(|&index| !busy(queues[index]))
            .or_else(|| in_turn().next())?;
        *turn = index + 1;
        self.current = Some(queues[index]);
        self.current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard() -> ShardName {
        ShardName::new("a").unwrap()
    }

    fn numbers(numbers: &[u32]) -> Vec<QueueNumber> {
        numbers.iter().copied().map(QueueNumber).collect()
    }

    #[test]
    fn stays_until_it_leaves_and_then_takes_queues_in_turn() {
        let mut sticky = Sticky::default();
        let queues = numbers(&[3, 5, 8]);
        let mut seen = Vec::new();
        for _ in 0..4 {
            let queue = sticky.advance(&shard(), &queues, |_| false).unwrap();
            assert_eq!(sticky.current(), Some(queue));
            sticky.leave(QueueNumber(99));
            assert_eq!(sticky.current(), Some(queue));
            sticky.leave(queue);
            assert_eq!(sticky.current(), None);
            seen.push(queue);
        }
        assert_eq!(seen, numbers(&[3, 5, 8, 3]));
    }

    #[test]
    fn prefers_a_queue_with_nothing_under_way() {
        let mut sticky = Sticky::default();
        let queues = numbers(&[0, 1, 2]);
        assert_eq!(
            sticky.advance(&shard(), &queues, |queue| queue.0 < 2),
            Some(QueueNumber(2))
        );
        assert_eq!(sticky.advance(&shard(), &queues, |_| true), Some(QueueNumber(0)));
        assert_eq!(sticky.advance(&shard(), &[], |_| false), None);
    }
}
