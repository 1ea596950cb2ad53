//! Files and bytes that rounds leave unused: this round, and rounds that a crash interrupted.

use std::io;

use super::Appends;
use crate::ids::QueueKey;
use crate::store::layout;
use crate::store::queue_files::{QueueName, View};

impl Appends<'_> {
    /// Frees unused space: files that turned out to be unneeded and, if the whole round failed, the bytes
    /// after the ends of the files that existed before. What cannot be freed now is freed when the queue is
    /// next appended to after a start.
    pub(in crate::store) fn tidy(&self, is_done: bool) {
        let counts = |view: &View| is_done && self.changed.contains_key(&view.key());
        let (disk, data) = (self.files.folder.disk(), self.files.folder.path());
        for view in self.made.iter().filter(|view| !counts(view)) {
            let file = layout::queue_data_file(data, &view.name, view.first, view.generation);
            let index = layout::queue_index_file(data, &view.name, view.first, view.generation);
            // It may not have been created yet.
            drop(disk.remove(&file));
            drop(disk.remove(&index));
        }
        for view in self.touched.iter().filter(|_| !is_done) {
            if let Err(error) = self.open(view) {
                tracing::warn!(queue = view.queue.0, %error, "a queue file keeps unused bytes");
            }
        }
    }

    /// Creates the folder of a queue, or removes what an interrupted round left in it.
    pub(super) fn sweep(&mut self, queue: QueueKey, name: &QueueName) -> io::Result<()> {
        let (disk, data) = (self.files.folder.disk(), self.files.folder.path());
        let folder = layout::queue_folder(data, name);
        disk.create_folder(&folder)?;
        if self.swept.contains(&queue) {
            return Ok(());
        }
        for file in disk.list(&folder)? {
            let Some((first, generation)) = layout::parse_queue_file(&file) else {
                continue;
            };
            if !self.needed.contains(&(queue, first, generation)) {
                disk.remove(&folder.join(file))?;
            }
        }
        self.swept.insert(queue);
        Ok(())
    }
}
