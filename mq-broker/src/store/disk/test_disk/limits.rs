//! What the test disk refuses: bytes beyond its capacity, and names and syncs as its faults say.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::super::{DiskSpace, Mode};
use super::{Inner, TestDisk};
#[cfg(test)]
use crate::store::clock::Clock;

/// What the disk can no longer read or use.
#[derive(Debug, Clone, Default)]
pub(super) struct Bad {
    /// Of one file.
    bytes: Option<(usize, Range<u64>)>,
    folder: Option<PathBuf>,
    /// Reads that failed, and how long each of them takes.
    failed_reads: u64,
    #[cfg(test)]
    takes: Option<(Clock, std::time::Duration)>,
}

impl TestDisk {
    /// Names of all files.
    #[must_use]
    pub fn names(&self) -> Vec<PathBuf> {
        self.inner().names.keys().cloned().collect()
    }

    /// From now on all files together have at most this many bytes; `None` = no limit. Bytes beyond it that
    /// exist already remain.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.inner().capacity = bytes;
    }

    /// Bytes read so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.inner().bytes_read
    }

    /// Bytes that all files together take, reserved ones included.
    #[must_use]
    pub fn used(&self) -> usize {
        self.inner().used()
    }

    /// Write-backs started so far: see [`crate::store::disk::DiskFile::start_write_back`].
    #[must_use]
    pub fn write_backs(&self) -> u64 {
        self.inner().write_backs
    }

    /// From now on reads that touch these bytes of a file fail, as on a bad sector; an empty range = no more.
    pub fn set_unreadable(&self, path: &Path, bytes: Range<u64>) {
        let mut inner = self.inner();
        inner.bad.bytes = inner.names.get(path).map(|file| (*file, bytes));
    }

    /// Reads so far that failed because of unreadable bytes.
    #[must_use]
    pub fn failed_reads(&self) -> u64 {
        self.inner().bad.failed_reads
    }

    /// From now on each of them takes this long on the clock.
    #[cfg(test)]
    pub(crate) fn set_failing_takes(&self, clock: Clock, time: std::time::Duration) {
        self.inner().bad.takes = Some((clock, time));
    }

    /// From now on this folder cannot be used; `None` = no longer.
    pub fn set_unusable(&self, folder: Option<&Path>) {
        self.inner().bad.folder = folder.map(Path::to_owned);
    }
}

impl Inner {
    /// Bytes that all files together take, reserved ones included.
    pub(super) fn used(&self) -> usize {
        let named: BTreeSet<usize> = self.names.values().copied().collect();
        named.into_iter().map(|file| self.files[file].taken()).sum()
    }

    /// Bytes by which files may still grow.
    pub(super) fn free(&self) -> usize {
        self.capacity
            .map_or(usize::MAX, |capacity| capacity.saturating_sub(self.used()))
    }

    pub(super) fn space(&self) -> DiskSpace {
        DiskSpace {
            free: self.free() as u64,
            total: self.capacity.unwrap_or(usize::MAX) as u64,
        }
    }

    /// How many bytes a file takes at this position.
    pub(super) fn room(&self, file: usize, position: usize, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let end = self.files[file].taken().saturating_add(self.free());
        let room = end.saturating_sub(position);
        if room == 0 && slices.iter().any(|slice| !slice.is_empty()) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(room)
    }

    pub(super) fn allocate(&mut self, file: usize, bytes: u64) -> io::Result<bool> {
        if self.faults.no_reserve {
            return Ok(false);
        }
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let more = bytes.saturating_sub(self.files[file].taken());
        if more > self.free() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let file = &mut self.files[file];
        file.allocated = file.allocated.max(bytes);
        Ok(true)
    }

    /// How many of these bytes a read returns.
    pub(super) fn count_read(&mut self, file: usize, bytes: usize, position: u64) -> io::Result<usize> {
        self.reads += 1;
        let short = self.faults.short_read_bytes;
        if short > 0 && self.reads.is_multiple_of(2) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let bytes = if short > 0 { bytes.min(short) } else { bytes };
        let there = (self.files[file].seen.len() as u64).saturating_sub(position);
        self.bytes_read += there.min(bytes as u64);
        let end = position.saturating_add(bytes as u64);
        let is_bad = self
            .bad
            .bytes
            .as_ref()
            .is_some_and(|(bad, range)| *bad == file && position < range.end && range.start < end);
        if is_bad {
            self.bad.failed_reads += 1;
            #[cfg(test)]
            if let Some((clock, time)) = &self.bad.takes {
                clock.pass(*time);
            }
        }
        if is_bad || self.reads == self.faults.fail_read {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(bytes)
    }

    /// The bytes read last, at the end of the buffer.
    pub(super) fn garble(&self, buffer: &mut [u8], bytes: usize) {
        if self.reads == self.faults.garble_read
            && bytes > 0
            && let Some(byte) = buffer.last_mut()
        {
            *byte ^= 1;
        }
    }

    pub(super) fn may_open(&self, mode: Mode) -> io::Result<()> {
        match (mode, self.faults.opens_fail) {
            (Mode::Write | Mode::CreateNew, _) | (_, 0) => Ok(()),
            (Mode::Read, error) => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Counts the opening of a file or folder.
    pub(super) fn count_look(&mut self) -> io::Result<()> {
        self.looks += 1;
        let from = self.faults.no_descriptors_from;
        if from > 0 && self.looks >= from {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        Ok(())
    }

    pub(super) fn may_use(&self, folder: &Path) -> io::Result<()> {
        match &self.bad.folder {
            Some(bad) if bad == folder => Err(io::Error::from_raw_os_error(libc::EIO)),
            _ => Ok(()),
        }
    }

    pub(super) fn may_name(&self) -> io::Result<()> {
        match self.faults.names_fail {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    pub(super) fn count_sync(&mut self) -> io::Result<()> {
        self.count_operation()?;
        self.syncs += 1;
        if self.syncs == self.faults.fail_sync {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    pub(super) fn count_operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        let dead_from = self.faults.dead_from_operation;
        if dead_from > 0 && self.operations >= dead_from {
            return Err(io::Error::other("the process is dead"));
        }
        Ok(())
    }
}
