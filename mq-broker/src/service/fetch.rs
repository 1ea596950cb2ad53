//! Serves batches: a long poll over many queues. Batches are sent as they were written, after a stamp made
//! here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mq_common::api::fetch::{
    self as api, FROM_DISK_META, FetchRequest, FetchResponse, Fetched, KNOWS_COMPACTED_META, Want,
};
use mq_common::batch::{STAMPED_HEADER_BYTES, Stamp, stamp_header};
use mq_common::ids::{Offset, QueueNumber, Timestamp, TopicName};
use mq_common::limits::LONG_POLL_MS_MAX;
use mq_common::{Error, ErrorCode};
use prometheus_client::metrics::gauge::Gauge;
use rpc_core::{Attachment, Context};

use super::Services;
use super::batches::queue_key;
use super::offset_at_time::offset_at;
use crate::core::VisibleRange;
use crate::fetch::budget::Reservation;
use crate::fetch::fair_read::{Bounds, Read, Ready, read_all};
use crate::fetch::seen_damage::SeenDamage;
use crate::ids::QueueKey;
use crate::store::{Access, Found, HoleKind, ReadError};
use crate::telemetry::ReadLabel;

/// Bytes of batches in one response at most, before the one batch that may exceed it: with it, two frames'
/// worth.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes read from the page cache on a thread that others wait for: some tenths of a millisecond of copying
/// and checking.
const AT_ONCE_BYTES_MAX: usize = 1024 * 1024;
/// Queues read that way for one response, however few bytes each has.
const AT_ONCE_QUEUES_MAX: usize = 64;
/// Queues read from the disk for one response: each may be a seek, and others wait for the slot.
const WAITING_QUEUES_MAX: usize = 512;
/// Another queue is read that way for a response only if less time than this has passed ..
const AT_ONCE_TIME_MAX: Duration = Duration::from_millis(2);
/// .. and from the disk, less than this.
const WAITING_TIME_MAX: Duration = Duration::from_millis(250);
/// Queues in one request.
const WANTS_MAX: usize = 20_000;

/// The service `hc.mq.Fetch`.
#[derive(Debug, Clone)]
pub struct Fetch {
    services: Arc<Services>,
    seen_damage: Arc<SeenDamage>,
}

impl api::Fetch for Fetch {
    async fn fetch(&self, request: FetchRequest) -> Result<(FetchResponse, Attachment), Error> {
        self.services.count(self.serve(request).await)
    }

    async fn offset_at(
        &self,
        topic: TopicName,
        queue: QueueNumber,
        time: Timestamp,
    ) -> Result<Offset, Error> {
        let known = self.services.topic(&topic)?;
        let key = queue_key(&topic, &known, queue)?;
        offset_at(&self.services, key, time).await
    }
}

impl Fetch {
    /// The service.
    #[must_use]
    pub fn new(services: Arc<Services>) -> Self {
        Self {
            services,
            seen_damage: Arc::default(),
        }
    }

    async fn serve(&self, request: FetchRequest) -> Result<(FetchResponse, Attachment), Error> {
        let services = &self.services;
        services.check_alive()?;
        if request.wants.len() > WANTS_MAX {
            return Err(Error::new(
                ErrorCode::TooLarge,
                format!(
                    "{} queues in one fetch, {WANTS_MAX} are allowed; split it",
                    request.wants.len()
                ),
            ));
        }
        let wait = Duration::from_millis(u64::from(request.wait_ms.min(LONG_POLL_MS_MAX)));
        let deadline = Instant::now() + wait;
        let keys = self.keys(&request);
        let mut waiter = None;
        let (ready, errors) = loop {
            let (ready, errors) = self.look(&request, &keys);
            let stop = services.stopping.is_cancelled() || services.core.failed().is_cancelled();
            if !ready.is_empty() || !errors.is_empty() || stop || Instant::now() >= deadline {
                break (ready, errors);
            }
            // Joined only when there is nothing, then checked again: no change in between is missed.
            let Some(waiter) = &waiter else {
                let known = keys.iter().flatten().copied().collect();
                waiter = Some(services.core.published().visible.waiter(known));
                continue;
            };
            let counted = Counted::new(&services.metrics.fetches_waiting);
            let context = Context::current();
            let changed = async {
                tokio::select! {
                    () = waiter.changed() => {}
                    () = context.cancelled() => {}
                    () = services.stopping.cancelled() => {}
                    () = services.core.failed().cancelled() => {}
                }
            };
            // The loop checks above whether the time is over.
            drop(tokio::time::timeout_at(deadline.into(), changed).await);
            drop(counted);
            if context.is_cancelled() {
                break (Vec::new(), Vec::new());
            }
        };
        drop(waiter);
        let bytes_max = (request.bytes_max as usize).clamp(1, ANSWER_BYTES_MAX);
        let (read, reservation) = self.read_reserved(ready, bytes_max).await?;
        services.check_alive()?;
        let (response, mut attachment) = self.answer(&request, read, errors);
        if let Some(reservation) = reservation {
            attachment.hold(Arc::new(reservation));
        }
        Ok((response, attachment))
    }

