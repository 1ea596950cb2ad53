//! Which batch of a transaction each message is in, and its index there. Pure.

use std::collections::BTreeMap;

use mq_common::api::transaction::Placed;
use mq_common::ids::{Durability, Offset, QueueNumber, TopicName};

use crate::producer::SendReceipt;

/// The messages of a transaction and their batches; a queue has at most one batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layout {
    batches: Vec<(TopicName, QueueNumber)>,
    /// For each message, in the order given: the index of its batch and its index in that batch.
    messages: Vec<(usize, u32)>,
}

impl Layout {
    /// `messages`: for each message in order its topic, its queue, and how many messages of that queue
    /// precede it.
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

    /// A receipt for each message, in order. Empty if the broker did not name every queue, because a topic
    /// was deleted meanwhile.
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
