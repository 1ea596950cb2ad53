//! The offset in a queue that corresponds to a time.

use std::sync::Arc;

use mq_common::ids::{Offset, Timestamp};
use mq_common::{Error, ErrorCode};

use super::Services;
use super::fetch::{end_of, read_error};
use crate::ids::QueueKey;
use crate::store::time_search::{Stretch, first_at};
use crate::store::{Found, ReadError};

/// The offset after the last batch appended before `time`: the start of those appended at or after it,
/// including damaged ones before them.
pub(super) async fn offset_at(services: &Services, key: QueueKey, time: Timestamp) -> Result<Offset, Error> {
    let mut searched = None;
    loop {
        let ends = services.core.published().visible.range(key);
        let ends = ends.ok_or_else(|| {
            Error::new(
                ErrorCode::UnknownQueue,
                "the queue is gone: its topic was deleted",
            )
        })?;
        let store = Arc::clone(&services.core.published().store);
        let search = move |_| {
            let (low, high) = store.narrow(key, (ends.start, ends.end), time);
            first_at(low, high, time, |offset| {
                let found = store.fetch(key, offset, ends.end, 1)?;
                Ok(found.first().map(stretch))
            })
        };
        let found = services.disk_pool.run(search).await;
        let broken = || Error::new(ErrorCode::Internal, "reading failed; see the broker's log");
        match found.ok_or_else(broken)? {
            // The queue was trimmed meanwhile: the rest is searched again.
            Err(error) if ReadError::is_gone(&error) && searched != Some(ends.start) => {
                searched = Some(ends.start);
            }
            found => return found.map_err(|error| read_error(&error)),
        }
    }
}

fn stretch(found: &Found) -> Stretch {
    let (from, time) = match found {
        Found::Batch { row, .. } => (row.base_offset, Some(row.time)),
        Found::Hole { from, .. } => (*from, None),
    };
    Stretch {
        from,
        end: end_of(found),
        time,
    }
}
