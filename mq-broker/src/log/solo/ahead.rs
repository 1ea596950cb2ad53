//! Spare segments, ready before they are needed: zero-filled and synced, so that a later sync of a small write commits
//! no file-system metadata. A thread of its own fills them, a piece at a time and only while the log is idle; a log
//! that is never idle takes plain new files, whose groups are large then anyway.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::OpenError;
use super::segment::poison;
use crate::log::Poisoned;
use crate::store::disk::{DiskFile, Mode, write_all_at};
use crate::store::{Folder, layout};

/// The log counts as idle after this long without a write.
const IDLE: Duration = Duration::from_millis(50);
/// Bytes filled and synced at once: what a write of the log may have to wait for.
const PIECE_BYTES: usize = 1024 * 1024;

/// The spares of a journal, and the thread that fills them.
#[derive(Debug)]
pub(super) struct Ahead {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    folder: Arc<Folder>,
    segment_bytes: u32,
    spares_max: usize,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    ready: Vec<PathBuf>,
    next_number: u64,
    last_write: Instant,
    stopping: bool,
    /// No more are filled: the disk is full, or a sync failed.
    gave_up: bool,
    failed: Option<Poisoned>,
}

impl Ahead {
    /// Finds the spares that are ready, removes those that are not, and starts the thread if any are to be filled.
    pub(super) fn open(
        folder: &Arc<Folder>,
        segment_bytes: u32,
        spares_max: usize,
    ) -> Result<Self, OpenError> {
        let parent = layout::journal_folder(folder.path());
        let fail = |operation| {
            let path = parent.clone();
            move |source| OpenError::Io {
                operation,
                path,
                source,
            }
        };
        let mut ready = Vec::new();
        let mut next_number = 1;
        for name in folder.disk().list(&parent).map_err(fail("list"))? {
            let Some((number, is_ready)) = layout::parse_spare(&name) else {
                continue;
            };
            next_number = next_number.max(number + 1);
            let path = layout::spare_file(folder.path(), number, is_ready);
            let file = folder.disk().open(&path, Mode::Read).map_err(fail("open"))?;
            if is_ready && file.bytes().map_err(fail("look into"))? == u64::from(segment_bytes) {
                ready.push(path);
            } else {
                folder.disk().remove(&path).map_err(fail("clean"))?;
            }
        }
        let shared = Arc::new(Shared {
            folder: Arc::clone(folder),
            segment_bytes,
            spares_max,
            inner: Mutex::new(Inner {
                ready,
                next_number,
                last_write: Instant::now(),
                stopping: false,
                gave_up: false,
                failed: None,
            }),
            changed: Condvar::new(),
        });
        let thread = if spares_max > 0 {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name("journal-ahead".into());
            Some(
                builder
                    .spawn(move || shared.run())
                    .map_err(fail("start the thread for"))?,
            )
        } else {
            None
        };
        Ok(Self { shared, thread })
    }

    /// A spare, if one is ready.
    pub(super) fn take(&self) -> Option<PathBuf> {
        let mut inner = self.shared.lock();
        let spare = inner.ready.pop();
        drop(inner);
        self.shared.changed.notify_all();
        spare
    }

    /// The log wrote: the disk is not idle.
    pub(super) fn wrote(&self) {
        if self.thread.is_some() {
            self.shared.lock().last_write = Instant::now();
        }
    }

    /// Whether the thread has work: then the log looks for its failure now and then.
    pub(super) fn is_filling(&self) -> bool {
        self.thread.is_some() && self.shared.lock().lacks(self.shared.spares_max)
    }

    /// A failed sync of a spare: the disk cannot be believed any more.
    pub(super) fn failed(&self) -> Option<Poisoned> {
        self.thread.as_ref()?;
        self.shared.lock().failed.clone()
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that fills spare segments panicked");
        }
    }
}

impl Inner {
    const fn lacks(&self, spares_max: usize) -> bool {
        self.ready.len() < spares_max && !self.gave_up
    }
}

