//! A disk in memory that keeps exactly what it must and no more: for tests of crashes, failed syncs and short writes.
//!
//! Each file has the bytes that programs see and the bytes that are on the disk; a sync copies the sectors that were
//! written since. A failed sync forgets that they were written, as Linux does: a later sync succeeds and persists
//! nothing of them. Names are durable only after their folder was synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskFile, Lock, Mode};

/// Bytes that reach the disk together or not at all.
const SECTOR_BYTES: usize = 512;

/// What is left after the machine lost power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Only what was synced.
    LoseUnsynced,
    /// Everything: as after the death of the process alone.
    KeepAll,
    /// Of what was not synced, a random subset of the sectors, and a random prefix of the changes of names.
    Random(u64),
}

/// Faults to come. Counts run from 1 over the life of the disk; 0 = never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The sync (of a file or folder) of this number fails, once.
    pub fail_sync: u64,
    /// The write of this number and every later one fails: the disk is full.
    pub full_from_write: u64,
    /// A write takes at most this many bytes, and every other call is interrupted; 0 = no limit.
    pub short_write_bytes: usize,
}

/// See the module. Clones are the same disk.
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
    syncs: u64,
    writes: u64,
    calls: u64,
}

#[derive(Debug, Clone, Default)]
struct Content {
    seen: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
    length_dirty: bool,
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Debug)]
struct TestFile {
    disk: TestDisk,
    file: usize,
    life: u64,
    writable: bool,
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

    /// Writes so far.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.inner().writes
    }

    /// The process is gone: open files and locks are dead, and of the unsynced what `crash` says.
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
        let kept = random
            .as_mut()
            .map_or(0, |random| random.usize(..=inner.unsynced_names.len()));
        let changes = std::mem::take(&mut inner.unsynced_names);
        let mut names = std::mem::take(&mut inner.durable_names);
        for change in &changes[..kept] {
            change.apply(&mut names);
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
        let mut inner = self.inner().clone();
        inner.life += 1;
        inner.locked.clear();
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// The bytes of a file, as programs see them.
    #[must_use]
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let inner = self.inner();
        let file = *inner.names.get(path)?;
        Some(inner.files[file].seen.clone())
    }

    /// Puts a file there, durably: damage by hand.
    pub fn set_content(&self, path: &Path, bytes: Vec<u8>) {
        let mut inner = self.inner();
        let content = Content {
            seen: bytes.clone(),
            durable: bytes,
            ..Content::default()
        };
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

    /// Names of all files.
    #[must_use]
    pub fn names(&self) -> Vec<PathBuf> {
        self.inner().names.keys().cloned().collect()
    }
}

impl Inner {
    fn count_sync(&mut self) -> io::Result<()> {
        self.syncs += 1;
        if self.syncs == self.faults.fail_sync {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }
}

impl Content {
    fn mark(&mut self, from: usize, end: usize) {
        self.dirty.extend(from / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
    }

    fn persist(&mut self, sector: usize) {
        let from = sector * SECTOR_BYTES;
        let end = (from + SECTOR_BYTES).min(self.seen.len());
        if from >= end {
            return;
        }
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[from..end].copy_from_slice(&self.seen[from..end]);
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.persist(sector);
        }
        if std::mem::take(&mut self.length_dirty) || self.durable.len() < self.seen.len() {
            self.durable.resize(self.seen.len(), 0);
        }
    }

    fn crash(&mut self, random: Option<&mut fastrand::Rng>) {
        let dirty = std::mem::take(&mut self.dirty);
        if let Some(random) = random {
            // Sometimes half of them, sometimes nearly all.
            let lost_one_in = [2, 10, 100][random.usize(..3)];
            for sector in dirty {
                if random.u32(..lost_one_in) > 0 {
                    self.persist(sector);
                }
            }
            if random.bool() {
                self.durable.resize(self.seen.len(), 0);
            }
        }
        self.length_dirty = false;
        self.seen.clone_from(&self.durable);
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Set(path, file) => {
                names.insert(path.clone(), *file);
            }
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }

    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Set(path, _) | Self::Rename(_, path) | Self::Remove(path) => path.parent(),
        }
    }
}

impl Disk for TestDisk {
    fn create_folder(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let inner = self.inner();
        let names = inner.names.keys().filter(|path| path.parent() == Some(folder));
        Ok(names
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect())
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.inner();
        let known = inner.names.get(path).copied();
        let file = match (known, mode) {
            (Some(_), Mode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, Mode::Read | Mode::Write) => return Err(io::ErrorKind::NotFound.into()),
            (Some(file), _) => file,
            (None, Mode::CreateNew) => {
                inner.files.push(Content::default());
                let file = inner.files.len() - 1;
                inner.names.insert(path.to_owned(), file);
                inner.unsynced_names.push(NameChange::Set(path.to_owned(), file));
                file
            }
        };
        Ok(Arc::new(TestFile {
            disk: self.clone(),
            file,
            life: inner.life,
            writable: mode != Mode::Read,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        if !inner.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        change.apply(&mut inner.names);
        inner.unsynced_names.push(change);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.names.remove(path).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.unsynced_names.push(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.count_sync()?;
        let mut names = std::mem::take(&mut inner.durable_names);
        inner.unsynced_names.retain(|change| {
            let here = change.folder() == Some(folder);
            if here {
                change.apply(&mut names);
            }
            !here
        });
        inner.durable_names = names;
        Ok(())
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
            let seen = &inner.files[self.file].seen;
            let from = usize::try_from(position).map_or(seen.len(), |from| from.min(seen.len()));
            let end = from.saturating_add(bytes).min(seen.len());
            buffer.extend_from_slice(&seen[from..end]);
            Ok(end - from)
        })
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
            let most = if short > 0 { short } else { usize::MAX };
            let file = &mut inner.files[self.file];
            let from = usize::try_from(position).map_err(io::Error::other)?;
            let mut at = from;
            for slice in slices {
                let part = &slice[..slice.len().min(most - (at - from))];
                if part.is_empty() {
                    continue;
                }
                if file.seen.len() < at + part.len() {
                    file.seen.resize(at + part.len(), 0);
                }
                file.seen[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            file.mark(from, at);
            Ok(at - from)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|inner| {
            let outcome = inner.count_sync();
            let file = &mut inner.files[self.file];
            match outcome {
                Ok(()) => file.sync(),
                Err(_) => file.dirty.clear(),
            }
            outcome
        })
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.with(|inner| {
            let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
            let file = &mut inner.files[self.file];
            file.seen.resize(bytes, 0);
            file.length_dirty = true;
            Ok(())
        })
    }

    fn links(&self) -> io::Result<u64> {
        Ok(1)
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
