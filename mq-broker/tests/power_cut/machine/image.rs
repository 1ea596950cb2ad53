//! Disks as a cut of the power leaves them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use fastrand::Rng;

use super::Log;

/// Bytes that reach the disk together or not at all.
const SECTOR_BYTES: usize = 512;
/// Zeros of this size are left out of the file.
const BLOCK_BYTES: usize = 65536;

/// A disk that follows the log, from one cut to the next.
pub(crate) struct Disk<'a> {
    log: &'a Log,
    /// What is certain: everything up to a flush.
    durable: Vec<u8>,
    /// Records that are in it.
    taken: usize,
}

impl<'a> Disk<'a> {
    pub(crate) fn new(log: &'a Log) -> Self {
        Self {
            log,
            durable: vec![0; log.bytes],
            taken: 0,
        }
    }

    /// A file with the disk after a cut behind record `moment`: all up to the last flush, and of the sectors
    /// written since a random part. Moments never go back.
    pub(crate) fn cut_at(&mut self, moment: usize, random: &mut Rng, folder: &Path) -> PathBuf {
        let records = &self.log.records;
        let flushed = records[..=moment]
            .iter()
            .rposition(|record| record.write.is_none());
        let flushed = flushed.unwrap_or(0).max(self.taken);
        for (position, bytes) in records[self.taken..flushed]
            .iter()
            .filter_map(|one| one.write.as_ref())
        {
            self.durable[*position..position + bytes.len()].copy_from_slice(bytes);
        }
        self.taken = flushed;
        let mut left = self.durable.clone();
        // Nothing, half, nearly all, all of it.
        let kept_of_ten = [0, 5, 5, 9, 10][random.usize(..5)];
        for (position, bytes) in records[flushed..=moment]
            .iter()
            .filter_map(|one| one.write.as_ref())
        {
            for (sector, part) in bytes.chunks(SECTOR_BYTES).enumerate() {
                if random.u32(..10) < kept_of_ten {
                    let from = position + sector * SECTOR_BYTES;
                    left[from..from + part.len()].copy_from_slice(part);
                }
            }
        }
        let path = folder.join("crashed.img");
        let file = File::create(&path).unwrap();
        file.set_len(left.len() as u64).unwrap();
        for (block, bytes) in left.chunks(BLOCK_BYTES).enumerate() {
            if bytes.iter().any(|byte| *byte != 0) {
                file.write_all_at(bytes, (block * BLOCK_BYTES) as u64).unwrap();
            }
        }
        path
    }
}