    /// Reads the queues that have messages, with memory reserved for them.
    async fn read_reserved(
        &self,
        ready: Vec<Ready>,
        bytes_max: usize,
    ) -> Result<(Vec<Read>, Option<Reservation>), Error> {
        if ready.is_empty() {
            return Ok((Vec::new(), None));
        }
        let services = &self.services;
        let mut reservation = services
            .response_budget
            .reserve(bytes_max, &services.stopping)
            .await?;
        let bytes_max = reservation.bytes();
        loop {
            let read = self.read(ready.clone(), bytes_max).await?;
            let bytes = read.iter().map(Read::bytes).sum();
            if bytes <= reservation.bytes() {
                reservation.shrink(bytes);
                return Ok((read, Some(reservation)));
            }
            // A single batch that is larger. No memory may be held while waiting for more.
            drop((read, reservation));
            reservation = services
                .response_budget
                .reserve_exactly(bytes, &services.stopping)
                .await?;
        }
    }

    /// The queues' keys, in order of the wants.
    fn keys(&self, request: &FetchRequest) -> Vec<Result<QueueKey, Error>> {
        let keys = request.wants.iter().map(|want| {
            let topic = self.services.topic(&want.topic)?;
            queue_key(&want.topic, &topic, want.queue)
        });
        keys.collect()
    }

    /// The wants that have messages, and those that have an error.
    fn look(
        &self,
        request: &FetchRequest,
        keys: &[Result<QueueKey, Error>],
    ) -> (Vec<Ready>, Vec<(usize, Error)>) {
        let ends = self.services.core.published().visible.all(
            keys.iter()
                .map(|key| key.as_ref().copied().unwrap_or(QueueKey(u32::MAX))),
        );
        let (mut ready, mut errors) = (Vec::new(), Vec::new());
        for (index, ((want, key), ends)) in request.wants.iter().zip(keys).zip(ends).enumerate() {
            match key.clone().and_then(|key| self.look_at(request, want, key, ends)) {
                Ok((key, ends)) if want.offset < ends.end => ready.push(Ready {
                    want: index,
                    key,
                    queue: want.queue,
                    offset: want.offset,
                    ends,
                }),
                Ok(_) => {}
                Err(error) => errors.push((index, error)),
            }
        }
        (ready, errors)
    }

    fn look_at(
        &self,
        request: &FetchRequest,
        want: &Want,
        key: QueueKey,
        ends: Option<VisibleRange>,
    ) -> Result<(QueueKey, VisibleRange), Error> {
        let gone = || {
            Error::new(
                ErrorCode::UnknownQueue,
                format!("topic `{}` was deleted", want.topic),
            )
        };
        let ends = ends.ok_or_else(gone)?;
        self.check_owner(request, want)?;
        if want.offset < ends.start || want.offset > ends.end {
            return Err(out_of_range(want, ends));
        }
        Ok((key, ends))
    }

