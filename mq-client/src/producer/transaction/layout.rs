//! Which batch of a transaction each message is in, and where in it. Pure.

use std::collections::BTreeMap;

use mq_common::api::transaction::Placed;
use mq_common::ids::{Durability, Offset, QueueNumber, TopicName};

use crate::producer::SendReceipt;

/// A queue has one batch at most.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layout {
    batches: Vec<(TopicName, QueueNumber)>,
    /// For each message, in the order given: index of its batch, index in it.
    messages: Vec<(usize, u32)>,
}

impl Layout {
    /// `messages`: topic, queue, and how many messages of that queue stand before, for each in order.
    pub(super) fn new(messages: &[(&TopicName, QueueNumber, u32)]) -> Self {
        let mut indices = BTreeMap::new();
        let mut layout = Self::default();
        for &(topic, queue, before) in messages {
            let batch = *indices.entry((topic, queue)).or_insert_with(|| {
                layout.batches.push((topic.clone(), queue));
                layout.batches.len() - 1
            });
            layout.messages.push((batch, before));
        }
        layout
    }

    /// A receipt for each message, in order. Empty if the broker did not name every queue: the topic was deleted meanwhile.
    pub(super) fn receipts(&self, placed: &[Placed], durability: Durability) -> Vec<SendReceipt> {
        let bases: BTreeMap<_, _> = placed
            .iter()
            .map(|placed| ((&placed.topic, placed.queue), placed.base_offset))
            .collect();
        let receipts = self.messages.iter().map(|&(batch, before)| {
            let (topic, queue) = self.batches.get(batch)?;
            let base = bases.get(&(topic, *queue))?;
            Some(SendReceipt {
                topic: topic.clone(),
                queue: *queue,
                base_offset: Offset(base.0 + u64::from(before)),
                durability,
            })
        });
        receipts.collect::<Option<_>>().unwrap_or_default()
    }
}
