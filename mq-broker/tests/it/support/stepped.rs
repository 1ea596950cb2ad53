//! The test disk as an [`Errand`](super::baton::Errand) sees it: each thing that it does is a stop, and may
//! be told to fail. For everybody else it is the test disk itself.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use mq_broker::store::disk::{Disk, DiskFile, DiskSpace, Faults, FilesystemSync, Lock, Mode, TestDisk};

use super::baton::{Go, Stop, stop};

#[derive(Debug, Clone)]
pub(crate) struct Stepped {
    disk: TestDisk,
    /// Whether file systems can be synced as a whole.
    syncs_whole: bool,
}

#[derive(Debug)]
struct SteppedFile {
    disk: TestDisk,
    file: Arc<dyn DiskFile>,
}

#[derive(Debug)]
struct SteppedSync {
    disk: TestDisk,
    sync: Box<dyn FilesystemSync>,
}

impl Stepped {
    pub(crate) const fn new(disk: TestDisk, syncs_whole: bool) -> Self {
        Self { disk, syncs_whole }
    }
}

fn step<T>(at: Stop, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match stop(at)? {
        Go::On | Go::Short => act(),
        Go::Fail(error) => Err(io::Error::from_raw_os_error(error)),
    }
}

/// A sync that is to fail does so in the test disk, which then forgets what was to be synced.
fn sync<T>(disk: &TestDisk, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if let Go::Fail(_) = stop(Stop::Sync)? {
        disk.set_faults(Faults {
            fail_sync: disk.syncs() + 1,
            ..Faults::default()
        });
    }
    let done = act()?;
    stop(Stop::Synced)?;
    Ok(done)
}

impl Disk for Stepped {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.disk.create_folder(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        step(Stop::Look, || self.disk.list(folder))
    }

    fn list_folders(&self, folder: &Path) -> io::Result<Vec<String>> {
        step(Stop::Look, || self.disk.list_folders(folder))
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let at = if mode == Mode::CreateNew {
            Stop::Name
        } else {
            Stop::Look
        };
        let file = step(at, || self.disk.open(path, mode))?;
        let disk = self.disk.clone();
        Ok(Arc::new(SteppedFile { disk, file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        step(Stop::Name, || self.disk.rename(from, to))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        step(Stop::Name, || self.disk.link(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        step(Stop::Name, || self.disk.remove(path))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        sync(&self.disk, || self.disk.sync_folder(folder))
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        step(Stop::Name, || self.disk.remove_folder(path))
    }

    fn begin_filesystem_sync(&self, folder: &Path) -> io::Result<Option<Box<dyn FilesystemSync>>> {
        if !self.syncs_whole {
            return Ok(None);
        }
        let begun = step(Stop::Look, || self.disk.begin_filesystem_sync(folder))?;
        Ok(begun.map(|sync| -> Box<dyn FilesystemSync> {
            let disk = self.disk.clone();
            Box::new(SteppedSync { disk, sync })
        }))
    }

    fn space(&self, folder: &Path) -> io::Result<DiskSpace> {
        self.disk.space(folder)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        self.disk.lock(path)
    }
}

impl FilesystemSync for SteppedSync {
    fn finish(self: Box<Self>) -> io::Result<()> {
        let Self { disk, sync: whole } = *self;
        sync(&disk, || whole.finish())
    }
}

impl DiskFile for SteppedFile {
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    fn read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize> {
        step(Stop::Read, || self.file.read_at(buffer, bytes, position))
    }

    fn try_read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize> {
        step(Stop::Read, || self.file.try_read_at(buffer, bytes, position))
    }

    fn will_read(&self, position: u64, bytes: u64) {
        self.file.will_read(position, bytes);
    }

    fn write_at(&self, slices: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        match stop(Stop::Write)? {
            Go::On => self.file.write_at(slices, position),
            Go::Short => {
                let first = slices.first().map_or(&[][..], |slice| slice);
                let half = IoSlice::new(&first[..first.len().div_ceil(2)]);
                self.file.write_at(&[half], position)
            }
            Go::Fail(error) => Err(io::Error::from_raw_os_error(error)),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        sync(&self.disk, || self.file.sync_data())
    }

    /// One that is to fail does so in the test disk, and the next sync reports it.
    fn start_write_back(&self, position: u64, bytes: u64) -> io::Result<()> {
        if let Go::Fail(_) = stop(Stop::WriteBack)? {
            self.disk.set_faults(Faults {
                fail_write_back: self.disk.write_backs() + 1,
                ..Faults::default()
            });
        }
        self.file.start_write_back(position, bytes)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        step(Stop::Write, || self.file.set_bytes(bytes))
    }

    fn allocate(&self, bytes: u64) -> io::Result<bool> {
        step(Stop::Write, || self.file.allocate(bytes))
    }

    fn links(&self) -> io::Result<u64> {
        self.file.links()
    }
}