    /// The error for a queue that cannot be read. If the queue was trimmed meanwhile and the wanted offset is
    /// gone, that is the reason.
    fn unread(&self, want: &Want, key: QueueKey, error: &ReadError) -> Error {
        let ends = self.services.core.published().visible.range(key);
        match ends.filter(|ends| error.is_gone() && want.offset < ends.start) {
            Some(ends) => out_of_range(want, ends),
            None => read_error(error),
        }
    }

    fn check_owner(&self, request: &FetchRequest, want: &Want) -> Result<(), Error> {
        let Some((group, member)) = &request.member else {
            return Ok(());
        };
        let epoch = want.epoch.ok_or_else(|| {
            Error::new(
                ErrorCode::InvalidArgument,
                "a member of a group gives the owner's epoch of each queue with its fetch",
            )
        })?;
        let volatile = self.services.core.published().volatile();
        let checked = volatile
            .members
            .check(Instant::now(), group, member, (&want.topic, want.queue), epoch);
        checked.map_err(|refused| (&refused).into())
    }

    /// Reads the queues that have messages: from memory on this thread, and from the disk in the pool.
    async fn read(&self, mut ready: Vec<Ready>, bytes_max: usize) -> Result<Vec<Read>, Error> {
        let bypasses_cache = Context::current().meta().value(FROM_DISK_META).is_some();
        // Random: otherwise clients that ask in turn would get the same queues again and again.
        let first = fastrand::usize(..ready.len());
        ready.rotate_left(first);
        let store = Arc::clone(&self.services.core.published().store);
        let metrics = &self.services.metrics;
        let count = |from: ReadLabel| {
            metrics.fetch_reads.get_or_create(&from).inc();
        };
        if !bypasses_cache && ready.iter().all(|ready| store.in_memory(ready.key, ready.offset)) {
            count(ReadLabel::MEMORY);
            let bounds = Bounds {
                bytes: bytes_max,
                queues: usize::MAX,
                time: Duration::MAX,
            };
            return Ok(read_all(&store, &ready, bounds, Access::CacheOnlyNoPrefetch));
        }
        let at_once_max = Bounds {
            bytes: bytes_max.min(AT_ONCE_BYTES_MAX),
            queues: AT_ONCE_QUEUES_MAX,
            time: AT_ONCE_TIME_MAX,
        };
        let at_once = if bypasses_cache {
            Vec::new()
        } else {
            read_all(&store, &ready, at_once_max, self.services.disk_pool.cache_only())
        };
        let (read, from) = if at_once.is_empty() {
            let read = move |access| {
                let access = if bypasses_cache {
                    Access::BypassCache
                } else {
                    access
                };
                let bounds = Bounds {
                    bytes: bytes_max,
                    queues: WAITING_QUEUES_MAX,
                    time: WAITING_TIME_MAX,
                };
                read_all(&store, &ready, bounds, access)
            };
            let read = self.services.disk_pool.run(read).await;
            let read =
                read.ok_or_else(|| Error::new(ErrorCode::Internal, "reading failed; see the broker's log"))?;
            (read, ReadLabel::DISK)
        } else {
            (at_once, ReadLabel::PAGE_CACHE)
        };
        count(from);
        let bytes: usize = read.iter().map(Read::bytes).sum();
        metrics.fetched_file_bytes.inc_by(bytes as u64);
        Ok(read)
    }

    fn answer(
        &self,
        request: &FetchRequest,
        read: Vec<Read>,
        errors: Vec<(usize, Error)>,
    ) -> (FetchResponse, Attachment) {
        let batches: usize = read
            .iter()
            .filter_map(|read| read.found.as_ref().ok())
            .map(Vec::len)
            .sum();
        let mut stamps = BytesMut::with_capacity(batches * STAMPED_HEADER_BYTES);
        let mut attachment = Attachment::new();
        let mut answers = Vec::with_capacity(read.len() + errors.len());
        let knows_compacted = Context::current().meta().value(KNOWS_COMPACTED_META).is_some();
        for Read { ready, found } in read {
            let want = &request.wants[ready.want];
            let mut answer = found
                .map_err(|error| self.unread(want, ready.key, &error))
                .and_then(|found| self.deliver(request, want, &found).map(|()| found))
                .inspect(|found| {
                    self.seen_damage
                        .note(ready.key, found, &self.services.metrics.fetched_holes);
                })
                .map(|found| stamped(&ready, found, &mut stamps, &mut attachment));
            if let Ok(fetched) = &mut answer {
                if !knows_compacted {
                    fetched.compacted.clear();
                }
                self.services
                    .metrics
                    .fetched_bytes
                    .inc_by(u64::from(fetched.bytes));
            }
            answers.push((index(ready.want), answer));
        }
        self.services.metrics.fetched_batches.inc_by(batches as u64);
        answers.extend(errors.into_iter().map(|(want, error)| (index(want), Err(error))));
        (FetchResponse { answers }, attachment)
    }

