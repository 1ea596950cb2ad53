//! Names of the queues that the checkpoint's keys stand for.

use std::collections::HashMap;

use crate::checkpoint::Saved;
use crate::ids::QueueKey;
use crate::store::PlacedRow;

use super::report::Damage;

/// Topic and queue number of each queue key.
#[derive(Debug, Default)]
pub(super) struct Names {
    queues: HashMap<QueueKey, (String, u32)>,
}

impl Names {
    pub(super) fn of(saved: &Saved) -> Self {
        let queues = saved.rows.queues.iter();
        let queues = queues.map(|queue| (queue.key, (queue.topic.to_string(), queue.number.0)));
        Self {
            queues: queues.collect(),
        }
    }

    /// Adds to the damage of a batch which messages it held.
    pub(super) fn name(&self, damage: &mut Damage, row: &PlacedRow) {
        damage.lsn.get_or_insert(row.lsn.0);
        if let Some((topic, number)) = self.queues.get(&row.queue) {
            damage.topic = Some(topic.clone());
            damage.queue = Some(*number);
        } else {
            damage.what += ", of a queue that was deleted";
        }
        damage.first_offset = Some(row.base_offset.0);
        damage.end_offset = Some(row.end().0);
    }
}
