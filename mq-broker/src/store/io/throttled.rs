//! A file that is read at a limited pace: after a number of bytes, a callback is asked, which may wait before
//! it returns. For readers whose amount is not known beforehand: one that searches after damage may read all
//! of the file.

use std::fmt::{self, Debug};
use std::io::{self, IoSlice};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::disk::DiskFile;

/// Called with the bytes that were read since its last call; `false` = stop reading.
pub type Pause<'a> = &'a mut (dyn FnMut(u32) -> bool + Send);

/// A file whose reads call a [`Pause`].
pub(in crate::store) struct Throttled<'a> {
    file: &'a dyn DiskFile,
    slice_bytes: u32,
    inner: Mutex<Inner<'a>>,
}

struct Inner<'a> {
    pause: Pause<'a>,
    /// Bytes read since the last call.
    unpaid: u32,
    is_stopped: bool,
}

impl<'a> Throttled<'a> {
    pub(in crate::store) fn new(file: &'a dyn DiskFile, slice_bytes: u32, pause: Pause<'a>) -> Self {
        Self {
            file,
            slice_bytes: slice_bytes.max(1),
            inner: Mutex::new(Inner {
                pause,
                unpaid: 0,
                is_stopped: false,
            }),
        }
    }

    /// Bytes read since the last call of the callback.
    pub(in crate::store) fn unpaid(&self) -> u32 {
        self.lock().unpaid
    }

    /// Counts bytes read from other files, too; an error once the callback has said to stop.
    pub(in crate::store) fn pay(&self, bytes: usize) -> io::Result<()> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.lock().pay(bytes, self.slice_bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Inner<'a>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner<'_> {
    fn pay(&mut self, bytes: u32, slice_bytes: u32) -> io::Result<()> {
        self.unpaid = self.unpaid.saturating_add(bytes);
        while self.unpaid >= slice_bytes && !self.is_stopped {
            self.unpaid -= slice_bytes;
            self.is_stopped = !(self.pause)(slice_bytes);
        }
        if self.is_stopped {
            return Err(io::Error::other("reading was stopped"));
        }
        Ok(())
    }
}

impl Debug for Throttled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttled")
            .field("file", &self.file)
            .field("slice_bytes", &self.slice_bytes)
            .finish_non_exhaustive()
    }
}

impl DiskFile for Throttled<'_> {
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    fn read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize> {
        // There is one reader at a time, so this lock is never waited for.
        let mut inner = self.lock();
        let left = self.slice_bytes.saturating_sub(inner.unpaid).max(1);
        let read = self.file.read_at(buffer, bytes.min(left as usize), position)?;
        inner.pay(u32::try_from(read).unwrap_or(u32::MAX), self.slice_bytes)?;
        Ok(read)
    }

    fn try_read_at(&self, _buffer: &mut Vec<u8>, _bytes: usize, _position: u64) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
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
