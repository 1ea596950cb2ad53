//! Checks queues in two steps: while the core is held, what they contain; then, reading their files, the new
//! start of each.

use std::collections::{BTreeMap, HashMap};

use mq_common::api::TopicSettings;
use mq_common::ids::{Offset, Timestamp, TopicName};

use super::decide::{Boundaries, Range, new_start};
use super::watch::{Measured, Seen};
use crate::core::VisibleRange;
use crate::ids::QueueKey;
use crate::state::{Pauses, State};
use crate::store::time_search::{Stretch, first_at};
use crate::store::{Extent, ReadError, Store};

/// A queue is measured again after one part in this many of its limit was appended: it may exceed the limit
/// by that much.
const MEASURE_PART: u64 = 20;
/// How many stretches without a known age are skipped in search of one, from the queue's start on.
const UNKNOWN_MAX: usize = 8;

/// What ages are measured by.
#[derive(Debug, Clone)]
pub(super) struct Ages {
    pub(super) now: Timestamp,
    pub(super) pauses: Pauses,
}

/// A queue that may have something to delete.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) key: QueueKey,
    settings: TopicSettings,
    range: Range,
    /// Bytes appended since its creation.
    bytes: u64,
    /// First offset that some group has not acknowledged; `None` = no group.
    acknowledged: Option<Offset>,
}

/// What [`visit`] found.
#[derive(Debug, Default)]
pub(super) struct Visited {
    /// Queues that hold messages, of topics that delete messages.
    pub(super) candidates: Vec<Candidate>,
    /// The others: nothing has to be known about them.
    pub(super) others: Vec<QueueKey>,
    /// Queues with messages that are not visible yet.
    pub(super) hidden: Vec<QueueKey>,
}

/// The decisions for some queues.
#[derive(Debug, Default)]
pub(super) struct Decided {
    /// New starts.
    pub(super) starts: Vec<(QueueKey, Offset)>,
    /// What is known about each queue now.
    pub(super) seen: Vec<(QueueKey, Seen)>,
    /// Queues that could not be checked.
    pub(super) failed: Vec<QueueKey>,
}

/// The queries to the store.
pub(super) trait Stored {
    /// See [`Store::extent`].
    fn extent(&self, queue: QueueKey, offset: Offset, end: Offset) -> Result<Option<Extent>, ReadError>;
    /// See [`Store::bytes_behind`].
    fn bytes_behind(&self, queue: QueueKey, range: (Offset, Offset), bytes: u64)
    -> Result<Offset, ReadError>;
}

impl Stored for Store {
    fn extent(&self, queue: QueueKey, offset: Offset, end: Offset) -> Result<Option<Extent>, ReadError> {
        Self::extent(self, queue, offset, end)
    }

    fn bytes_behind(
        &self,
        queue: QueueKey,
        range: (Offset, Offset),
        bytes: u64,
    ) -> Result<Offset, ReadError> {
        Self::bytes_behind(self, queue, range, bytes)
    }
}

/// What these queues contain. Runs while the core is held, so it reads no file. `ends` returns the visible
/// range of a queue.
pub(super) fn visit(
    state: &State,
    keys: impl IntoIterator<Item = QueueKey>,
    ends: impl Fn(QueueKey) -> Option<VisibleRange>,
) -> Visited {
    let mut visited = Visited::default();
    let mut asks: BTreeMap<&TopicName, Vec<QueueKey>> = BTreeMap::new();
    for key in keys {
        let queue = state.queue(key);
        let settings = queue
            .and_then(|queue| state.topic(&queue.topic))
            .map(|topic| topic.declaration.settings)
            .filter(TopicSettings::deletes);
        let (Some(queue), Some(settings), Some(VisibleRange { start, end })) = (queue, settings, ends(key))
        else {
            visited.others.push(key);
            continue;
        };
        if end < queue.end {
            visited.hidden.push(key);
        }
        if start >= end {
            visited.others.push(key);
            continue;
        }
        if settings.consumed || settings.hold_ms.is_some() {
            asks.entry(&queue.topic).or_default().push(key);
        }
        visited.candidates.push(Candidate {
            key,
            settings,
            range: Range { start, end },
            bytes: queue.bytes,
            acknowledged: None,
        });
    }
    let acknowledged = acknowledged(state, &asks);
    for candidate in &mut visited.candidates {
        candidate.acknowledged = acknowledged.get(&candidate.key).copied();
    }
    visited
}

/// For each of these queues that a group reads, the first offset that some group has not acknowledged.
fn acknowledged(state: &State, asks: &BTreeMap<&TopicName, Vec<QueueKey>>) -> HashMap<QueueKey, Offset> {
    let mut least: HashMap<QueueKey, Offset> = HashMap::new();
    if asks.is_empty() {
        return least;
    }
    for (_, group) in state.groups() {
        for queue in asks.get(&group.topic).into_iter().flatten() {
            if let Some(cursor) = group.cursor(*queue) {
                let known = least.entry(*queue).or_insert(cursor);
                *known = cursor.min(*known);
            }
        }
    }
    least
}

