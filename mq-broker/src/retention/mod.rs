//! Deletes messages as their topics say: every so often it is decided for each queue from where on it keeps its messages,
//! and what is to change is proposed as a command. So all that it does goes through the log, replicas agree, and a
//! restart comes to the same starts.
//!
//! Ages are measured with the time of the log, which never goes back and does not follow steps of the wall clock while the
//! broker runs; of a long time without an entry only a part counts (see [`Pauses`]), and so that there is none while it
//! runs, this task writes an empty entry into a log that stands still. A queue's batches are looked at only when the oldest of them may be too old, or when so much came that its
//! size has to be measured anew; so a look at ten thousand queues with nothing to do reads nothing.
//!
//! The one invariant: nothing that a consumer cannot see yet is touched.

mod decide;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mq_common::api::{PageRequest, TopicSettings};
use mq_common::ids::{Offset, Timestamp, TopicName};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::core::{Answer, Core, Ends, Holder};
use crate::ids::{GroupKey, QueueKey};
use crate::log::{self, Refused, Want};
use crate::service::search::{Stretch, first_at};
use crate::state::{Command, Pauses, State};
use crate::store::{ReadError, Store};
use decide::{Found, Range, new_start};

/// Queues looked at under one hold of the core, about.
const QUEUES_AT_ONCE: usize = 2000;
/// Starts in one command.
const STARTS_AT_ONCE: usize = 10_000;
/// A log without an entry for so long gets one, milliseconds: see [`Pauses`].
const STANDS_STILL_MS: u64 = 6 * 60 * 60 * 1000;
/// The size of a queue is measured anew when this part of its limit came since the last time: so much more it may hold.
const MEASURE_PART: u64 = 20;

/// The task.
#[derive(Debug)]
pub(crate) struct Retention {
    core: Arc<Core>,
    every: Duration,
    /// What is known of queues, so that most of them need no look.
    seen: HashMap<QueueKey, Seen>,
}

/// What was found of a queue the last time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    /// Its start then.
    start: Offset,
    /// When its first batch was appended.
    oldest: Option<Timestamp>,
    /// Its size.
    measured: Option<Measured>,
}

/// Where a queue's limit of bytes lay when it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Measured {
    /// The limit.
    limit: u64,
    /// Bytes appended to it by then.
    bytes: u64,
    /// First offset that was not behind so many bytes.
    near: Offset,
}

/// What ages are measured with.
#[derive(Debug, Clone)]
struct Ages {
    now: Timestamp,
    pauses: Pauses,
}

/// A queue that may have something to let go.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    key: QueueKey,
    settings: TopicSettings,
    range: Range,
    /// Bytes appended since its creation.
    bytes: u64,
    /// First offset that some group has not acknowledged; `None` = no group.
    acknowledged: Option<Offset>,
}

impl Retention {
    pub(crate) fn new(settings: &config::Retention, core: &Arc<Core>) -> Self {
        Self {
            core: Arc::clone(core),
            every: Duration::from_millis(settings.check_ms),
            seen: HashMap::new(),
        }
    }

    /// Looks every so often, until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while stop
            .run_until_cancelled(tokio::time::sleep(self.every))
            .await
            .is_some()
        {
            if let Err(refused) = self.round().await {
                // Overloaded, full, or about to stop: what was not done is found again in the next round.
                tracing::debug!(%refused, "retention's round was cut short");
            }
        }
    }

    /// Looks at all queues once.
    async fn round(&mut self) -> Result<(), Refused> {
        self.keep_time().await?;
        let before = std::mem::take(&mut self.seen);
        for topics in self.topics() {
            let (ages, candidates) = self
                .core
                .visit(move |holder, core| candidates(holder, core, &topics))
                .await?;
            let seen = candidates
                .iter()
                .filter_map(|candidate| Some((candidate.key, *before.get(&candidate.key)?)))
                .collect();
            let store = Arc::clone(&self.core.published().store);
            let deciding = tokio::task::spawn_blocking(move || decide_all(&store, &ages, &candidates, seen));
            let (starts, seen) = match deciding.await {
                Ok(decided) => decided,
                Err(error) => {
                    tracing::error!(%error, "retention broke; it goes on in the next round");
                    return Ok(());
                }
            };
            self.seen.extend(seen);
            self.propose(&starts).await?;
        }
        Ok(())
    }

    /// Writes an entry that does nothing into a log that stands still.
    async fn keep_time(&self) -> Result<(), Refused> {
        let still = |holder: &mut Holder, core: &Core| {
            let last = holder.state().at().time;
            core.clock().now().0.saturating_sub(last.0)
        };
        let still = self.core.visit(still).await?;
        if still >= STANDS_STILL_MS {
            let nothing = Command::Trim { starts: Vec::new() };
            let command = log::Command::new(nothing.encode(), Vec::new());
            // If it is refused, the next round tries again.
            drop(self.core.propose_one(command, Want::Flushed).await);
        }
        Ok(())
    }

    /// The topics that let messages go, in lists that are worth a visit.
    fn topics(&self) -> Vec<Vec<TopicName>> {
        let mut lists = Vec::new();
        let mut list = Vec::new();
        let mut queues = 0;
        let mut page = PageRequest::default();
        loop {
            let topics = self.core.published().topics.page(&page);
            for topic in &topics.items {
                let declaration = &topic.declaration;
                if declaration.deleted || !declaration.settings.deletes() || topic.here.is_empty() {
                    continue;
                }
                list.push(declaration.name.clone());
                queues += topic.here.len();
                if queues >= QUEUES_AT_ONCE {
                    lists.push(std::mem::take(&mut list));
                    queues = 0;
                }
            }
            match topics.next {
                Some(next) => page.after = Some(next),
                None => break,
            }
        }
        lists.extend(Some(list).filter(|list| !list.is_empty()));
        lists
    }

    /// Proposes new starts. They need no sync: if they are forgotten, they are found again.
    async fn propose(&self, starts: &[(QueueKey, Offset)]) -> Result<(), Refused> {
        for starts in starts.chunks(STARTS_AT_ONCE) {
            let starts = starts.to_vec();
            tracing::debug!(queues = starts.len(), "retention lets messages go");
            let command = log::Command::new(Command::Trim { starts }.encode(), Vec::new()).that_frees();
            if let Answer::Refused(refused) = self.core.propose_one(command, Want::Flushed).await {
                return Err(refused);
            }
        }
        Ok(())
    }
}

