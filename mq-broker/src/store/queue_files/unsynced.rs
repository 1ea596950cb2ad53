//! The files that a round writes, where each has to be synced separately. Each is synced through the
//! descriptor that it was written through: the system reports a failed write-back to processes that had the
//! file open meanwhile, and not reliably to those that open it later.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::{FileKey, View};
use crate::store::disk::DiskFile;

/// Number of files open at once.
const FILES_MAX: usize = 256;

/// The files written in this round and not synced yet.
#[derive(Debug)]
pub(super) struct Unsynced {
    /// Whether they are kept at all: not where the whole file system is synced.
    keeps: bool,
    files: BTreeMap<FileKey, Arc<dyn DiskFile>>,
}

impl Unsynced {
    pub(super) const fn new(keeps: bool) -> Self {
        Self {
            keeps,
            files: BTreeMap::new(),
        }
    }

    /// The file, if it was written in this round and not synced since.
    pub(super) fn of(&self, view: &View) -> Option<Arc<dyn DiskFile>> {
        self.files.get(&view.key()).map(Arc::clone)
    }

    /// This file is about to be written; no other file is written until its own next call.
    ///
    /// # Errors
    /// There were so many that they were synced first, and that failed: the process must stop.
    pub(super) fn keep(&mut self, view: &View, file: &Arc<dyn DiskFile>) -> io::Result<()> {
        if !self.keeps {
            return Ok(());
        }
        let key = view.key();
        if self.files.len() >= FILES_MAX && !self.files.contains_key(&key) {
            self.sync()?;
        }
        self.files.insert(key, Arc::clone(file));
        Ok(())
    }

    /// Makes all of them durable and closes them.
    ///
    /// # Errors
    /// As the operating system says; poison.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        for file in std::mem::take(&mut self.files).into_values() {
            file.sync_data()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use mq_common::ids::{Offset, QueueNumber, TopicId, TopicName};

    use super::super::{FileSegment, QueueName};
    use super::*;
    use crate::ids::QueueKey;
    use crate::store::disk::{Disk as _, Mode, TestDisk};

    #[test]
    fn no_more_than_256_files_are_open_and_each_is_synced_once() {
        let disk = TestDisk::default();
        let mut unsynced = Unsynced::new(true);
        for number in 0..600 {
            let view = View {
                queue: QueueKey(number),
                first: Offset(0),
                generation: 0,
                segment: FileSegment {
                    end: Offset(1),
                    bytes: 1,
                    planned_bytes: 1,
                },
                name: QueueName {
                    topic: Arc::new(TopicName::new("orders").unwrap()),
                    topic_id: TopicId(7),
                    number: QueueNumber(number),
                },
            };
            let path: PathBuf = Path::new("d").join(number.to_string());
            let file = disk.open(&path, Mode::CreateNew).unwrap();
            unsynced.keep(&view, &file).unwrap();
            // Again in the same round.
            unsynced.keep(&view, &file).unwrap();
            assert!(unsynced.of(&view).is_some());
            assert!(unsynced.files.len() <= FILES_MAX);
        }
        assert_eq!(disk.syncs(), 512);
        unsynced.sync().unwrap();
        assert_eq!((disk.syncs(), unsynced.files.len()), (600, 0));
    }
}
