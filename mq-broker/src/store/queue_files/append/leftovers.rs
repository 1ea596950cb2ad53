//! What rounds leave that count for nothing: of this one, and of those that a crash cut short.

use std::io;

use super::Appends;
use crate::ids::QueueKey;
use crate::store::layout;
use crate::store::queue_files::{QueueName, View};

impl Appends<'_> {
    /// Gives the space back that does not count: of files that were made for nothing, and, if the whole round was for
    /// nothing, behind the ends of those that were there. What cannot be done now is done when the queue is next
    /// appended to after a start.
    pub(in crate::store) fn tidy(&self, is_done: bool) {
        let counts = |view: &View| is_done && self.changed.contains_key(&view.key());
        let (disk, data) = (self.files.folder.disk(), self.files.folder.path());
        for view in self.made.iter().filter(|view| !counts(view)) {
            let file = layout::queue_data_file(data, &view.name, view.first, view.generation);
            let index = layout::queue_index_file(data, &view.name, view.first, view.generation);
            // It may not have come so far as to be made.
            drop(disk.remove(&file));
            drop(disk.remove(&index));
        }
        for view in self.touched.iter().filter(|_| !is_done) {
            if let Err(error) = self.open(view) {
                tracing::warn!(queue = view.queue.0, %error, "a queue file keeps what does not count");
            }
        }
    }

    /// Makes the folder of a queue, or removes what a round left in it that did not come to its end.
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
