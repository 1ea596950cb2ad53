//! Removes files that a crash left of deleted topics. A round's files count for nothing before the manifest
//! lists them, and a queue that was deleted since gets no further round, which would tidy up before it
//! appends.
//!
//! The one invariant: folders that the manifest names are not touched, nor are folders that contain anything
//! no broker puts there. Files that an operator or a file system repair put aside are theirs.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use super::disk::Disk;
use super::{Store, layout};

impl Store {
    /// Removes the folders of topics of which no queue file is listed. Lists one folder, and reads only those
    /// folders that it removes. Not while a compaction round runs: the files it writes are not listed yet.
    ///
    /// # Errors
    /// As the operating system says of the last folder that could not be removed; the others are gone.
    pub fn sweep(&self) -> io::Result<()> {
        let (disk, data) = (self.folder.disk(), self.folder.path());
        let queues = layout::queues_folder(data);
        let there = match disk.list_folders(&queues) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            there => there?,
        };
        let listed: HashSet<String> = {
            let inner = self.lock();
            inner
                .index
                .files
                .queues()
                .map(layout::topic_folder_name)
                .collect()
        };
        let mut swept = Ok(());
        for topic in there.iter().filter(|topic| !listed.contains(*topic)) {
            let folder = queues.join(topic);
            let removed = leftovers(&**disk, &folder, topic).and_then(|leftovers| match leftovers {
                Some(leftovers) => remove(&**disk, &folder, leftovers).map(|()| true),
                None => Ok(false),
            });
            match removed {
                Ok(true) => {
                    tracing::info!(folder = %topic, "removed the remains of an interrupted round of a topic");
                }
                Ok(false) => {
                    tracing::warn!(folder = %folder.display(), "a folder among the queue files does not belong to the broker: it is kept");
                }
                // The others are removed nevertheless.
                Err(error) => swept = Err(error),
            }
        }
        swept
    }
}

/// Queues in the folder of a topic, and the names of their files.
type Queues = Vec<(String, Vec<String>)>;

/// The content of a topic's folder; `None` if any part of it was not made by a broker.
fn leftovers(disk: &dyn Disk, folder: &Path, topic: &str) -> io::Result<Option<Queues>> {
    if !layout::is_topic_folder(topic) || !disk.list(folder)?.is_empty() {
        return Ok(None);
    }
    let mut queues = Vec::new();
    for queue in disk.list_folders(folder)? {
        let path = folder.join(&queue);
        let files = disk.list(&path)?;
        let is_ours = layout::is_queue_folder(&queue)
            && disk.list_folders(&path)?.is_empty()
            && files.iter().all(|file| layout::is_of_a_queue(file));
        if !is_ours {
            return Ok(None);
        }
        queues.push((queue, files));
    }
    Ok(Some(queues))
}

/// Removes these files and folders. Files that have appeared meanwhile are kept, with their folder.
fn remove(disk: &dyn Disk, folder: &Path, queues: Queues) -> io::Result<()> {
    for (queue, files) in queues {
        let queue = folder.join(queue);
        for file in files {
            disk.remove(&queue.join(file))?;
        }
        disk.remove_folder(&queue)?;
    }
    disk.remove_folder(folder)
}
