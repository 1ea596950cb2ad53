//! Spare segments, ready before they are needed: zero-filled and synced, so that a later sync of a small
//! write commits no file-system metadata. They are new files or freed segments (`recycle`), which keep their
//! blocks.
//!
//! A thread of its own fills them, a piece at a time: while the log is idle, and slowly if it never is. A log
//! that outruns the thread takes plain new files; its groups are large then anyway.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::OpenError;
use super::disk_space::Seen;
use super::segment::poison;
use crate::log::Poisoned;
use crate::store::disk::{DiskFile, Mode, lacks_descriptors, write_all_at};
use crate::store::{Folder, SegmentId, layout};

/// The log counts as idle after this long without a write.
const IDLE: Duration = Duration::from_millis(50);
/// Although the log is not idle, a piece is filled this long after the previous one: 2 MiB a second, each
/// taking at most a few milliseconds of the disk's time.
const PACE: Duration = Duration::from_millis(500);
/// Bytes filled and synced at once: a write of the log may have to wait for one such piece.
const PIECE_BYTES: usize = 1024 * 1024;

/// The spares of a journal, and the thread that fills them.
#[derive(Debug)]
pub(super) struct Ahead {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) folder: Arc<Folder>,
    pub(super) segment_bytes: u32,
    /// Spares to create from new files.
    new_max: usize,
    /// Spares that are kept.
    pub(super) spares_max: usize,
    inner: Mutex<Inner>,
    pub(super) changed: Condvar,
    /// How full the disk was at the last check.
    pub(super) seen: Seen,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) ready: Vec<PathBuf>,
    /// Freed segments, renamed durably, that wait for their zeros.
    pub(super) freed: VecDeque<PathBuf>,
    /// Files that will become spares: those in `freed`, and the ones being renamed or filled.
    pub(super) coming: usize,
    /// The sealed segments that have a file.
    pub(super) sealed: BTreeSet<SegmentId>,
    next_number: u64,
    last_write: Instant,
    last_piece: Instant,
    pub(super) stopping: bool,
    /// No more spares are filled: the disk is full, or a sync failed.
    pub(super) gave_up: bool,
    failed: Option<Poisoned>,
}

impl Ahead {
    /// Finds the spares that are ready, removes unfinished ones, and starts the thread if spares are to be
    /// filled.
    pub(super) fn open(
        folder: &Arc<Folder>,
        segment_bytes: u32,
        new_max: usize,
        spares_max: usize,
    ) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared::find(folder, segment_bytes, new_max, spares_max)?);
        let thread = if new_max > 0 || spares_max > 0 {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name("journal-ahead".into());
            let started = builder.spawn(move || shared.run());
            Some(started.map_err(|source| OpenError::Io {
                operation: "start the thread for",
                path: layout::journal_folder(folder.path()),
                source,
            })?)
        } else {
            None
        };
        Ok(Self { shared, thread })
    }

    /// Shared with the [`Recycler`](super::Recycler) and [`Space`](super::Space).
    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The log continues in segment `active`; all others are sealed.
    pub(super) fn begun(&self, active: SegmentId) {
        self.shared.lock().sealed.remove(&active);
    }

    /// The segment has its footer, durably.
    pub(super) fn sealed(&self, segment: SegmentId) {
        self.shared.lock().sealed.insert(segment);
    }

    /// A spare, if one is ready.
    pub(super) fn take(&self) -> Option<PathBuf> {
        let mut inner = self.shared.lock();
        let spare = inner.ready.pop();
        drop(inner);
        self.shared.changed.notify_all();
        spare
    }

    /// Returns a spare that could not be used after all.
    pub(super) fn put_back(&self, spare: PathBuf) {
        self.shared.lock().ready.push(spare);
    }

    /// The log wrote: the disk is not idle.
    pub(super) fn wrote(&self) {
        if self.thread.is_some() {
            self.shared.lock().last_write = Instant::now();
        }
    }

    /// Whether the thread has work or has failed: the log then checks for its failure now and then.
    pub(super) fn is_to_be_watched(&self) -> bool {
        let inner = self.shared.lock();
        self.thread.is_some() && (inner.is_failed() || inner.has_work(self.shared.new_max))
    }

    /// A failed sync of a spare: the disk can no longer be trusted.
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
    fn has_work(&self, new_max: usize) -> bool {
        !self.gave_up && (!self.freed.is_empty() || self.ready.len() + self.coming < new_max)
    }

    /// Whether a sync failed.
    pub(super) const fn is_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// The number of the next spare.
    pub(super) const fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }
}