    /// Notes for the group what its member is about to get; refuses if the member lost the queue while
    /// waiting or reading.
    fn deliver(&self, request: &FetchRequest, want: &Want, found: &[Found]) -> Result<(), Error> {
        self.check_owner(request, want)?;
        if let (Some((group, _)), Some(epoch), Some(last)) = (&request.member, want.epoch, found.last()) {
            let mut volatile = self.services.core.published().volatile();
            volatile.members.delivered(group, want.queue, epoch, end_of(last));
        }
        Ok(())
    }
}

/// Counts one waiting fetch for as long as it lives, even if its caller has gone away.
struct Counted<'a>(&'a Gauge);

impl<'a> Counted<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One queue's part of the response: stamps and regions are added to the attachment.
fn stamped(ready: &Ready, found: Vec<Found>, stamps: &mut BytesMut, attachment: &mut Attachment) -> Fetched {
    let mut bytes = 0;
    let (mut holes, mut compacted) = (Vec::new(), Vec::new());
    let mut next_offset = ready.offset;
    for found in found {
        next_offset = end_of(&found);
        match found {
            Found::Batch { row, region } => {
                let stamp = Stamp {
                    queue: ready.queue,
                    base_offset: row.base_offset,
                    lsn: row.lsn,
                    append_time: row.time,
                    epoch: row.term,
                    flags: row.flags,
                };
                let header = stamp_header(&stamp, row.location.bytes, row.checksum);
                stamps.extend_from_slice(&header);
                bytes += header.len() + region.len();
                attachment.push(stamps.split().freeze());
                attachment.push(region);
            }
            Found::Hole { from, end, kind, .. } => {
                holes.push((from, end));
                compacted.extend((kind == HoleKind::Compacted).then_some((from, end)));
            }
        }
    }
    Fetched {
        bytes: u32::try_from(bytes).expect("an answer is smaller than a frame"),
        next_offset,
        end: ready.ends.end,
        holes,
        compacted,
    }
}

pub(super) fn end_of(found: &Found) -> Offset {
    match found {
        Found::Batch { row, .. } => Offset(row.base_offset.0 + u64::from(row.count)),
        Found::Hole { end, .. } => *end,
    }
}

fn index(want: usize) -> u32 {
    u32::try_from(want).expect("the wants were counted")
}

fn out_of_range(want: &Want, ends: VisibleRange) -> Error {
    let (start, end) = (ends.start, ends.end);
    let message = format!(
        "offset {} of queue {} of topic `{}` is out of range; it has {start} to {end}",
        want.offset, want.queue, want.topic
    );
    let mut error = Error::new(ErrorCode::OffsetOutOfRange, message);
    error.range = Some((start.0, end.0));
    error
}

pub(super) fn read_error(error: &ReadError) -> Error {
    tracing::error!(%error, "a batch cannot be read");
    let code = match error {
        ReadError::NotStored { .. } | ReadError::Freed { .. } => ErrorCode::OffsetOutOfRange,
        ReadError::Footer { .. } => ErrorCode::DataCorrupt,
        ReadError::QueueFile { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            ErrorCode::DataCorrupt
        }
        ReadError::QueueFile { .. } | ReadError::Io { .. } | ReadError::WouldBlock => ErrorCode::Internal,
    };
    Error::new(code, error.to_string())
}
