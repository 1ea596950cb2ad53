//! Faults that a test may inject into a [`super::TestDisk`].

/// What remains after the machine lost power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Only what was synced.
    LoseUnsynced,
    /// Everything: as after the death of the process alone.
    KeepAll,
    /// Of what was not synced, a random subset of the sectors, and of the changes of names in each folder a
    /// random prefix.
    Random(u64),
}

/// Faults to come. Counts run from 1 over the life of the disk; 0 = never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The sync (of a file or folder) with this number fails, once.
    pub fail_sync: u64,
    /// The write-back with this number fails, once: its file's bytes count as clean and are not on the disk.
    /// The error is reported to another process; here it is only reported to those that began their sync
    /// before, or had the file open.
    pub fail_write_back: u64,
    /// The write with this number and every later one fails: the disk is full.
    pub full_from_write: u64,
    /// The open or listing with this number, and every later one, finds no file descriptor.
    pub no_descriptors_from: u64,
    /// No file gets a name: creating and renaming fail with this system error; 0 = they do not.
    pub names_fail: i32,
    /// No existing file can be opened for reading: it fails with this system error; 0 = it does not.
    pub opens_fail: i32,
    /// A write takes at most this many bytes, and every other call is interrupted; 0 = no limit.
    pub short_write_bytes: usize,
    /// A read returns at most this many bytes, and every other call is interrupted; 0 = no limit.
    pub short_read_bytes: usize,
    /// The read with this number fails, once.
    pub fail_read: u64,
    /// The read with this number returns a wrong bit, once: what memory and cables do.
    pub garble_read: u64,
    /// The write with this number goes this many bytes too far, and is reported as if it had not.
    pub misdirected_write: (u64, usize),
    /// Syncs return Ok and do nothing: a disk that lies.
    pub ignore_syncs: bool,
    /// The changing operation with this number, and every later one, fails and does nothing: the process is
    /// about to be found dead.
    pub dead_from_operation: u64,
    /// No blocks can be reserved.
    pub no_reserve: bool,
    /// The file system cannot be synced as a whole.
    pub no_filesystem_sync: bool,
}
