//! The real disk. Syncs of files and folders go through the standard library, hence through libc, so that
//! preloaded libraries see them.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, FallocateFlags, FlockOperation, fadvise, fallocate, flock, statvfs};

use super::{Disk, DiskFile, DiskSpace, FilesystemSync, Lock, Mode};

/// Granularity of the page cache.
const PAGE_BYTES: u64 = 4096;
/// Bytes requested from Linux at once: of a larger request it honours no more than the device's largest
/// request, or its read-ahead.
#[cfg(target_os = "linux")]
const ASKED_BYTES_MAX: usize = 256 * 1024;

/// Bytes written at once, up to a position in the file that is a multiple of this. For a longer write Linux
/// wants that much memory in one block, and where memory is fragmented it first moves other blocks together:
/// that took up to half of a broker's processor time (docs/performance-notes.md). This is the largest block that
/// Linux does not call costly.
const PIECE_BYTES: usize = 32 * 1024;

/// The file system of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct StdDisk;

#[derive(Debug)]
struct StdFile(File);

#[derive(Debug)]
struct StdLock {
    _file: File,
}

/// Failures from before the open count as reported.
#[derive(Debug)]
struct StdFilesystemSync(File);

impl Lock for StdLock {}

impl FilesystemSync for StdFilesystemSync {
    fn finish(self: Box<Self>) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }
}

impl Disk for StdDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_folder(parent)?;
        }
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
            done => done?,
        }
        let synced = self.sync_folder(parent.unwrap_or(Path::new(".")));
        if synced.is_err() {
            // Otherwise the next attempt would find it there, and its name would never be durable.
            drop(fs::remove_dir(path));
        }
        synced
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        names(folder, FileType::is_file)
    }

    fn list_folders(&self, folder: &Path) -> io::Result<Vec<String>> {
        names(folder, FileType::is_dir)
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            Mode::Read => {}
            Mode::Write => {
                options.write(true);
            }
            Mode::CreateNew => {
                options.write(true).create_new(true);
            }
        }
        Ok(Arc::new(StdFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn begin_filesystem_sync(&self, folder: &Path) -> io::Result<Option<Box<dyn FilesystemSync>>> {
        if !tells_failed_syncs() {
            return Ok(None);
        }
        Ok(Some(Box::new(StdFilesystemSync(File::open(folder)?))))
    }

    fn space(&self, folder: &Path) -> io::Result<DiskSpace> {
        let found = statvfs(folder)?;
        Ok(DiskSpace {
            // Without the reserve of root, even if this process is root: otherwise it would be root who fills
            // the disk.
            free: found.f_bavail.saturating_mul(found.f_frsize),
            total: found.f_blocks.saturating_mul(found.f_frsize),
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(StdLock { _file: file }))
    }
}

/// Names of this kind, sorted.
fn names(folder: &Path, is_wanted: impl Fn(&FileType) -> bool) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for found in fs::read_dir(folder)? {
        let found = found?;
        if is_wanted(&found.file_type()?)
            && let Ok(name) = found.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

impl DiskFile for StdFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize> {
        let before = buffer.len();
        buffer.reserve_exact(bytes);
        let read = rustix::io::pread(&self.0, spare_capacity(buffer), position)?;
        // The capacity may be larger than requested.
        buffer.truncate(before + bytes);
        Ok(read.min(bytes))
    }

    #[cfg(target_os = "linux")]
    fn try_read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize> {
        use rustix::io::{Errno, ReadWriteFlags, preadv2};

        let before = buffer.len();
        if buffer.is_empty() {
            // Zeroed by the system, page by page as they are written: no extra pass over it.
            *buffer = vec![0; bytes];
        } else {
            buffer.resize(before + bytes, 0);
        }
        let read = preadv2(
            &self.0,
            &mut [IoSliceMut::new(&mut buffer[before..])],
            position,
            ReadWriteFlags::NOWAIT,
        );
        buffer.truncate(before + read.unwrap_or(0));
        match read {
            Ok(read) => Ok(read),
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn try_read_at(&self, _: &mut Vec<u8>, _: usize, _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn will_read(&self, position: u64, bytes: u64) {
        #[cfg(target_os = "linux")]
        for from in (0..bytes).step_by(ASKED_BYTES_MAX) {
            let part = NonZeroU64::new((bytes - from).min(ASKED_BYTES_MAX as u64));
            if let Err(error) = fadvise(&self.0, position + from, part, Advice::WillNeed) {
                // Then they are read when they are needed.
                tracing::trace!(%error, "no read-ahead");
                break;
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (position, bytes);
    }

    fn will_jump(&self) {
        if let Err(error) = fadvise(&self.0, 0, None, Advice::Random) {
            tracing::trace!(%error, "the system reads ahead");
        }
    }

    fn forget(&self, position: u64, bytes: u64) {
        // Linux ignores pages that are named in part.
        let from = position / PAGE_BYTES * PAGE_BYTES;
        let end = position.saturating_add(bytes).next_multiple_of(PAGE_BYTES);
        if let Err(error) = self.start_write_back(from, end - from) {
            tracing::trace!(%error, "no memory was given back");
        }
    }

    fn write_at(&self, slices: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        let room = PIECE_BYTES - usize::try_from(position % PIECE_BYTES as u64).unwrap_or(0);
        let mut bytes = 0;
        let whole = slices.iter().take_while(|slice| {
            bytes += slice.len();
            bytes <= room
        });
        let written = match (whole.count(), slices.first()) {
            (0, Some(first)) => rustix::io::pwritev(&self.0, &[IoSlice::new(&first[..room])], position),
            (whole, _) => rustix::io::pwritev(&self.0, &slices[..whole], position),
        };
        Ok(written?)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn start_write_back(&self, position: u64, bytes: u64) -> io::Result<()> {
        // Linux starts writing dirty pages, and drops clean ones.
        match NonZeroU64::new(bytes) {
            Some(bytes) => Ok(fadvise(&self.0, position, Some(bytes), Advice::DontNeed)?),
            None => Ok(()),
        }
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<bool> {
        match fallocate(&self.0, FallocateFlags::KEEP_SIZE, 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(false),
            done => Ok(done.map(|()| true)?),
        }
    }

    fn links(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.nlink())
    }
}

/// Whether `syncfs` reports what could not be written: since Linux 5.8.
fn tells_failed_syncs() -> bool {
    static TELLS: OnceLock<bool> = OnceLock::new();
    *TELLS.get_or_init(|| {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().ok());
        let mut number = || numbers.next().flatten();
        number().zip(number()).is_some_and(|version| version >= (5, 8))
    })
}