/// The log's time and pauses, and those queues of these topics that hold anything. Under the hold of the core: no file is read here.
fn candidates(holder: &mut Holder, core: &Core, topics: &[TopicName]) -> (Ages, Vec<Candidate>) {
    let state = holder.state();
    let ages = Ages {
        now: state.at().time.max(core.clock().now()),
        pauses: state.pauses().clone(),
    };
    let acknowledged = acknowledged(state, topics);
    let mut candidates = Vec::new();
    for topic in topics.iter().filter_map(|name| state.topic(name)) {
        for (_, key) in &topic.here {
            let Some(Ends { start, end }) = core.published().tails.ends(*key) else {
                continue;
            };
            let Some(queue) = state.queue(*key).filter(|_| start < end) else {
                continue;
            };
            candidates.push(Candidate {
                key: *key,
                settings: topic.declaration.settings,
                range: Range { start, end },
                bytes: queue.bytes,
                acknowledged: acknowledged.get(key).copied(),
            });
        }
    }
    (ages, candidates)
}

/// For each queue of these topics that a group reads, the first offset that some group has not acknowledged.
fn acknowledged(state: &State, topics: &[TopicName]) -> HashMap<QueueKey, Offset> {
    let asks = |topic: &TopicName| {
        let settings = state.topic(topic).map(|topic| topic.declaration.settings);
        settings.is_some_and(|settings| settings.consumed || settings.hold_ms.is_some())
    };
    let mut least: HashMap<QueueKey, Offset> = HashMap::new();
    if !topics.iter().any(asks) {
        return least;
    }
    let groups = state
        .groups()
        .filter(|(_, group): &(GroupKey, _)| asks(&group.topic));
    for (queue, cursor) in groups.flat_map(|(_, group)| &group.cursors) {
        let known = least.entry(*queue).or_insert(*cursor);
        *known = (*cursor).min(*known);
    }
    least
}

/// The queues whose start is to move, and what is known of all of them now. Reads files.
fn decide_all(
    store: &Store,
    ages: &Ages,
    candidates: &[Candidate],
    mut seen: HashMap<QueueKey, Seen>,
) -> (Vec<(QueueKey, Offset)>, HashMap<QueueKey, Seen>) {
    let mut starts = Vec::new();
    for candidate in candidates {
        let known = seen.entry(candidate.key).or_default();
        match decide(store, ages, candidate, known) {
            Ok(start) if start > candidate.range.start => starts.push((candidate.key, start)),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(queue = candidate.key.0, %error, "retention cannot look at a queue; it is tried again");
            }
        }
    }
    (starts, seen)
}

fn decide(store: &Store, ages: &Ages, queue: &Candidate, seen: &mut Seen) -> Result<Offset, ReadError> {
    let Range { start, .. } = queue.range;
    if seen.start != start {
        (seen.start, seen.oldest) = (start, None);
    }
    let acknowledged = queue.acknowledged;
    let mut found = Found {
        young: start,
        near: start,
        below_ceiling: start,
    };
    if let Some(age) = queue.settings.retention_ms {
        found.young = first_younger(store, ages, age, queue, seen)?;
    }
    if let Some(limit) = queue.settings.retention_bytes {
        found.near = first_near(store, limit, queue, seen)?;
    }
    let may_go = found.young.max(found.near) > start;
    if let (Some(ceiling), Some(_), true) = (queue.settings.hold_ms, acknowledged, may_go) {
        found.below_ceiling = first_younger(store, ages, ceiling, queue, seen)?;
    }
    let new = new_start(&queue.settings, queue.range, &found, acknowledged);
    if new > start {
        // What lies at the new start is looked at when it begins to matter.
        *seen = Seen {
            start: new,
            oldest: None,
            measured: seen.measured,
        };
    }
    Ok(new)
}

/// First offset of a batch that is not older than `age`.
fn first_younger(
    store: &Store,
    ages: &Ages,
    age: u64,
    queue: &Candidate,
    seen: &mut Seen,
) -> Result<Offset, ReadError> {
    let Range { start, end } = queue.range;
    let Some(cutoff) = ages.pauses.cutoff(ages.now, age) else {
        return Ok(start);
    };
    if seen.oldest.is_none() {
        let first = store.extent(queue.key, start, end)?;
        seen.oldest = first.and_then(|first| first.time);
    }
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

/// First offset that is not behind `limit` bytes of newer messages.
fn first_near(store: &Store, limit: u64, queue: &Candidate, seen: &mut Seen) -> Result<Offset, ReadError> {
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