/// Why filling ended early.
enum Ended {
    Stopping,
    Sync(Poisoned),
    Other(io::Error),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while self.wait(|inner| inner.lacks(self.spares_max)) {
            match self.fill_one() {
                Ok(()) => {}
                Err(Ended::Stopping) => return,
                Err(Ended::Sync(poisoned)) => {
                    let mut inner = self.lock();
                    inner.failed = Some(poisoned);
                    inner.gave_up = true;
                }
                Err(Ended::Other(error)) => {
                    tracing::warn!(%error, "no spare journal segments are filled any more until the next start");
                    self.lock().gave_up = true;
                }
            }
        }
    }

    /// Waits until there is work and the log is idle; false = stop.
    fn wait(&self, has_work: impl Fn(&Inner) -> bool) -> bool {
        let mut inner = self.lock();
        loop {
            if inner.stopping {
                return false;
            }
            let idle = inner.last_write.elapsed();
            inner = if !has_work(&inner) {
                self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner)
            } else if idle < IDLE {
                let waited = self.changed.wait_timeout(inner, IDLE.saturating_sub(idle));
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                return true;
            };
        }
    }

    fn fill_one(&self) -> Result<(), Ended> {
        let number = {
            let mut inner = self.lock();
            inner.next_number += 1;
            inner.next_number - 1
        };
        let disk = self.folder.disk();
        let filling = layout::spare_file(self.folder.path(), number, false);
        let file = disk.open(&filling, Mode::CreateNew).map_err(Ended::Other)?;
        let filled = self.fill(&*file, &filling);
        if filled.is_err() {
            // Best effort: the next start removes it.
            drop(disk.remove(&filling));
        }
        filled?;
        let ready = layout::spare_file(self.folder.path(), number, true);
        disk.rename(&filling, &ready).map_err(Ended::Other)?;
        let parent = layout::journal_folder(self.folder.path());
        disk.sync_folder(&parent)
            .map_err(|error| Ended::Sync(poison("sync", &parent)(error)))?;
        self.lock().ready.push(ready);
        Ok(())
    }

    fn fill(&self, file: &dyn DiskFile, path: &std::path::Path) -> Result<(), Ended> {
        let zeros = vec![0; PIECE_BYTES];
        let bytes = self.segment_bytes as usize;
        for from in (0..bytes).step_by(PIECE_BYTES) {
            if !self.wait(|_| true) {
                return Err(Ended::Stopping);
            }
            let piece = &zeros[..PIECE_BYTES.min(bytes - from)];
            write_all_at(file, &mut [IoSlice::new(piece)], from as u64).map_err(Ended::Other)?;
            file.sync_data()
                .map_err(|error| Ended::Sync(poison("sync", path)(error)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store::disk::{Crash, Disk as _, Faults, TestDisk};

    fn folder(disk: &TestDisk) -> Arc<Folder> {
        Folder::open(Arc::new(disk.clone()), Path::new("d")).unwrap()
    }

    fn wait_until(ahead: &Ahead, done: impl Fn(&Inner) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done(&ahead.shared.lock()) {
            assert!(Instant::now() < deadline, "{:?}", ahead.shared.lock());
            std::thread::yield_now();
        }
    }

    #[test]
    fn spares_are_filled_durable_and_found_again() {
        let disk = TestDisk::default();
        let ahead = Ahead::open(&folder(&disk), 5000, 2).unwrap();
        wait_until(&ahead, |inner| inner.ready.len() == 2);
        let spare = ahead.take().unwrap();
        assert!(spare.extension().is_some_and(|extension| extension == "spare"));
        drop(ahead);
        disk.crash(Crash::LoseUnsynced);
        assert_eq!(disk.content(&spare), Some(vec![0; 5000]));
        let ahead = Ahead::open(&folder(&disk), 5000, 0).unwrap();
        assert!(ahead.take().is_some() && ahead.take().is_some() && ahead.take().is_none());
        let other_size = Ahead::open(&folder(&TestDisk::default()), 4000, 0).unwrap();
        assert!(other_size.take().is_none());
    }

    #[test]
    fn half_filled_spares_are_removed_at_start() {
        let disk = TestDisk::default();
        let journal = Path::new("d/journal");
        disk.set_content(&journal.join("0000000000000007.filling"), vec![0; 5000]);
        disk.set_content(&journal.join("0000000000000008.spare"), vec![0; 4999]);
        let ahead = Ahead::open(&folder(&disk), 5000, 0).unwrap();
        assert!(ahead.take().is_none());
        assert!(disk.list(journal).unwrap().is_empty());
    }

    #[test]
    fn a_failed_sync_of_a_spare_is_reported() {
        let disk = TestDisk::default();
        let locked = folder(&disk);
        disk.set_faults(Faults {
            fail_sync: 1,
            ..Faults::default()
        });
        let ahead = Ahead::open(&locked, 5000, 1).unwrap();
        wait_until(&ahead, |inner| inner.failed.is_some());
        assert!(ahead.failed().is_some());
        assert!(!ahead.is_filling());
    }

    #[test]
    fn a_full_disk_ends_filling_and_nothing_else() {
        let disk = TestDisk::default();
        let locked = folder(&disk);
        disk.set_faults(Faults {
            full_from_write: 1,
            ..Faults::default()
        });
        let ahead = Ahead::open(&locked, 5000, 1).unwrap();
        wait_until(&ahead, |inner| inner.gave_up);
        assert!(ahead.failed().is_none());
    }
}
