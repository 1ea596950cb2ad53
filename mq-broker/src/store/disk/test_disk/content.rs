//! The content of a file of the test disk, as programs see it and as the disk has it; and changes of names.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::path::{Path, PathBuf};

/// Bytes that reach the disk together or not at all.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pub(super) seen: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
    length_dirty: bool,
    /// Bytes reserved, from the first one on.
    pub(super) allocated: usize,
    /// Number of write-backs that failed. Those are reported to everyone who has the file open.
    pub(super) failed_write_backs: u64,
}

#[derive(Debug, Clone)]
pub(super) enum NameChange {
    Set(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Content {
    /// Bytes of the disk that it takes, including holes.
    pub(super) fn taken(&self) -> usize {
        self.seen.len().max(self.allocated)
    }

    /// Writes the slices, at most `most` bytes of them; returns the number.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>], position: usize, most: usize) -> usize {
        let mut at = position;
        for slice in slices {
            let part = &slice[..slice.len().min(most - (at - position))];
            if part.is_empty() {
                continue;
            }
            if self.seen.len() < at + part.len() {
                self.seen.resize(at + part.len(), 0);
            }
            self.seen[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.mark(position, at);
        at - position
    }

    /// Truncates it, or extends it with zeros.
    pub(super) fn set_bytes(&mut self, bytes: usize) {
        // Marked up to its old length: truncated bytes do not come back when the file grows again.
        self.mark(bytes.min(self.seen.len()), bytes.max(self.seen.len()));
        if bytes < self.seen.len() {
            self.allocated = self.allocated.min(bytes);
        }
        self.seen.resize(bytes, 0);
        self.length_dirty = true;
    }

    /// A sync that failed: the pages count as clean and were not written.
    pub(super) fn forget(&mut self) {
        self.dirty.clear();
    }

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

    /// Makes all of it durable: for damage by hand.
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        Self {
            seen: bytes.clone(),
            durable: bytes,
            ..Self::default()
        }
    }

    pub(super) fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.persist(sector);
        }
        if std::mem::take(&mut self.length_dirty) || self.durable.len() < self.seen.len() {
            self.durable.resize(self.seen.len(), 0);
        }
    }

    pub(super) fn crash(&mut self, random: Option<&mut fastrand::Rng>) {
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
    pub(super) fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
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

    pub(super) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Set(path, _) | Self::Rename(_, path) | Self::Remove(path) => path.parent(),
        }
    }
}

/// Names of the folders in a folder that have a file somewhere below them, sorted.
pub(super) fn folders_in<'a>(files: impl Iterator<Item = &'a PathBuf>, folder: &Path) -> Vec<String> {
    let below = files.filter_map(|path| path.strip_prefix(folder).ok());
    let nested = below.filter_map(|below| {
        let mut parts = below.components();
        let first = parts.next()?;
        parts.next()?;
        Some(first.as_os_str().to_str()?.to_owned())
    });
    nested.collect::<BTreeSet<_>>().into_iter().collect()
}
