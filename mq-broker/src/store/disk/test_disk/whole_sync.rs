//! Syncs of the whole test disk, and the write-back that the system does before them.

use std::io;

use super::{Inner, TestDisk};
use crate::store::disk::FilesystemSync;

/// Knows which failed write-backs were reported before it.
#[derive(Debug)]
struct TestFilesystemSync {
    disk: TestDisk,
    life: u64,
    told: u64,
}

pub(super) fn begin(disk: &TestDisk) -> Option<Box<dyn FilesystemSync>> {
    let inner = disk.inner();
    if inner.faults.no_filesystem_sync {
        return None;
    }
    Some(Box::new(TestFilesystemSync {
        disk: disk.clone(),
        life: inner.life,
        told: inner.failed_write_backs,
    }))
}

impl FilesystemSync for TestFilesystemSync {
    fn finish(self: Box<Self>) -> io::Result<()> {
        let mut inner = self.disk.inner();
        if inner.life != self.life {
            return Err(io::Error::other("the process that began this sync is gone"));
        }
        let outcome = inner.count_sync();
        if inner.faults.ignore_syncs {
            return Ok(());
        }
        for file in &mut inner.files {
            match outcome {
                Ok(()) => file.sync(),
                Err(_) => file.forget(),
            }
        }
        outcome?;
        inner.unsynced_names.clear();
        inner.durable_names = inner.names.clone();
        inner.picture();
        if inner.failed_write_backs > self.told {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }
}

impl Inner {
    /// Writes nothing, for a test that wants it durable syncs; it may only fail. Then the error is reported
    /// to another process at once.
    pub(super) fn start_write_back(&mut self, file: usize) {
        self.write_backs += 1;
        if self.write_backs == self.faults.fail_write_back {
            self.files[file].forget();
            self.files[file].failed_write_backs += 1;
            self.failed_write_backs += 1;
        }
    }
}
