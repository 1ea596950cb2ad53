//! Non-blocking reads, and announcements of reads to come.

use super::TestDisk;

impl TestDisk {
    /// Whether every read has to wait for the device.
    pub fn set_cold(&self, cold: bool) {
        self.set_cold_from(cold.then_some(0));
    }

    /// From this position on, reads of every file have to wait for the device.
    pub fn set_cold_from(&self, position: Option<u64>) {
        self.inner().cold_from = position;
    }

    /// The places (position, bytes) announced to be read since the last call.
    #[must_use]
    pub fn take_hints(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.inner().hints)
    }

    /// How often a file was announced to be read at random positions.
    #[must_use]
    pub fn jumps(&self) -> u64 {
        self.inner().jumps
    }
}