/// The queues whose start is to move, and what is known about all of them now. Reads files.
pub(super) fn decide_all(store: &impl Stored, ages: &Ages, known: Vec<(Candidate, Seen)>) -> Decided {
    let mut decided = Decided::default();
    for (candidate, mut seen) in known {
        match decide(store, ages, &candidate, &mut seen) {
            Ok(start) if start > candidate.range.start => decided.starts.push((candidate.key, start)),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(queue = candidate.key.0, %error, "retention cannot check a queue; it will be tried again");
                decided.failed.push(candidate.key);
            }
        }
        decided.seen.push((candidate.key, seen));
    }
    decided
}

fn decide(store: &impl Stored, ages: &Ages, queue: &Candidate, seen: &mut Seen) -> Result<Offset, ReadError> {
    let Range { start, .. } = queue.range;
    if seen.start != start {
        (seen.start, seen.oldest) = (start, None);
    }
    let acknowledged = queue.acknowledged;
    let mut boundaries = Boundaries {
        young: start,
        near: start,
        below_ceiling: start,
    };
    if let Some(age) = queue.settings.retention_ms {
        boundaries.young = first_younger(store, ages, age, queue, seen)?;
    }
    if let Some(limit) = queue.settings.retention_bytes {
        boundaries.near = first_near(store, limit, queue, seen)?;
    }
    let may_go = boundaries.young.max(boundaries.near) > start;
    let held = queue
        .settings
        .hold_ms
        .filter(|_| may_go && acknowledged.is_some());
    if let Some(ceiling) = held {
        boundaries.below_ceiling = first_younger(store, ages, ceiling, queue, seen)?;
    }
    let new = new_start(&queue.settings, queue.range, &boundaries, acknowledged);
    if new > start {
        // The batch at the new start is checked after the trim, which counts as a change.
        (seen.start, seen.oldest) = (new, None);
    } else {
        seen.due = due(ages, [queue.settings.retention_ms, held], seen.oldest);
    }
    Ok(new)
}

/// When the first batch reaches the next of these ages. If it has reached one already, it is held back by
/// something whose change is noticed.
fn due(ages: &Ages, limits: [Option<u64>; 2], oldest: Option<Timestamp>) -> Option<Timestamp> {
    let limits = limits.into_iter().flatten();
    let reached = |age| match oldest {
        Some(oldest) => ages.pauses.due(oldest, age),
        // Nothing is known about it: check it each time.
        None => Timestamp(ages.now.0 + 1),
    };
    limits.map(reached).filter(|due| *due > ages.now).min()
}

/// First offset of a batch that is not older than `age`.
fn first_younger(
    store: &impl Stored,
    ages: &Ages,
    age: u64,
    queue: &Candidate,
    seen: &mut Seen,
) -> Result<Offset, ReadError> {
    let Range { start, end } = queue.range;
    if seen.oldest.is_none() {
        seen.oldest = oldest(store, queue)?;
    }
    let Some(cutoff) = ages.pauses.cutoff(ages.now, age) else {
        return Ok(start);
    };
    if seen.oldest.is_some_and(|oldest| oldest >= cutoff) {
        return Ok(start);
    }
    first_at(start, end, cutoff, |offset| {
        let extent = store.extent(queue.key, offset, end)?;
        Ok(extent.map(|extent| Stretch {
            from: extent.from,
            end: extent.end,
            time: extent.time,
        }))
    })
}

/// The append time of the first batch with a known time.
fn oldest(store: &impl Stored, queue: &Candidate) -> Result<Option<Timestamp>, ReadError> {
    let Range { start, end } = queue.range;
    let mut at = start;
    for _ in 0..UNKNOWN_MAX {
        let Some(first) = store.extent(queue.key, at, end)? else {
            break;
        };
        if first.time.is_some() {
            return Ok(first.time);
        }
        at = first.end;
        if at >= end {
            break;
        }
    }
    Ok(None)
}

/// First offset that has no more than `limit` bytes of newer messages after it.
fn first_near(
    store: &impl Stored,
    limit: u64,
    queue: &Candidate,
    seen: &mut Seen,
) -> Result<Offset, ReadError> {
    let Range { start, end } = queue.range;
    let measured = seen.measured.filter(|measured| measured.limit == limit);
    let known = measured.map_or(start, |measured| measured.near.max(start));
    let enough = match measured {
        None => limit,
        Some(measured) => measured.bytes.saturating_add(limit / MEASURE_PART),
    };
    if queue.bytes <= enough {
        return Ok(known);
    }
    let near = store.bytes_behind(queue.key, (start, end), limit)?;
    seen.measured = Some(Measured {
        limit,
        bytes: queue.bytes,
        near,
    });
    Ok(near)
}
