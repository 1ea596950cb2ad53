//! Reads several queues in turn for one response, until it has enough.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mq_common::ids::{Offset, QueueNumber};

use crate::core::VisibleRange;
use crate::ids::QueueKey;
use crate::store::{Access, Found, ReadError, Store};

/// The limits of one response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) bytes: usize,
    pub(crate) queues: usize,
    pub(crate) time: Duration,
}

/// One queue that has messages to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    pub(crate) want: usize,
    pub(crate) key: QueueKey,
    pub(crate) queue: QueueNumber,
    pub(crate) offset: Offset,
    pub(crate) ends: VisibleRange,
}

/// The result of reading one queue.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) ready: Ready,
    pub(crate) found: Result<Vec<Found>, ReadError>,
}

impl Read {
    /// Bytes of the batches.
    pub(crate) fn bytes(&self) -> usize {
        self.found.iter().flatten().map(bytes_of).sum()
    }
}

/// Reads the queues in turn until there are enough bytes or queues, or it took long enough. A queue whose
/// read would block and must not is skipped; if it is the first one, nothing is read, so that a queue on disk
/// also gets its turn.
pub(crate) fn read_all(store: &Store, ready: &[Ready], bounds: Bounds, access: Access) -> Vec<Read> {
    let since = Instant::now();
    let mut left = bounds.bytes;
    let mut read = Vec::new();
    for (turn, ready) in ready.iter().enumerate() {
        let is_late = !read.is_empty() && since.elapsed() >= bounds.time;
        if left == 0 || read.len() == bounds.queues || is_late {
            break;
        }
        let found = store.fetch_by(access, ready.key, ready.offset, ready.ends.end, left);
        match (turn, &found) {
            (0, Err(ReadError::WouldBlock)) => break,
            (_, Err(ReadError::WouldBlock)) => continue,
            _ => {}
        }
        let bytes: usize = found.iter().flatten().map(bytes_of).sum();
        left = left.saturating_sub(bytes);
        read.push(Read { ready: *ready, found });
    }
    read
}

fn bytes_of(found: &Found) -> usize {
    match found {
        Found::Batch { region, .. } => Bytes::len(region),
        Found::Hole { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::store::disk::TestDisk;
    use crate::store::{Folder, Rows, Settings};

    #[test]
    fn one_queue_is_read_however_long_it_takes_and_a_further_one_only_in_time() {
        let folder = Folder::open(Arc::new(TestDisk::default()), Path::new("d")).unwrap();
        let store = Store::open(&folder, Settings::default(), Rows::default());
        let ends = VisibleRange {
            start: Offset(0),
            end: Offset(1),
        };
        let ready: Vec<_> = (0..3_u8)
            .map(|want| Ready {
                want: usize::from(want),
                key: QueueKey(want.into()),
                queue: QueueNumber(want.into()),
                offset: Offset(0),
                ends,
            })
            .collect();
        let read = |time| {
            let (bytes, queues) = (1000, 3);
            let bounds = Bounds { bytes, queues, time };
            read_all(&store, &ready, bounds, Access::Blocking).len()
        };
        assert_eq!(read(Duration::ZERO), 1);
        assert_eq!(read(Duration::MAX), 3);
    }
}
