//! The disk seam: the only way to data files. [`StdDisk`] is the real one; [`TestDisk`] keeps files in memory
//! and can fail, tear writes and lose what was not synced. Paths are whole paths below the data folder;
//! positions are in bytes.
//!
//! What a caller may rely on, and no more: bytes are durable after `sync_data` of their file returned Ok;
//! names are durable after `sync_folder` of their folder returned Ok. After a failed sync nothing is known
//! about the file.

mod at_once;
mod faults;
mod std_disk;
mod test_disk;

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

pub use self::at_once::AtOnce;
pub use self::faults::{Crash, Faults};
pub use self::std_disk::StdDisk;
pub use self::test_disk::{Recorded, TestDisk};

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    Write,
    /// A new file, to read and write; it is an error if the name exists.
    CreateNew,
}

/// How full the file system of a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes that this process may still use.
    pub free: u64,
    /// Its total bytes.
    pub total: u64,
}

/// Whether the system refused for lack of space, including a quota.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Whether the system had no file descriptor for it: then a sync of a folder was not even attempted either,
/// and may be retried.
#[must_use]
pub fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Whether the system temporarily lacked something unrelated to the file: descriptors, memory, time.
#[must_use]
pub fn is_passing(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::Interrupted,
        io::ErrorKind::OutOfMemory,
        io::ErrorKind::TimedOut,
        io::ErrorKind::WouldBlock,
    ];
    lacks_descriptors(error) || kinds.contains(&error.kind())
}

/// Held until dropped: no other process has this lock file.
pub trait Lock: Debug + Send + Sync {}

/// A prepared sync of a whole file system: see [`Disk::begin_filesystem_sync`].
pub trait FilesystemSync: Debug + Send + Sync {
    /// Makes everything durable that has been written or named so far.
    ///
    /// # Errors
    /// As the operating system says, also when some write-back failed since the beginning; poison, like a
    /// failed [`DiskFile::sync_data`].
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// A place for files.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Creates the folder and its parents durably; does nothing if it exists.
    ///
    /// # Errors
    /// As the operating system says.
    fn create_folder(&self, path: &Path) -> io::Result<()>;

    /// Names of the files in a folder, sorted.
    ///
    /// # Errors
    /// As the operating system says.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Names of the folders in a folder, sorted.
    ///
    /// # Errors
    /// As the operating system says.
    fn list_folders(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Opens a file.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, or another error of the operating system.
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file, replacing one that has the name.
    ///
    /// # Errors
    /// As the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name.
    ///
    /// # Errors
    /// `AlreadyExists`; `CrossesDevices` when the name is on another file system; or another error of the
    /// operating system.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a name.
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in a folder durable.
    ///
    /// # Errors
    /// As the operating system says; poison, like a failed [`DiskFile::sync_data`].
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Removes an empty folder.
    ///
    /// # Errors
    /// `DirectoryNotEmpty`, `NotFound`, or another error of the operating system.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// Prepares to sync the file system of this folder as a whole: many files for the price of one. Call it
    /// before the first write that the sync is to cover: the system reports each failed write-back once, to
    /// processes that have been watching since before, and not to later ones. `None` = this system cannot do
    /// it, or would not report a failure: then sync each file, and each folder with new names.
    ///
    /// # Errors
    /// As the operating system says; nothing is lost.
    fn begin_filesystem_sync(&self, folder: &Path) -> io::Result<Option<Box<dyn FilesystemSync>>>;

    /// Free bytes in the file system of this folder.
    ///
    /// # Errors
    /// As the operating system says.
    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        Ok(self.space(folder)?.free)
    }

    /// How full the file system of this folder is.
    ///
    /// # Errors
    /// As the operating system says.
    fn space(&self, folder: &Path) -> io::Result<DiskSpace>;

    /// Takes the lock file (created if absent) for the lifetime of the result; the system releases it when
    /// the process dies.
    ///
    /// # Errors
    /// `WouldBlock` if another process (or another holder in this one) has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;
}

/// An open file. Shared: no method moves a cursor.
pub trait DiskFile: Debug + Send + Sync {
    /// Bytes it has.
    ///
    /// # Errors
    /// As the operating system says.
    fn bytes(&self) -> io::Result<u64>;

    /// Appends to `buffer` at most `bytes` bytes from `position` on; 0 = the end. May read less than there
    /// is.
    ///
    /// # Errors
    /// As the operating system says.
    fn read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize>;

