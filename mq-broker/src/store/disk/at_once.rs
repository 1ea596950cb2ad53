//! A file for readers that must not wait for a device: an ordinary read returns `WouldBlock` instead of
//! waiting.

use std::io::{self, IoSlice};

use super::DiskFile;

/// A file whose reads never wait for the device.
#[derive(Debug, Clone, Copy)]
pub struct AtOnce<'a>(pub &'a dyn DiskFile);

impl DiskFile for AtOnce<'_> {
    fn bytes(&self) -> io::Result<u64> {
        self.0.bytes()
    }

    fn read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize> {
        self.0.try_read_at(buffer, bytes, position)
    }

    fn try_read_at(&self, buffer: &mut Vec<u8>, bytes: usize, position: u64) -> io::Result<usize> {
        self.0.try_read_at(buffer, bytes, position)
    }

    fn will_read(&self, position: u64, bytes: u64) {
        self.0.will_read(position, bytes);
    }

    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn start_write_back(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_bytes(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn allocate(&self, _: u64) -> io::Result<bool> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn links(&self) -> io::Result<u64> {
        self.0.links()
    }
}