/// Why filling ended early.
enum Ended {
    Stopping,
    Sync(Poisoned),
    Other(io::Error),
}

impl Shared {
    fn find(
        folder: &Arc<Folder>,
        segment_bytes: u32,
        new_max: usize,
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
        let (mut ready, mut sealed) = (Vec::new(), BTreeSet::new());
        let mut next_number = 1;
        for name in folder.disk().list(&parent).map_err(fail("list"))? {
            sealed.extend(layout::parse_segment(&name));
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
        let now = Instant::now();
        Ok(Self {
            folder: Arc::clone(folder),
            segment_bytes,
            new_max,
            spares_max: spares_max.max(new_max),
            inner: Mutex::new(Inner {
                ready,
                freed: VecDeque::new(),
                coming: 0,
                sealed,
                next_number,
                last_write: now,
                last_piece: now,
                stopping: false,
                gave_up: false,
                failed: None,
            }),
            changed: Condvar::new(),
            seen: Seen::default(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `free` bytes are free: if filling was given up for lack of space and this is enough, it
    /// resumes. Returns how many spares are ready.
    pub(super) fn there_is_space(&self, free: u64) -> usize {
        let mut inner = self.lock();
        if inner.gave_up && !inner.is_failed() && free >= self.fill_bytes() {
            inner.gave_up = false;
            self.changed.notify_all();
        }
        inner.ready.len()
    }

    /// How many spares are kept: on a full disk only the reserve, so that freed segments give their space
    /// back.
    pub(super) fn kept_max(&self) -> usize {
        if self.seen.is_full() {
            self.new_max
        } else {
            self.spares_max
        }
    }

    /// Bytes that must be free before a new spare is filled: it must not take the last free bytes.
    fn fill_bytes(&self) -> u64 {
        2 * u64::from(self.segment_bytes)
    }

    fn run(&self) {
        while self.wait(|inner| inner.has_work(self.new_max)) {
            match self.fill_one() {
                Ok(()) => {}
                Err(Ended::Stopping) => return,
                Err(Ended::Sync(poisoned)) => self.fail(poisoned),
                Err(Ended::Other(error)) => {
                    tracing::warn!(%error, "no spare journal segments are filled until a segment is freed or the broker restarts");
                    self.lock().gave_up = true;
                }
            }
        }
    }

    /// After this failed sync, nothing the system says about the disk can be trusted: the log finds the
    /// failure and stops.
    pub(super) fn fail(&self, poisoned: Poisoned) {
        let mut inner = self.lock();
        inner.failed = Some(poisoned);
        inner.gave_up = true;
    }

    /// Waits until there is work and the disk has time for it; false = stop.
    fn wait(&self, has_work: impl Fn(&Inner) -> bool) -> bool {
        let mut inner = self.lock();
        loop {
            if inner.stopping {
                return false;
            }
            let until = (inner.last_write + IDLE).min(inner.last_piece + PACE);
            let left = until.saturating_duration_since(Instant::now());
            inner = if !has_work(&inner) {
                self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner)
            } else if left.is_zero() {
                return true;
            } else {
                let waited = self.changed.wait_timeout(inner, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    /// Makes a spare: from a freed segment if there is one, else from a new file.
    fn fill_one(&self) -> Result<(), Ended> {
        let disk = self.folder.disk();
        let (freed, number) = {
            let mut inner = self.lock();
            let freed = inner.freed.pop_front();
            if freed.is_none() {
                inner.coming += 1;
            }
            (freed, inner.number())
        };
        let (filling, mode) = match freed {
            Some(path) => (path, Mode::Write),
            None => (
                layout::spare_file(self.folder.path(), number, false),
                Mode::CreateNew,
            ),
        };
        let ready = layout::spare_file(self.folder.path(), number, true);
        let filled = self
            .has_space(mode)
            .and_then(|()| disk.open(&filling, mode))
            .map_err(Ended::Other)
            .and_then(|file| self.fill(&*file, &filling))
            .and_then(|()| disk.rename(&filling, &ready).map_err(Ended::Other));
        if filled.is_err() {
            // Best effort: the next start removes it.
            drop(disk.remove(&filling));
        }
        let parent = layout::journal_folder(self.folder.path());
        let named = filled.and_then(|()| match disk.sync_folder(&parent) {
            // Without a file descriptor, the name is made durable when the spare is used.
            Err(error) if !lacks_descriptors(&error) => Err(Ended::Sync(poison("sync", &parent)(error))),
            _ => Ok(()),
        });
        let mut inner = self.lock();
        inner.coming -= 1;
        named?;
        inner.ready.push(ready);
        Ok(())
    }

    fn has_space(&self, mode: Mode) -> io::Result<()> {
        if mode == Mode::CreateNew && self.folder.disk().space(self.folder.path())?.free < self.fill_bytes() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Overwrites the whole file with zeros, including what a freed segment held.
    fn fill(&self, file: &dyn DiskFile, path: &Path) -> Result<(), Ended> {
        let zeros = vec![0; PIECE_BYTES];
        let bytes = self.segment_bytes as usize;
        if file.bytes().map_err(Ended::Other)? > bytes as u64 {
            file.set_bytes(bytes as u64).map_err(Ended::Other)?;
        }
        for from in (0..bytes).step_by(PIECE_BYTES) {
            if !self.wait(|_| true) {
                return Err(Ended::Stopping);
            }
            let piece = &zeros[..PIECE_BYTES.min(bytes - from)];
            write_all_at(file, &mut [IoSlice::new(piece)], from as u64).map_err(Ended::Other)?;
            file.sync_data()
                .map_err(|error| Ended::Sync(poison("sync", path)(error)))?;
            self.lock().last_piece = Instant::now();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
        let ahead = Ahead::open(&folder(&disk), 5000, 2, 2).unwrap();
        wait_until(&ahead, |inner| inner.ready.len() == 2);
        let spare = ahead.take().unwrap();
        assert!(spare.extension().is_some_and(|extension| extension == "spare"));
        drop(ahead);
        disk.crash(Crash::LoseUnsynced);
        assert_eq!(disk.content(&spare), Some(vec![0; 5000]));
        let ahead = Ahead::open(&folder(&disk), 5000, 0, 0).unwrap();
        let mut found: Vec<_> = std::iter::from_fn(|| ahead.take()).collect();
        found.sort();
        // The one that was taken may have been replaced by a third one before the crash.
        assert!(
            found.contains(&spare) && (2..=3).contains(&found.len()),
            "{found:?}"
        );
        let other_size = Ahead::open(&folder(&TestDisk::default()), 4000, 0, 0).unwrap();
        assert!(other_size.take().is_none());
    }

    #[test]
    fn half_filled_spares_are_removed_at_start() {
        let disk = TestDisk::default();
        let journal = Path::new("d/journal");
        disk.set_content(&journal.join("0000000000000007.filling"), vec![0; 5000]);
        disk.set_content(&journal.join("0000000000000008.spare"), vec![0; 4999]);
        let ahead = Ahead::open(&folder(&disk), 5000, 0, 0).unwrap();
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
        let ahead = Ahead::open(&locked, 5000, 1, 1).unwrap();
        wait_until(&ahead, |inner| inner.failed.is_some());
        assert!(ahead.failed().is_some());
        assert!(ahead.is_to_be_watched(), "an idle log finds it, too");
    }

    #[test]
    fn a_full_disk_ends_filling_and_nothing_else() {
        let disk = TestDisk::default();
        let locked = folder(&disk);
        disk.set_faults(Faults {
            full_from_write: 1,
            ..Faults::default()
        });
        let ahead = Ahead::open(&locked, 5000, 1, 1).unwrap();
        wait_until(&ahead, |inner| inner.gave_up);
        assert!(ahead.failed().is_none());
    }
}
