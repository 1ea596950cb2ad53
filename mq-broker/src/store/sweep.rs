//! Removes what a crash left of topics that are gone: a round's files count for nothing before the manifest lists them, and
//! a queue that was deleted since gets no other round, which would tidy up before it appends.
//!
//! The one invariant: of a folder that the manifest names nothing is touched.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use super::disk::Disk;
use super::{Store, layout};

impl Store {
    /// Removes the folders of topics of which no queue file is listed. Lists one folder, and looks into those only that it
    /// removes. Not while a round runs: what that makes is not listed yet.
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
            match remove_topic(&**disk, &queues.join(topic)) {
                Ok(()) => {
                    tracing::info!(folder = %topic, "removed what a round that was cut short had left of a topic");
                }
                // The others go all the same.
                failed => swept = failed,
            }
        }
        swept
    }
}

/// Where there is something that no broker puts there, it stays.
fn remove_topic(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    for queue in disk.list_folders(folder)? {
        let queue = folder.join(queue);
        for file in disk.list(&queue)? {
            disk.remove(&queue.join(file))?;
        }
        disk.remove_folder(&queue)?;
    }
    disk.remove_folder(folder)
}
