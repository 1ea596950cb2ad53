//! A disk in memory that keeps exactly what it must and no more: for tests of crashes, failed syncs and short
//! writes.
//!
//! Each file has the bytes that programs see and the bytes that are on the disk; a sync copies the sectors
//! that were written since. A failed sync forgets that they were written, as Linux does: a later sync
//! succeeds and persists nothing of them. Names are durable only after their folder was synced.
//!
//! [`TestDisk::record`] keeps a snapshot of the disk after each of its changes, so that a test can try a
//! crash at each.

mod ahead;
mod content;
mod limits;
mod whole_sync;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::content::{Content, NameChange};
use super::faults::{Crash, Faults};
use super::{Disk, DiskFile, DiskSpace, FilesystemSync, Lock, Mode};

/// The test disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct TestDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Clone, Default)]
struct Inner {
    files: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    unsynced_names: Vec<NameChange>,
    locked: BTreeSet<PathBuf>,
    /// Handles of an earlier life are dead.
    life: u64,
    faults: Faults,
    /// Bytes that all files together may have.
    capacity: Option<usize>,
    bad: limits::Bad,
    syncs: u64,
    write_backs: u64,
    failed_write_backs: u64,
    writes: u64,
    reads: u64,
    bytes_read: u64,
    calls: u64,
    operations: u64,
    looks: u64,
    mark: u64,
    recorded: Option<Vec<Recorded>>,
    cold_from: Option<u64>,
    hints: Vec<(u64, u64)>,
    jumps: u64,
}

/// The disk after one of its changes.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The disk at that time.
    pub disk: TestDisk,
    /// The last argument of [`TestDisk::set_mark`].
    pub mark: u64,
}

#[derive(Debug)]
struct TestFile {
    disk: TestDisk,
    file: usize,
    life: u64,
    writable: bool,
    /// Failed write-backs of the file that were reported before it was opened.
    told: u64,
}

#[derive(Debug)]
struct TestLock {
    disk: TestDisk,
    path: PathBuf,
    life: u64,
}

impl TestDisk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the faults to come.
    pub fn set_faults(&self, faults: Faults) {
        self.inner().faults = faults;
    }

    /// Syncs so far, of files and folders.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.inner().syncs
    }

    /// Operations so far that change anything.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.inner().operations
    }

    /// Files opened and folders listed so far.
    #[must_use]
    pub fn looks(&self) -> u64 {
        self.inner().looks
    }

    /// Writes so far.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.inner().writes
    }

    /// Reads so far.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.inner().reads
    }

    /// From now on keeps a snapshot after each write, sync, and change of a length or name.
    pub fn record(&self) {
        self.inner().recorded = Some(Vec::new());
    }

    /// Attached to the snapshots to come.
    pub fn set_mark(&self, mark: u64) {
        self.inner().mark = mark;
    }

    /// One more snapshot, of the disk as it is.
    pub fn picture(&self) {
        self.inner().picture();
    }

    /// The snapshots taken, in order; recording ends.
    #[must_use]
    pub fn take_recorded(&self) -> Vec<Recorded> {
        self.inner().recorded.take().unwrap_or_default()
    }

    /// The process dies: open files and locks become unusable, and `crash` decides about unsynced data.
    pub fn crash(&self, crash: Crash) {
        let mut inner = self.inner();
        inner.life += 1;
        inner.locked.clear();
        inner.faults = Faults::default();
        let mut random = match crash {
            Crash::KeepAll => return,
            Crash::LoseUnsynced => None,
            Crash::Random(seed) => Some(fastrand::Rng::with_seed(seed)),
        };
        let changes = std::mem::take(&mut inner.unsynced_names);
        let mut names = std::mem::take(&mut inner.durable_names);
        if let Some(random) = &mut random {
            let mut kept: BTreeMap<Option<&Path>, usize> = BTreeMap::new();
            for change in &changes {
                *kept.entry(change.folder()).or_default() += 1;
            }
            for kept in kept.values_mut() {
                *kept = random.usize(..=*kept);
            }
            for change in &changes {
                if let Some(left @ 1..) = kept.get_mut(&change.folder()) {
                    *left -= 1;
                    change.apply(&mut names);
                }
            }
        }
        inner.names.clone_from(&names);
        inner.durable_names = names;
        for file in &mut inner.files {
            file.crash(random.as_mut());
        }
    }

    /// Another disk with the same content, for trying one crash in many ways.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.inner().fork()
    }

    /// The bytes of a file, as programs see them.
    #[must_use]
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let inner = self.inner();
        let file = *inner.names.get(path)?;
        Some(inner.files[file].seen.clone())
    }

    /// Creates a file durably: damage by hand.
    pub fn set_content(&self, path: &Path, bytes: Vec<u8>) {
        let mut inner = self.inner();
        let content = Content::of(bytes);
        let known = inner.names.get(path).copied();
        if let Some(file) = known {
            inner.files[file] = content;
        } else {
            inner.files.push(content);
            let file = inner.files.len() - 1;
            inner.names.insert(path.to_owned(), file);
            inner.durable_names.insert(path.to_owned(), file);
        }
    }
}

