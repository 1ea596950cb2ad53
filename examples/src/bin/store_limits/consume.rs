//! Reading a backlog from the store as a fetch does: from the broker's memory, the page cache, and the disk.

use std::path::Path;
use std::time::Instant;

use mq_broker::ids::QueueKey;
use mq_broker::log::Want;
use mq_broker::store::{Access, Found, ReadError};
use mq_common::ids::Offset;
use serde_json::{Value, json};

use super::journal::{Journal, batch};
use super::{Failure, forget_cached, megabytes, rate};

const RECORD_BYTES: usize = 1024;
const RECORDS: usize = 64;
const QUEUES: usize = 8;
/// Memory for a backlog however small.
const TAIL_BYTES_MIN: usize = 16 * 1024 * 1024;
/// As a consumer asks for.
const FETCH_BYTES: usize = 1024 * 1024;

/// The figures for a backlog of so many bytes.
pub(super) fn consume(folder: &Path, bytes: usize) -> Result<Vec<Value>, Failure> {
    let mut figures = Vec::new();
    for (from, tail_bytes) in [
        ("memory", 2 * bytes + TAIL_BYTES_MIN),
        ("page_cache", 0),
        ("cold", 0),
    ] {
        let data = folder.join("consume");
        let mut journal = Journal::create(&data, QUEUES, tail_bytes)?;
        let batch = batch(RECORD_BYTES, RECORDS)?;
        for _ in 0..(bytes / (RECORD_BYTES * RECORDS * QUEUES)).max(4) {
            journal.append(&batch, QUEUES as u64, Want::Synced)?;
        }
        if from == "cold" {
            forget_folder(&data)?;
        }
        figures.push(read_all(&journal, from)?);
        drop(journal);
        std::fs::remove_dir_all(&data)?;
    }
    Ok(figures)
}

fn forget_folder(folder: &Path) -> Result<(), Failure> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            forget_folder(&path)?;
        } else {
            forget_cached(&path)?;
        }
    }
    Ok(())
}

/// Reads every queue from its begin, in turn, each time what one fetch brings.
fn read_all(journal: &Journal, from: &str) -> Result<Value, Failure> {
    let store = &journal.placing.store;
    let mut next = vec![0; journal.placing.ends.len()];
    let (mut bytes, mut records, mut at_once, mut waited) = (0, 0_u64, 0_u64, 0_u64);
    let started = Instant::now();
    loop {
        let mut all_read = true;
        for ((queue, next), end) in (0..).zip(&mut next).zip(&journal.placing.ends) {
            if *next >= *end {
                continue;
            }
            all_read = false;
            let fetch = |access| {
                let (queue, from, end) = (QueueKey(queue), Offset(*next), Offset(*end));
                store.fetch_by(access, queue, from, end, FETCH_BYTES)
            };
            let found = match fetch(Access::AtOnce) {
                Err(ReadError::Waits) => {
                    waited += 1;
                    fetch(Access::Waits)
                }
                found => {
                    at_once += 1;
                    found
                }
            };
            for found in found? {
                match found {
                    Found::Batch { row, region } => {
                        bytes += region.len();
                        records += u64::from(row.count);
                        *next = row.end().0;
                    }
                    Found::Hole { reason, .. } => return Err(reason.into()),
                }
            }
        }
        if all_read {
            break;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({
        "figure": "consume", "from": from, "record_bytes": RECORD_BYTES, "queues": QUEUES,
        "mb_per_s": megabytes(bytes, seconds), "msgs_per_s": rate(records, seconds),
        "reads_at_once": at_once, "reads_that_waited": waited,
    }))
}
