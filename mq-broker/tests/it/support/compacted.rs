//! What a core may show of queues that compact: of what was appended only a part, but of each key the last
//! message, unless that is a tombstone, and everything without a key. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use mq_common::batch::Batch;

use super::model::{Queue, View};

/// Key and payload of a message.
pub(crate) type Message = (Option<Vec<u8>>, Vec<u8>);

impl View {
    /// Whether a core that holds what this says may show that.
    pub(crate) fn is_shown_by(&self, found: &Self) -> bool {
        let queues = self.queues.iter().zip(&found.queues);
        let is_shown = |((key, queue), (found_key, found)): ((&u32, &Queue), (&u32, &Queue))| {
            let is_it = queue == found || (self.compacting.contains(key) && queue.is_shown_by(found));
            key == found_key && is_it
        };
        self.queues.len() == found.queues.len()
            && queues.into_iter().all(is_shown)
            && (&self.topics, &self.declared, &self.compacting)
                == (&found.topics, &found.declared, &found.compacting)
            && (&self.cursors, &self.lost) == (&found.cursors, &found.lost)
            && (&self.open, &self.verdicts) == (&found.open, &found.verdicts)
            && (self.next_queue, self.next_group) == (found.next_queue, found.next_group)
    }
}

impl Queue {
    fn is_shown_by(&self, found: &Self) -> bool {
        let (known, shown) = (self.messages(), found.messages());
        let is_known = |(offset, message): (&u64, &Message)| known.get(offset) == Some(message);
        (self.start, self.end) == (found.start, found.end)
            && shown.iter().all(is_known)
            && newest(&known).into_iter().all(|(key, offset)| {
                let is_tombstone = key.is_some() && known[&offset].1.is_empty();
                let has_key = || shown.values().any(|(shown, _)| *shown == key);
                shown.contains_key(&offset) || (is_tombstone && !has_key())
            })
    }

    /// From the start on, by their offsets.
    fn messages(&self) -> BTreeMap<u64, Message> {
        let batches = self.batches.iter();
        let mut all: BTreeMap<u64, Message> = batches
            .flat_map(|(base, region)| messages(*base, region))
            .collect();
        all.split_off(&self.start)
    }
}

/// The messages of a batch.
pub(crate) fn messages(base: u64, region: &Bytes) -> Vec<(u64, Message)> {
    let batch = Batch::parse_trusted(region.clone()).unwrap();
    let records = batch.records().unwrap();
    let messages = records.iter().map(|record| {
        let record = record.unwrap();
        (record.key.map(<[u8]>::to_vec), record.payload.to_vec())
    });
    (base..).zip(messages).collect()
}

/// The last offset of each key, and all that have none.
fn newest(known: &BTreeMap<u64, Message>) -> Vec<(Option<Vec<u8>>, u64)> {
    let mut last = BTreeMap::new();
    let mut all = Vec::new();
    for (offset, (key, _)) in known {
        match key {
            Some(key) => drop(last.insert(key.clone(), *offset)),
            None => all.push((None, *offset)),
        }
    }
    all.extend(last.into_iter().map(|(key, offset)| (Some(key), offset)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::workload::keyed;

    /// One batch a message; `None` = it is not there.
    fn queue(messages: &[Option<(&str, &str)>]) -> Queue {
        let there = (0..)
            .zip(messages)
            .filter_map(|(offset, message)| Some((offset, (*message)?)));
        let batches = there.map(|(offset, (key, payload))| {
            let key = (!key.is_empty()).then_some(key.as_bytes());
            let batch = keyed(&[(key, payload.as_bytes())]);
            (offset, Bytes::copy_from_slice(batch.bytes()))
        });
        Queue {
            start: 0,
            end: messages.len() as u64,
            batches: batches.collect(),
        }
    }

    #[test]
    fn older_messages_of_a_key_may_be_missing_and_nothing_else_but_a_tombstone_with_all_of_its_key() {
        let all = [
            Some(("a", "1")),
            Some(("b", "2")),
            Some(("", "3")),
            Some(("a", "4")),
            Some(("b", "")),
        ];
        let known = queue(&all);
        let shows = |gone: &[usize]| {
            let mut shown = all;
            for at in gone {
                shown[*at] = None;
            }
            known.is_shown_by(&queue(&shown))
        };
        for gone in [&[][..], &[0], &[1], &[0, 1], &[1, 4], &[0, 1, 4]] {
            assert!(shows(gone), "{gone:?}");
        }
        for gone in [&[2][..], &[3], &[0, 3], &[4], &[0, 4]] {
            assert!(!shows(gone), "{gone:?}");
        }
        let mut other = all;
        other[0] = Some(("a", "x"));
        assert!(!known.is_shown_by(&queue(&other)));
        other[0] = None;
        assert!(!known.is_shown_by(&queue(&other[..4])));
    }
}