impl Inner {
    fn fork(&mut self) -> TestDisk {
        let recorded = self.recorded.take();
        let mut inner = self.clone();
        self.recorded = recorded;
        inner.life += 1;
        inner.locked.clear();
        TestDisk {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// To be called after each change.
    fn picture(&mut self) {
        if self.recorded.is_some() {
            let (disk, mark) = (self.fork(), self.mark);
            self.recorded
                .get_or_insert_default()
                .push(Recorded { disk, mark });
        }
    }
}

impl Disk for TestDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.inner().may_use(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut inner = self.inner();
        inner.count_look()?;
        let names = inner.names.keys().filter(|path| path.parent() == Some(folder));
        Ok(names
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect())
    }

    fn list_folders(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut inner = self.inner();
        inner.looks += 1;
        Ok(content::folders_in(inner.names.keys(), folder))
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.inner();
        inner.count_look()?;
        let known = inner.names.get(path).copied();
        let file = match (known, mode) {
            (Some(_), Mode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, Mode::Read | Mode::Write) => return Err(io::ErrorKind::NotFound.into()),
            (Some(file), _) => inner.may_open(mode).map(|()| file)?,
            (None, Mode::CreateNew) => {
                inner.may_name()?;
                inner.count_operation()?;
                inner.files.push(Content::default());
                let file = inner.files.len() - 1;
                inner.names.insert(path.to_owned(), file);
                inner.unsynced_names.push(NameChange::Set(path.to_owned(), file));
                inner.picture();
                file
            }
        };
        Ok(Arc::new(TestFile {
            disk: self.clone(),
            file,
            life: inner.life,
            writable: mode != Mode::Read,
            told: inner.files[file].failed_write_backs,
        }))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.may_name()?;
        let file = *inner.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        if inner.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        inner.count_operation()?;
        inner.names.insert(to.to_owned(), file);
        inner.unsynced_names.push(NameChange::Set(to.to_owned(), file));
        inner.picture();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.may_name()?;
        if !inner.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.count_operation()?;
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        change.apply(&mut inner.names);
        inner.unsynced_names.push(change);
        inner.picture();
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        if !inner.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.count_operation()?;
        inner.names.remove(path);
        inner.unsynced_names.push(NameChange::Remove(path.to_owned()));
        inner.picture();
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.faults.no_descriptors_from > 0 {
            inner.count_look()?;
        }
        inner.count_sync()?;
        if inner.faults.ignore_syncs {
            return Ok(());
        }
        let mut names = std::mem::take(&mut inner.durable_names);
        inner.unsynced_names.retain(|change| {
            let here = change.folder() == Some(folder);
            if here {
                change.apply(&mut names);
            }
            !here
        });
        inner.durable_names = names;
        inner.picture();
        Ok(())
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.names.keys().any(|name| name.starts_with(path)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        inner.count_operation()
    }

    fn begin_filesystem_sync(&self, _folder: &Path) -> io::Result<Option<Box<dyn FilesystemSync>>> {
        Ok(whole_sync::begin(self))
    }

    fn space(&self, _folder: &Path) -> io::Result<DiskSpace> {
        Ok(self.inner().space())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let mut inner = self.inner();
        if !inner.locked.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(TestLock {
            disk: self.clone(),
            path: path.to_owned(),
            life: inner.life,
        }))
    }
}

impl TestFile {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.disk.inner();
        if inner.life != self.life {
            return Err(io::Error::other("the process that opened this file is gone"));
        }
        act(&mut inner)
    }
}

