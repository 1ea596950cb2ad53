//! The list of queue files. Pure: about 64 bytes per queue, and no file is opened for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use mq_common::ids::{Offset, QueueNumber, TopicId, TopicName};

use crate::ids::QueueKey;

/// The names that the folder of a queue is built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueName {
    /// Its topic.
    pub topic: Arc<TopicName>,
    /// The topic's identity.
    pub topic_id: TopicId,
    /// Its number in the topic.
    pub number: QueueNumber,
}

/// A segment of a queue's files, identified by its queue and its first offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSegment {
    /// The offset after its last one.
    pub end: Offset,
    /// Number of bytes of its file that are in use.
    pub bytes: u32,
    /// The next segment begins after this many bytes.
    pub planned_bytes: u32,
}

/// A row of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    /// The queue.
    pub queue: QueueKey,
    /// Its first offset.
    pub first: Offset,
    /// How often its content was compacted by keys; 0 = never. Together with the first offset part of the
    /// file's name.
    pub generation: u32,
    /// Its extent.
    pub segment: FileSegment,
    /// The names of its folder.
    pub name: QueueName,
    /// It is no longer needed and only waits for its file to be removed.
    pub is_gone: bool,
}

/// A segment to read, as it was in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct View {
    pub(in super::super) queue: QueueKey,
    pub(in super::super) first: Offset,
    pub(in super::super) generation: u32,
    pub(in super::super) segment: FileSegment,
    pub(in super::super) name: QueueName,
}

/// The file: queue, first offset and generation. For files in use the first two are unique.
pub type FileKey = (QueueKey, Offset, u32);

/// All queue files.
#[derive(Debug, Default)]
pub(in super::super) struct Manifest {
    segments: BTreeMap<(QueueKey, Offset), FileSegment>,
    /// Of the segments that were compacted by keys: a queue that never is pays nothing for it.
    generations: BTreeMap<(QueueKey, Offset), u32>,
    names: BTreeMap<QueueKey, QueueName>,
    /// Files that are no longer needed, until they are removed.
    gone: Vec<View>,
    /// Bytes in use of all segments.
    bytes: u64,
}

impl Manifest {
    /// As the checkpoint kept it.
    pub(in super::super) fn load(rows: Vec<FileRow>) -> Self {
        let mut manifest = Self::default();
        let mut topics: BTreeMap<(Arc<TopicName>, u64), Arc<TopicName>> = BTreeMap::new();
        for row in rows {
            let mut name = row.name;
            let shared = topics.entry((Arc::clone(&name.topic), name.topic_id.0));
            name.topic = Arc::clone(shared.or_insert_with(|| Arc::clone(&name.topic)));
            let view = View {
                queue: row.queue,
                first: row.first,
                generation: row.generation,
                segment: row.segment,
                name,
            };
            if row.is_gone {
                manifest.gone.push(view);
            } else {
                manifest.put(view);
            }
        }
        manifest
    }

    /// The segment that holds this offset.
    pub(in super::super) fn find(&self, queue: QueueKey, offset: Offset) -> Option<View> {
        let from = (queue, Offset(0))..=(queue, offset);
        let ((_, first), segment) = self.segments.range(from).next_back()?;
        (offset < segment.end).then(|| self.view(queue, *first, *segment))?
    }

    /// The first segment of a queue that begins after this offset.
    pub(in super::super) fn first_behind(&self, queue: QueueKey, offset: Offset) -> Option<Offset> {
        let behind = (queue, Offset(offset.0.saturating_add(1)))..=(queue, Offset(u64::MAX));
        self.segments.range(behind).next().map(|((_, first), _)| *first)
    }

    /// One segment.
    pub(in super::super) fn get(&self, queue: QueueKey, first: Offset) -> Option<View> {
        let segment = self.segments.get(&(queue, first))?;
        self.view(queue, first, *segment)
    }

    /// A queue's segments, in order.
    pub(in super::super) fn of(&self, queue: QueueKey) -> impl DoubleEndedIterator<Item = View> {
        let all = (queue, Offset(0))..=(queue, Offset(u64::MAX));
        self.segments
            .range(all)
            .filter_map(|((queue, first), segment)| self.view(*queue, *first, *segment))
    }

    fn view(&self, queue: QueueKey, first: Offset, segment: FileSegment) -> Option<View> {
        let name = self.names.get(&queue)?.clone();
        let generation = self.generations.get(&(queue, first));
        Some(View {
            queue,
            first,
            generation: generation.copied().unwrap_or(0),
            segment,
            name,
        })
    }

    /// The queues that have files, including those that only wait for removal. A queue may occur more than
    /// once.
    pub(in super::super) fn queues(&self) -> impl Iterator<Item = &QueueName> {
        self.names.values().chain(self.gone.iter().map(|view| &view.name))
    }

    /// The queues that have files other than those that wait for removal.
    pub(in super::super) fn listed(&self) -> impl Iterator<Item = QueueKey> {
        self.names.keys().copied()
    }

