//! A file with bytes that the disk cannot read any longer: they read as zeros and are remembered, so that a
//! check finds what they damage and continues after them.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::store::disk::DiskFile;

/// Bytes that are tried one block at a time where a read fails: what disks and the page cache read at once.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// The number of unreadable blocks after which the file is given up, since each may take the disk seconds.
const BLOCKS_MAX: usize = 256;

/// A file whose unreadable bytes read as zeros.
#[derive(Debug)]
pub(crate) struct Around<'a> {
    file: &'a dyn DiskFile,
    unreadable: Mutex<Unreadable>,
}

#[derive(Debug, Default)]
struct Unreadable {
    /// In order of reading.
    ranges: Vec<Range<u64>>,
    blocks: usize,
}

impl<'a> Around<'a> {
    pub(crate) fn new(file: &'a dyn DiskFile) -> Self {
        Self {
            file,
            unreadable: Mutex::default(),
        }
    }

    /// The bytes that could not be read so far, ascending, each once.
    pub(crate) fn unreadable(&self) -> Vec<Range<u64>> {
        let mut ranges = self.lock().ranges.clone();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Unreadable> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_by_blocks(&self, buffer: &mut Vec<u8>, wanted: Range<u64>) -> io::Result<usize> {
        let (before, mut at) = (buffer.len(), wanted.start);
        let end = wanted.end.min(self.file.bytes()?);
        while at < end {
            let block_end = end.min((at / BLOCK_BYTES + 1) * BLOCK_BYTES);
            let bytes = usize::try_from(block_end - at).map_err(io::Error::other)?;
            let whole = buffer.len() + bytes;
            match self.file.read_at(buffer, bytes, at) {
                Ok(0) => break,
                Ok(read) => at += read as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_rot(&error) => {
                    let mut unreadable = self.lock();
                    if unreadable.blocks >= BLOCKS_MAX {
                        return Err(error);
                    }
                    unreadable.blocks += 1;
                    unreadable.ranges.push(at..block_end);
                    buffer.resize(whole, 0);
                    at = block_end;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(buffer.len() - before)
    }
}

/// Whether the disk reports that it lost these bytes: `EIO`, or `EBADMSG` of file systems with checksums of
/// their own.
pub(crate) fn is_rot(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADMSG))
}

impl DiskFile for Around<'_> {
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    fn read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize> {
        let before = buffer.len();
        match self.file.read_at(buffer, bytes, position) {
            Err(error) if is_rot(&error) => {
                buffer.truncate(before);
                self.read_by_blocks(buffer, position..position.saturating_add(bytes as u64))
            }
            done => done,
        }
    }

    fn try_read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize> {
        self.file.try_read_at(buffer, bytes, position)
    }

    fn will_read(&self, position: u64, bytes: u64) {
        self.file.will_read(position, bytes);
    }

    fn forget(&self, position: u64, bytes: u64) {
        self.file.forget(position, bytes);
    }

    fn write_at(&self, slices: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        self.file.write_at(slices, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn start_write_back(&self, position: u64, bytes: u64) -> io::Result<()> {
        self.file.start_write_back(position, bytes)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.file.set_bytes(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<bool> {
        self.file.allocate(bytes)
    }

    fn links(&self) -> io::Result<u64> {
        self.file.links()
    }
}