impl DiskFile for TestFile {
    fn bytes(&self) -> io::Result<u64> {
        self.with(|inner| Ok(inner.files[self.file].seen.len() as u64))
    }

    fn read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize> {
        self.with(|inner| {
            let bytes = inner.count_read(self.file, bytes, position)?;
            let seen = &inner.files[self.file].seen;
            let from = usize::try_from(position).map_or(seen.len(), |from| from.min(seen.len()));
            let end = from.saturating_add(bytes).min(seen.len());
            buffer.extend_from_slice(&seen[from..end]);
            inner.garble(buffer, end - from);
            Ok(end - from)
        })
    }

    fn try_read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize> {
        let cold_from = self.disk.inner().cold_from.unwrap_or(u64::MAX);
        let warm = usize::try_from(cold_from.saturating_sub(position)).unwrap_or(usize::MAX);
        if warm == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.read_at(buffer, bytes.min(warm), position)
    }

    fn will_read(&self, position: u64, bytes: u64) {
        self.disk.inner().hints.push((position, bytes));
    }

    fn will_jump(&self) {
        self.disk.inner().jumps += 1;
    }

    fn write_at(&self, slices: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        self.with(|inner| {
            if !self.writable {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            inner.calls += 1;
            let short = inner.faults.short_write_bytes;
            if short > 0 && inner.calls.is_multiple_of(2) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            inner.writes += 1;
            let full = inner.faults.full_from_write;
            if full > 0 && inner.writes >= full {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            inner.count_operation()?;
            let most = if short > 0 { short } else { usize::MAX };
            let (misdirected, by) = inner.faults.misdirected_write;
            let by = if inner.writes == misdirected { by } else { 0 };
            let position = usize::try_from(position).map_err(io::Error::other)?;
            let most = most.min(inner.room(self.file, position, slices)?);
            let written = inner.files[self.file].write(slices, position + by, most);
            inner.picture();
            Ok(written)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|inner| {
            let outcome = inner.count_sync();
            let ignored = inner.faults.ignore_syncs;
            let file = &mut inner.files[self.file];
            match outcome {
                Ok(()) if ignored => {}
                Ok(()) => file.sync(),
                Err(_) => file.forget(),
            }
            let failed = file.failed_write_backs > self.told;
            inner.picture();
            if failed {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            outcome
        })
    }

    fn start_write_back(&self, _position: u64, _bytes: u64) -> io::Result<()> {
        self.with(|inner| {
            inner.start_write_back(self.file);
            Ok(())
        })
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.with(|inner| {
            inner.count_operation()?;
            let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
            inner.files[self.file].set_bytes(bytes);
            inner.picture();
            Ok(())
        })
    }

    fn allocate(&self, bytes: u64) -> io::Result<bool> {
        self.with(|inner| inner.allocate(self.file, bytes))
    }

    fn links(&self) -> io::Result<u64> {
        self.with(|inner| Ok(inner.names.values().filter(|file| **file == self.file).count() as u64))
    }
}

impl Lock for TestLock {}

impl Drop for TestLock {
    fn drop(&mut self) {
        let mut inner = self.disk.inner();
        if inner.life == self.life {
            inner.locked.remove(&self.path);
        }
    }
}