    /// Whether this queue is one of them.
    pub(in super::super) fn has(&self, queue: QueueKey) -> bool {
        self.names.contains_key(&queue)
    }

    /// Bytes in use in all files.
    pub(in super::super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All segments, for reading.
    pub(in super::super) fn views(&self) -> Vec<View> {
        let all = self.segments.iter();
        all.filter_map(|((queue, first), segment)| self.view(*queue, *first, *segment))
            .collect()
    }

    /// Adds a new segment, or extends one.
    pub(in super::super) fn put(&mut self, view: View) {
        let place = (view.queue, view.first);
        let before = self.segments.insert(place, view.segment);
        self.bytes -= before.map_or(0, |before| u64::from(before.bytes));
        self.bytes += u64::from(view.segment.bytes);
        if view.generation > 0 {
            self.generations.insert(place, view.generation);
        } else {
            self.generations.remove(&place);
        }
        self.names.entry(view.queue).or_insert(view.name);
    }

    /// This segment is no longer needed: its file may be removed once that is in the checkpoint.
    pub(in super::super) fn drop_segment(&mut self, view: &View) {
        let place = (view.queue, view.first);
        if let Some(segment) = self.segments.remove(&place) {
            self.bytes -= u64::from(segment.bytes);
        }
        self.generations.remove(&place);
        self.gone.push(view.clone());
        if self.of(view.queue).next().is_none() {
            self.names.remove(&view.queue);
        }
    }

    /// The files that only wait for removal.
    pub(in super::super) fn gone(&self) -> &[View] {
        &self.gone
    }

    /// The file was removed.
    pub(in super::super) fn removed(&mut self, file: FileKey) {
        self.gone.retain(|view| view.key() != file);
    }
}

impl FileRow {
    /// Which file it is.
    #[must_use]
    pub const fn key(&self) -> FileKey {
        (self.queue, self.first, self.generation)
    }
}

impl View {
    /// Which file it is.
    pub(in super::super) const fn key(&self) -> FileKey {
        (self.queue, self.first, self.generation)
    }

    /// Its row.
    pub(in super::super) fn row(&self, is_gone: bool) -> FileRow {
        FileRow {
            queue: self.queue,
            first: self.first,
            generation: self.generation,
            segment: self.segment,
            name: self.name.clone(),
            is_gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(queue: u32, first: u64, end: u64) -> FileRow {
        FileRow {
            queue: QueueKey(queue),
            first: Offset(first),
            generation: 0,
            segment: FileSegment {
                end: Offset(end),
                bytes: 100,
                planned_bytes: 1 << 20,
            },
            name: QueueName {
                topic: Arc::new(TopicName::new("orders").unwrap()),
                topic_id: TopicId(7),
                number: QueueNumber(queue),
            },
            is_gone: false,
        }
    }

    #[test]
    fn a_segment_is_found_by_any_offset_of_it_and_gaps_belong_to_none() {
        let manifest = Manifest::load(vec![
            row(1, 5, 10),
            row(1, 10, 20),
            row(1, 30, 40),
            row(2, 0, 100),
        ]);
        let find = |offset| {
            manifest
                .find(QueueKey(1), Offset(offset))
                .map(|view| view.first.0)
        };
        let found: Vec<_> = [4, 5, 9, 10, 19, 20, 29, 30, 39, 40].map(find).to_vec();
        let expected = [
            None,
            Some(5),
            Some(5),
            Some(10),
            Some(10),
            None,
            None,
            Some(30),
            Some(30),
            None,
        ];
        assert_eq!(found, expected);
        assert_eq!(manifest.first_behind(QueueKey(1), Offset(10)), Some(Offset(30)));
        assert_eq!(manifest.first_behind(QueueKey(1), Offset(30)), None);
        assert_eq!(manifest.bytes(), 400);
    }

    #[test]
    fn a_dropped_segment_waits_until_its_file_is_removed_also_over_a_start() {
        let mut manifest = Manifest::load(vec![row(1, 0, 10), row(1, 10, 20)]);
        let first = manifest.get(QueueKey(1), Offset(0)).unwrap();
        manifest.drop_segment(&first);
        assert_eq!(manifest.find(QueueKey(1), Offset(3)), None);
        assert_eq!(manifest.bytes(), 100, "what waits does not count");
        manifest.put(manifest.get(QueueKey(1), Offset(10)).unwrap());
        assert_eq!(manifest.bytes(), 100, "nor anything twice");
        assert_eq!(manifest.gone().len(), 1);
        let rows = vec![first.row(true), row(1, 10, 20)];
        let mut again = Manifest::load(rows);
        assert_eq!(again.gone(), manifest.gone());
        again.removed(first.key());
        assert!(again.gone().is_empty());
        assert!(again.find(QueueKey(1), Offset(10)).is_some());
    }

    #[test]
    fn a_queue_at_rest_costs_at_most_64_bytes() {
        let segment = size_of::<((QueueKey, Offset), FileSegment)>();
        let name = size_of::<(QueueKey, QueueName)>();
        assert!(segment + name <= 64, "{segment} + {name}");
    }
}