    /// As [`DiskFile::read_at`], for threads that must not wait for a device: reads only what memory holds.
    ///
    /// # Errors
    /// `WouldBlock`: some of it is not in memory, or the file system cannot tell. Nothing was read.
    fn try_read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize>;

    /// These bytes will be read soon: the system may fetch them meanwhile. A hint; does not wait for the
    /// device.
    fn will_read(&self, position: u64, bytes: u64);

    /// This file is read at random positions, and readers announce reads by [`DiskFile::will_read`]: the
    /// system need not guess what comes next. A hint.
    fn will_jump(&self) {}

    /// Memory need not hold these bytes any longer: the next read of them asks the device. A hint; bytes that
    /// were not written to the device yet are kept.
    fn forget(&self, position: u64, bytes: u64) {
        let _ = (position, bytes);
    }

    /// Writes some of the slices, in order, at `position`; returns the number of bytes. May write less than
    /// given.
    ///
    /// # Errors
    /// As the operating system says.
    fn write_at(&self, slices: &[IoSlice<'_>], position: u64) -> io::Result<usize>;

    /// Makes all bytes written so far durable, and the length.
    ///
    /// # Errors
    /// What was written since the last success may be lost, now or later: never retry, stop.
    fn sync_data(&self) -> io::Result<()>;

    /// Lets the system start writing these bytes, without waiting: a later sync then has less to do. They
    /// will not be read again soon.
    ///
    /// # Errors
    /// As the operating system says; nothing is lost.
    fn start_write_back(&self, position: u64, bytes: u64) -> io::Result<()>;

    /// Truncates the file, or extends it with zeros.
    ///
    /// # Errors
    /// As the operating system says.
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;

    /// Reserves the blocks of the first `bytes` bytes without changing the length: later writes there need no
    /// space. `false` = this file system cannot reserve.
    ///
    /// # Errors
    /// There is no space, or another error of the operating system.
    fn allocate(&self, bytes: u64) -> io::Result<bool>;

    /// Number of names of the file: more than one when a backup or snapshot holds it.
    ///
    /// # Errors
    /// As the operating system says.
    fn links(&self) -> io::Result<u64>;
}

/// Slices per system call.
const SLICES_MAX: usize = 1024;

/// Writes all slices at `position`, however the system splits the write.
///
/// # Errors
/// As [`DiskFile::write_at`]; a write of nothing is `WriteZero`. What was written before stays.
pub fn write_all_at(file: &dyn DiskFile, slices: &mut [IoSlice<'_>], position: u64) -> io::Result<()> {
    let mut rest = slices;
    let mut position = position;
    // Empty slices at the front would make a complete write look like an empty one.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match file.write_at(&rest[..rest.len().min(SLICES_MAX)], position) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                position += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads `bytes` bytes from `position` on, or fewer if the file ends before.
///
/// # Errors
/// As [`DiskFile::read_at`].
pub fn read_up_to_at(file: &dyn DiskFile, bytes: usize, position: u64) -> io::Result<Vec<u8>> {
    read_without_waiting_at(file, (bytes, bytes), position)
}

/// The same; but of a file that does not wait for its device (see [`AtOnce`]), what memory holds is enough if
/// that is `least` bytes or more.
///
/// # Errors
/// As [`DiskFile::read_at`]; `WouldBlock`: there are fewer in memory.
pub fn read_without_waiting_at(
    file: &dyn DiskFile,
    (least, bytes): (usize, usize),
    position: u64,
) -> io::Result<Vec<u8>> {
    // Not allocated here: some reads need no reserved memory, others take it zeroed.
    let mut buffer = Vec::new();
    while buffer.len() < bytes {
        let read = buffer.len();
        match file.read_at(&mut buffer, bytes - read, position + read as u64) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && read >= least => break,
            Err(error) => return Err(error),
        }
    }
    Ok(buffer)
}

/// The same without waiting for a device.
///
/// # Errors
/// As [`DiskFile::try_read_at`].
pub fn try_read_up_to_at(file: &dyn DiskFile, bytes: usize, position: u64) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::new();
    while buffer.len() < bytes {
        let read = buffer.len();
        match file.try_read_at(&mut buffer, bytes - read, position + read as u64) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(buffer)
}

/// Reads exactly `bytes` bytes from `position` on.
///
/// # Errors
/// `UnexpectedEof` if the file ends before; else as [`DiskFile::read_at`].
pub fn read_exact_at(file: &dyn DiskFile, bytes: usize, position: u64) -> io::Result<Vec<u8>> {
    let buffer = read_up_to_at(file, bytes, position)?;
    if buffer.len() < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests;
