//! The bare disk: sequential writes and reads, and fdatasync after small writes into a prefilled file.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{Failure, forget_cached, megabytes, micros, rate, whole};

const FILE_BYTES: usize = 64 * 1024 * 1024;
/// Files of the sequential read for each second of a figure.
const FILES_READ_PER_S: f64 = 2.0;

/// Writes of 1 MiB into new files, each synced when it is full: what the journal does, without any of its
/// code.
pub(super) fn sequential(folder: &Path, time: Duration) -> Result<Value, Failure> {
    let block = vec![0x5a; 1024 * 1024];
    let started = Instant::now();
    let (mut bytes, mut files) = (0, 0);
    while started.elapsed() < time {
        let path = folder.join(format!("sequential-{files}"));
        let mut file = File::create(&path)?;
        for _ in 0..FILE_BYTES / block.len() {
            file.write_all(&block)?;
            bytes += block.len();
        }
        file.sync_data()?;
        files += 1;
    }
    let seconds = started.elapsed().as_secs_f64();
    // Not while measuring: writes into pages that were just freed are cheaper than those of the journal can
    // be.
    for file in 0..files {
        std::fs::remove_file(folder.join(format!("sequential-{file}")))?;
    }
    Ok(
        json!({"figure": "sequential_write", "block_bytes": block.len(), "mb_per_s": megabytes(bytes, seconds)}),
    )
}

/// A file that was filled and synced before, so that a small write and its fdatasync change no metadata.
/// Removed when dropped.
#[derive(Debug)]
pub(super) struct Prefilled {
    path: PathBuf,
    file: File,
    at: usize,
}

impl Prefilled {
    pub(super) fn create(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(path)?;
        file.write_all_at(&vec![0; FILE_BYTES], 0)?;
        file.sync_all()?;
        Ok(Self {
            path: path.to_owned(),
            file,
            at: 0,
        })
    }

    /// Writes `block` after the previous one and syncs it; starts over at the end of the file.
    pub(super) fn write_and_sync(&mut self, block: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(block, self.at as u64)?;
        self.file.sync_data()?;
        self.at = (self.at + block.len()) % (FILE_BYTES - block.len());
        Ok(())
    }
}

impl Drop for Prefilled {
    fn drop(&mut self) {
        // The whole folder is removed in the end.
        drop(std::fs::remove_file(&self.path));
    }
}

/// One write and one fdatasync at a time, one after another.
pub(super) fn fdatasync(folder: &Path, write_bytes: usize, time: Duration) -> Result<Value, Failure> {
    let mut file = Prefilled::create(&folder.join("fdatasync"))?;
    let block = vec![0x5a; write_bytes];
    let mut latency = Histogram::<u64>::new(3)?;
    let started = Instant::now();
    while started.elapsed() < time {
        let begun = Instant::now();
        file.write_and_sync(&block)?;
        latency.record(micros(begun.elapsed()))?;
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({
        "figure": "fdatasync", "write_bytes": write_bytes, "syncs_per_s": rate(latency.len(), seconds),
        "p50_us": latency.value_at_quantile(0.5), "p99_us": latency.value_at_quantile(0.99),
    }))
}

/// Reads of 1 MiB from files that are not in the page cache.
pub(super) fn sequential_read(folder: &Path, time: Duration) -> Result<Value, Failure> {
    let mut block = vec![0x5a; 1024 * 1024];
    let mut files = Vec::new();
    for number in 0..whole(time.as_secs_f64() * FILES_READ_PER_S).max(1) {
        let path = folder.join(format!("read-{number}"));
        let mut file = File::create(&path)?;
        for _ in 0..FILE_BYTES / block.len() {
            file.write_all(&block)?;
        }
        file.sync_data()?;
        forget_cached(&path)?;
        files.push(path);
    }
    let started = Instant::now();
    let mut bytes = 0;
    for path in &files {
        let file = File::open(path)?;
        let mut at = 0;
        while at < FILE_BYTES {
            file.read_exact_at(&mut block, at as u64)?;
            at += block.len();
        }
        bytes += at;
    }
    let seconds = started.elapsed().as_secs_f64();
    for path in files {
        std::fs::remove_file(path)?;
    }
    Ok(
        json!({"figure": "sequential_read", "block_bytes": block.len(), "mb_per_s": megabytes(bytes, seconds)}),
    )
}
