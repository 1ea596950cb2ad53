//! Makes a round's copies durable: all at once, or one by one where the system cannot do that.

use std::collections::BTreeSet;
use std::io;

use super::RoundError;
use crate::store::disk::{FilesystemSync, lacks_descriptors};
use crate::store::queue_files::{Appends, View};
use crate::store::{Store, layout};

/// Before the first write, so that no failure on the way to the disk goes unnoticed.
pub(super) fn begin_sync(store: &Store) -> io::Result<Option<Box<dyn FilesystemSync>>> {
    let folder = layout::queues_folder(store.folder.path());
    store.folder.disk().create_folder(&folder)?;
    store.folder.disk().begin_filesystem_sync(&folder)
}

/// Makes the copies and the names of their files durable.
pub(super) fn sync(
    store: &Store,
    appends: &mut Appends<'_>,
    changed: &[View],
    syncing: Option<Box<dyn FilesystemSync>>,
) -> Result<(), RoundError> {
    if changed.is_empty() {
        return Ok(());
    }
    if let Some(syncing) = syncing {
        return syncing.finish().map_err(RoundError::Sync);
    }
    appends.sync().map_err(RoundError::Sync)?;
    let (disk, data) = (store.folder.disk(), store.folder.path());
    let folders = changed.iter().map(|view| layout::queue_folder(data, &view.name));
    for folder in folders.collect::<BTreeSet<_>>() {
        match disk.sync_folder(&folder) {
            // The sync was not even attempted: nothing is lost, and the next round repeats all of it.
            Err(error) if lacks_descriptors(&error) => return Err(RoundError::Write(error)),
            synced => synced.map_err(RoundError::Sync)?,
        }
    }
    Ok(())
}
