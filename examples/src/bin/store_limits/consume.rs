//! Reading a backlog from the store as a fetch does: from the broker's memory, the page cache, and the disk;
//! from the journal, where the queues are interleaved, all of them and one alone; and from queue files.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mq_broker::ids::QueueKey;
use mq_broker::log::{SegmentId, Want};
use mq_broker::store::{Access, Found, Pace, PlannedQueue, QueueName, ReadError};
use mq_common::ids::{Offset, QueueNumber, TopicId, TopicName};
use serde_json::{Value, json};

use super::journal::{Journal, batch};
use super::{Failure, forget_cached, megabytes, micros, rate};

const RECORD_BYTES: usize = 1024;
const RECORDS: usize = 64;
const QUEUES: u32 = 8;
/// More than the size of a backlog.
const SEGMENTS_MAX: u64 = 1024;
/// The least memory for a backlog.
const TAIL_BYTES_MIN: usize = 16 * 1024 * 1024;
/// The bytes of one fetch of a consumer.
const FETCH_BYTES: usize = 1024 * 1024;

/// What is read.
struct Backlog {
    from: &'static str,
    /// Memory for the newest batches.
    tail_bytes: usize,
    /// Whether it was moved into queue files before.
    is_moved: bool,
    /// Whether it was dropped from the page cache before.
    is_cold: bool,
    /// The queues that are read.
    queues: Range<u32>,
}

/// Reports the figures for a backlog of this many bytes.
pub(super) fn consume(
    folder: &Path,
    bytes: usize,
    tell: &mut dyn FnMut(Value) -> io::Result<()>,
) -> Result<(), Failure> {
    let backlog = |from, queues| Backlog {
        from,
        tail_bytes: 0,
        is_moved: false,
        is_cold: true,
        queues,
    };
    let backlogs = [
        Backlog {
            tail_bytes: 2 * bytes + TAIL_BYTES_MIN,
            is_cold: false,
            ..backlog("memory", 0..QUEUES)
        },
        Backlog {
            is_cold: false,
            ..backlog("page_cache", 0..QUEUES)
        },
        backlog("cold", 0..QUEUES),
        backlog("cold_one_queue", 0..1),
        Backlog {
            is_moved: true,
            ..backlog("cold_queue_files", 0..QUEUES)
        },
        Backlog {
            is_moved: true,
            ..backlog("cold_one_queue_file", 0..1)
        },
    ];
    for backlog in &backlogs {
        let data = folder.join("consume");
        let mut journal = Journal::create(&data, QUEUES as usize, backlog.tail_bytes)?;
        let batch = batch(RECORD_BYTES, RECORDS)?;
        for _ in 0..(bytes / (RECORD_BYTES * RECORDS * QUEUES as usize)).max(4) {
            journal.append(&batch, u64::from(QUEUES), Want::Synced)?;
        }
        if backlog.is_moved {
            journal.seal()?;
            move_sealed(&mut journal)?;
        }
        if backlog.is_cold {
            forget_folder(&data)?;
        }
        let figure = read_all(&journal, backlog)?;
        drop(journal);
        std::fs::remove_dir_all(&data)?;
        tell(figure)?;
    }
    Ok(())
}

/// Never waits.
struct Unhurried;

impl Pace for Unhurried {
    fn pause(&mut self, _: Duration) -> bool {
        true
    }
}

/// Moves the contents of sealed segments into queue files; the backlog then ends where these do.
fn move_sealed(journal: &mut Journal) -> Result<(), Failure> {
    let topic = Arc::new(TopicName::new("load")?);
    let queue = |key: QueueKey| {
        let name = QueueName {
            topic: Arc::clone(&topic),
            topic_id: TopicId(1),
            number: QueueNumber(key.0),
        };
        Some(PlannedQueue {
            name,
            start: Offset(0),
            compacts: false,
        })
    };
    let store = &journal.placing.store;
    let sealed: Vec<_> = (1..SEGMENTS_MAX).map(SegmentId).collect();
    if let Some(plan) = store.plan(&sealed, sealed.len(), &[], queue) {
        store.compact(&plan, &mut Unhurried)?;
    }
    let files = store.take_rows().files;
    journal.placing.ends.fill(0);
    for file in files {
        if let Some(end) = journal.placing.ends.get_mut(file.queue.0 as usize) {
            *end = file.segment.end.0.max(*end);
        }
    }
    Ok(())
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

/// Reads queues from their starts, in turn, one fetch each.
fn read_all(journal: &Journal, backlog: &Backlog) -> Result<Value, Failure> {
    let store = &journal.placing.store;
    let mut queues: Vec<_> = (0..)
        .zip(&journal.placing.ends)
        .filter(|(queue, _)| backlog.queues.contains(queue))
        .map(|(queue, end)| (QueueKey(queue), Offset(0), Offset(*end)))
        .collect();
    let (mut bytes, mut records, mut at_once, mut waited) = (0, 0_u64, 0_u64, 0_u64);
    let (asked_before, processor_before) = (asked_of_the_disk()?, processor_nanos()?);
    let started = Instant::now();
    loop {
        let mut all_read = true;
        for (queue, next, end) in &mut queues {
            if *next >= *end {
                continue;
            }
            all_read = false;
            let fetch = |access| store.fetch_by(access, *queue, *next, *end, FETCH_BYTES);
            let found = match fetch(Access::CacheOnly) {
                Err(ReadError::WouldBlock) => {
                    waited += 1;
                    fetch(Access::Blocking)
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
                        *next = row.end();
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
    let disk_mb = megabytes(asked_of_the_disk()? - asked_before, 1.0);
    let processor_us = micros(Duration::from_nanos(processor_nanos()? - processor_before));
    Ok(json!({
        "figure": "consume", "from": backlog.from, "record_bytes": RECORD_BYTES, "queues": backlog.queues.len(),
        "mb_per_s": megabytes(bytes, seconds), "msgs_per_s": rate(records, seconds),
        "reads_at_once": at_once, "reads_that_waited": waited,
        "disk_mb": disk_mb, "served_mb": megabytes(bytes, 1.0), "processor_us": processor_us,
    }))
}

/// The processor time of this thread so far.
fn processor_nanos() -> Result<u64, Failure> {
    let counts = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = counts.split_whitespace().next();
    Ok(nanos
        .ok_or("the system does not report this thread's processor time")?
        .parse()?)
}

/// Bytes that this process has read from the disk so far, including read-ahead.
fn asked_of_the_disk() -> Result<usize, Failure> {
    let counts = std::fs::read_to_string("/proc/self/io")?;
    let line = counts.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    Ok(line.ok_or("the system does not report the bytes read")?.parse()?)
}
