//! The reading side of a connection: one buffer, filled from the stream and emptied frame by frame without copying.
//!
//! A buffer is reused as soon as nobody holds a part of it: a fresh one of 256 KiB costs 64 page faults, more
//! than all the work done on the data in it (docs/performance-notes.md).

use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::read_budget::{ReadBudget, Reserved};
use crate::frame::{Decoder, Frame, FrameError, Status};

/// Buffer size of a quiet connection.
const START_BYTES: usize = 8 * 1024;
/// Buffer size of a busy connection: what one read can bring, and the most memory that a retained small body
/// keeps alive.
const BUSY_BYTES: usize = 256 * 1024;
/// A frame's announced length is trusted up to this size, or up to the size of the previous frame; beyond
/// that, the buffer grows with the bytes that have actually arrived.
const BELIEVED_BYTES: usize = 1024 * 1024;
/// Buffers of at least this size are kept for reuse; smaller ones cost next to nothing.
const SPARE_BYTES_MIN: usize = 64 * 1024;
/// Frames up to this size need no share of the read budget.
const FREE_BYTES: usize = 64 * 1024;
/// Spare buffers kept in addition to the one being read into.
const SPARES_MAX: usize = 2;
/// After this many consecutive reads that each bring at most an eighth of a buffer, a busy connection counts
/// as quiet, even if only heartbeats arrive.
const QUIET_READS: u32 = 16;
/// Bodies with an attachment are the ones that get retained (a broker's batches). From this size on, a
/// retained body keeps at most twice its own size alive.
const KEPT_BYTES_MIN: usize = 16 * 1024;

pub(crate) struct Inbox {
    read: Box<dyn AsyncRead + Send + Unpin>,
    buffer: BytesMut,
    /// Size of the whole buffer, including the parts already taken out of it.
    buffer_bytes: usize,
    /// Buffers that were outgrown, or that were still in use when another was needed; all of `chunk` bytes.
    spares: Vec<BytesMut>,
    decoder: Decoder,
    chunk: usize,
    quiet: u32,
    /// The memory budget that all connections share, if there is one.
    budget: Option<ReadBudget>,
    /// The part of it reserved for buffers of `chunk` bytes.
    chunk_memory: Option<Reserved>,
    /// The part of it reserved for the current frame.
    frame_memory: Option<Reserved>,
    /// Size of the last frame if it was larger than a busy connection's buffer, else 0: the next one is
    /// probably as large. So only its beginning is read first, which says how much memory it needs, and no
    /// byte of the rest is moved.
    large: usize,
}

impl Inbox {
    pub(crate) fn new(read: Box<dyn AsyncRead + Send + Unpin>, body_bytes_max: usize) -> Self {
        Self {
            read,
            buffer: BytesMut::new(),
            buffer_bytes: 0,
            spares: Vec::new(),
            decoder: Decoder::new(body_bytes_max),
            chunk: START_BYTES,
            quiet: 0,
            budget: None,
            chunk_memory: None,
            frame_memory: None,
            large: 0,
        }
    }

    /// Takes the memory for its buffers from the budget that all connections share.
    pub(crate) fn within(mut self, budget: ReadBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Whether the current frame waits for memory: [`Inbox::reserve_memory`] must be called before the next
    /// [`Inbox::poll_fill`].
    pub(crate) fn needs_memory(&self) -> bool {
        let free = self.chunk.max(FREE_BYTES);
        self.budget.is_some() && self.frame_memory.is_none() && self.decoder.frame_bytes() > free
    }

    /// Bytes that the current frame must gain per second if memory is reserved for it: a 16th of its size
    /// while other frames wait for memory, else 0.
    pub(crate) fn min_progress_bytes(&self) -> Option<u64> {
        self.frame_memory.as_ref()?;
        let is_contended = self.budget.as_ref().is_some_and(ReadBudget::is_contended);
        Some(if is_contended {
            (self.decoder.frame_bytes() / 16) as u64
        } else {
            0
        })
    }

    /// Waits for the memory that the current frame needs.
    ///
    /// # Cancel safety
    /// Dropping the future gives up its place in the queue; no data is lost.
    pub(crate) async fn reserve_memory(&mut self) {
        if let Some(budget) = &self.budget {
            self.frame_memory = budget.reserve(self.decoder.frame_bytes()).await;
        }
    }

    /// Changes the limit on a frame's body.
    pub(crate) fn limit(&mut self, body_bytes_max: usize) {
        self.decoder.limit(body_bytes_max);
    }

    /// Reads once; 0 bytes = the peer has closed.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.make_room();
        let room = self.buffer.capacity() - self.buffer.len();
        let outcome = pin!(self.read.read_buf(&mut self.buffer)).poll(cx);
        if let Poll::Ready(Ok(bytes)) = outcome {
            self.adapt(bytes, room);
        }
        outcome
    }

    /// Whether a frame has been read in part, once [`Inbox::next`] has returned all whole ones.
    pub(crate) fn is_in_frame(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next whole frame among the bytes read so far.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let mut next = self.decoder.next(&mut self.buffer)?;
        if let Some(frame) = &next {
            let bytes = frame.body.len();
            self.large = if bytes > BUSY_BYTES { bytes } else { 0 };
            // From here on the receiver accounts for its memory.
            self.frame_memory = None;
        }
        if let Some(frame) = &mut next
            && frame.status.has(Status::ATTACHMENT)
            && frame.body.len() >= KEPT_BYTES_MIN
            && frame.body.len() < self.buffer_bytes / 2
        {
            frame.body = Bytes::copy_from_slice(&frame.body);
        }
        Ok(next)
    }

    /// Makes sure that the next read can bring a useful amount: the rest of the current frame and what
    /// follows it.
    fn make_room(&mut self) {
        let held = self.buffer.len();
        if held == 0 && self.buffer_bytes > 2 * self.chunk {
            // A leftover of a very large frame or of a busy period.
            (self.buffer, self.buffer_bytes) = (BytesMut::new(), 0);
        }
        if held == 0 && self.large > 0 {
            if self.buffer_bytes != START_BYTES || !self.buffer.try_reclaim(START_BYTES) {
                (self.buffer, self.buffer_bytes) = (BytesMut::with_capacity(START_BYTES), START_BYTES);
            }
            return;
        }
        let spare = self.buffer.capacity() - held;
        let missing = self.decoder.frame_bytes().saturating_sub(held);
        if missing <= spare && (missing > 0 || spare >= START_BYTES / 2) {
            return;
        }
        // For a very large frame, at most double what has arrived, unless its memory is reserved.
        let believed = match self.frame_memory {
            Some(_) => missing,
            None => missing.min(held.max(BELIEVED_BYTES).max(self.large)),
        };
        let bytes = (held + believed).max(self.chunk);
        if self.buffer_bytes == bytes && self.buffer.try_reclaim(bytes - held) {
            return;
        }
        let mut fresh = self
            .take_spare(bytes)
            .unwrap_or_else(|| BytesMut::with_capacity(bytes));
        fresh.extend_from_slice(&self.buffer);
        let mut old = std::mem::replace(&mut self.buffer, fresh);
        let old_bytes = std::mem::replace(&mut self.buffer_bytes, bytes);
        if old_bytes == self.chunk && old_bytes >= SPARE_BYTES_MIN && self.spares.len() < SPARES_MAX {
            old.clear();
            self.spares.push(old);
        }
    }

    /// A spare buffer of which nobody holds a part any longer.
    fn take_spare(&mut self, bytes: usize) -> Option<BytesMut> {
        if bytes != self.chunk {
            return None;
        }
        let free = self
            .spares
            .iter_mut()
            .position(|spare| spare.try_reclaim(bytes))?;
        Some(self.spares.swap_remove(free))
    }

    /// Larger buffers for a connection that fills them, a small one for a connection that has become quiet.
    fn adapt(&mut self, bytes: usize, room: usize) {
        if bytes == room && self.chunk < BUSY_BYTES && self.may_double() {
            self.chunk *= 2;
            self.spares.clear();
            if self.chunk == BUSY_BYTES {
                let_the_allocator_expect_as_much();
            }
        }
        if bytes > self.chunk / 8 {
            self.quiet = 0;
            return;
        }
        self.quiet += 1;
        if self.quiet >= QUIET_READS {
            self.quiet = 0;
            self.chunk = START_BYTES;
            self.spares.clear();
            self.chunk_memory = None;
        }
    }

    /// Reserves the memory for buffers twice as large, if the budget allows it.
    fn may_double(&mut self) -> bool {
        let Some(budget) = &self.budget else { return true };
        let Some(more) = budget.try_reserve(self.chunk * (1 + SPARES_MAX)) else {
            return false;
        };
        match &mut self.chunk_memory {
            Some(taken) => taken.and(more),
            None => self.chunk_memory = Some(more),
        }
        true
    }
}

/// Frees a block that nobody has touched. glibc keeps up to twice the size of the largest freed block instead
/// of returning it to the system (`M_MMAP_THRESHOLD` in mallopt(3)). Read buffers that are reused are not
/// freed; without this call, glibc would return the memory of the decoded values to the system as often as a
/// buffer is read into: 8 page faults per call of 64 KiB.
fn let_the_allocator_expect_as_much() {
    drop(std::hint::black_box(BytesMut::with_capacity(BUSY_BYTES)));
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::io::{AsyncWriteExt as _, duplex};

    use tokio::task::JoinSet;

    use super::*;
    use crate::frame::{Draft, Kind, Status};

    fn frames(bodies: &[usize]) -> BytesMut {
        let mut out = BytesMut::new();
        for (id, bytes) in (0_i64..).zip(bodies) {
            let draft = Draft::begin(&mut out, Kind::Request, Status::REQUEST, id, "msgpack");
            out.extend_from_slice(&vec![7; *bytes]);
            draft.finish(&mut out, 0, usize::MAX).unwrap();
        }
        out
    }

    /// Reads `sent`, which comes in pieces of at most `piece` bytes; the bodies' lengths and the number of reads.
    async fn read(bodies: &[usize], piece: usize) -> (Vec<usize>, usize) {
        let (near, mut far) = duplex(piece);
        let sent = frames(bodies);
        let mut writer = JoinSet::new();
        writer.spawn(async move { far.write_all(&sent).await.unwrap() });
        let mut inbox = Inbox::new(Box::new(near), 16 * 1024 * 1024);
        let (mut found, mut reads) = (Vec::new(), 0);
        while std::future::poll_fn(|cx| inbox.poll_fill(cx)).await.unwrap() > 0 {
            reads += 1;
            while let Some(frame) = inbox.next().unwrap() {
                assert!(frame.body.iter().all(|byte| *byte == 7));
                found.push(frame.body.len());
            }
        }
        writer.join_next().await.unwrap().unwrap();
        (found, reads)
    }

    #[tokio::test]
    async fn frames_of_all_sizes_come_through_in_order() {
        let bodies = [
            0, 1, 100, 70_000, 3, 300_000, 8_000, 2_500_000, 5, 65_536, 65_536, 65_536,
        ];
        for piece in [1000, 64 * 1024, 4 * 1024 * 1024] {
            assert_eq!(read(&bodies, piece).await.0, bodies);
        }
    }

    /// An inbox, and what writes to it.
    fn pair() -> (Inbox, tokio::io::DuplexStream) {
        let (near, far) = duplex(64 * 1024 * 1024);
        (Inbox::new(Box::new(near), 16 * 1024 * 1024), far)
    }

    /// Sends `sent` and gives every frame of it to `each`, read by read.
    async fn pass(
        inbox: &mut Inbox,
        far: &mut tokio::io::DuplexStream,
        sent: &[u8],
        mut each: impl FnMut(Frame),
    ) {
        far.write_all(sent).await.unwrap();
        let mut read = 0;
        while read < sent.len() {
            read += std::future::poll_fn(|cx| inbox.poll_fill(cx)).await.unwrap();
            while let Some(frame) = inbox.next().unwrap() {
                each(frame);
            }
        }
    }

    #[tokio::test]
    async fn buffers_that_nobody_holds_are_used_again() {
        let (mut inbox, mut far) = pair();
        let sent = frames(&[65_536; 16]);
        // By now its buffers have reached their full size.
        pass(&mut inbox, &mut far, &sent, drop).await;
        let mut places = std::collections::HashSet::new();
        let mut held = std::collections::VecDeque::new();
        for _ in 0..50 {
            pass(&mut inbox, &mut far, &sent, |frame| {
                places.insert(frame.body.as_ptr() as usize / BUSY_BYTES);
                // A few are always held, as by callers that have not run yet.
                held.push_back(frame);
                if held.len() > 3 {
                    held.pop_front();
                }
            })
            .await;
        }
        // A buffer may span two of these address ranges.
        assert!(places.len() <= 2 * (1 + SPARES_MAX), "{} places", places.len());
    }

    #[tokio::test]
    async fn held_bodies_are_never_written_over() {
        let (mut inbox, mut far) = pair();
        let mut held = Vec::new();
        for round in 0..40_u8 {
            let mut sent = BytesMut::new();
            for id in 0..8 {
                let draft = Draft::begin(&mut sent, Kind::Request, Status::REQUEST, id, "msgpack");
                sent.extend_from_slice(&[round; 50_000]);
                draft.finish(&mut sent, 0, usize::MAX).unwrap();
            }
            let kept = i64::from(round % 8);
            pass(&mut inbox, &mut far, &sent, |frame| {
                if frame.id == kept {
                    held.push((round, frame.body));
                }
            })
            .await;
        }
        assert_eq!(held.len(), 40);
        for (round, body) in held {
            assert!(body.iter().all(|byte| *byte == round), "round {round}");
        }
    }

    #[tokio::test]
    async fn quiet_connection_gives_its_large_buffers_back() {
        let (mut inbox, mut far) = pair();
        pass(&mut inbox, &mut far, &frames(&[65_536; 16]), drop).await;
        assert_eq!((inbox.buffer_bytes, inbox.chunk), (BUSY_BYTES, BUSY_BYTES));
        for _ in 0..=QUIET_READS {
            pass(&mut inbox, &mut far, &frames(&[10]), drop).await;
        }
        assert_eq!((inbox.buffer_bytes, inbox.spares.len()), (START_BYTES, 0));
        pass(&mut inbox, &mut far, &frames(&[8_000_000]), drop).await;
        pass(&mut inbox, &mut far, &frames(&[10]), drop).await;
        assert!(inbox.buffer_bytes <= BUSY_BYTES, "{}", inbox.buffer_bytes);
    }

    #[tokio::test]
    async fn kept_attachment_keeps_at_most_twice_its_size() {
        let (mut inbox, mut far) = pair();
        inbox.chunk = BUSY_BYTES;
        let mut sent = BytesMut::new();
        for (id, bytes) in (0_i64..).zip([20_000, 200_000, 100]) {
            let status = Status::REQUEST.with(Status::ATTACHMENT);
            let draft = Draft::begin(&mut sent, Kind::Request, status, id, "msgpack");
            sent.extend_from_slice(&vec![7; bytes]);
            draft.finish(&mut sent, 0, usize::MAX).unwrap();
        }
        let mut alone = Vec::new();
        let mut held = Vec::new();
        pass(&mut inbox, &mut far, &sent, |frame| {
            // A body with a buffer of its own is that buffer's only part.
            alone.push(frame.body.is_unique());
            held.push(frame);
        })
        .await;
        assert_eq!(
            alone,
            [true, false, false],
            "whoever keeps the last one has to copy it"
        );
    }

    #[tokio::test]
    async fn buffers_stay_small_and_a_large_frame_waits_while_there_is_no_room() {
        let budget = ReadBudget::new(2 * 1024 * 1024);
        let (inbox, mut far) = pair();
        let mut inbox = inbox.within(budget.clone());
        let others = (
            budget.try_reserve(1024 * 1024).unwrap(),
            budget.reserve(1024 * 1024).await.unwrap(),
        );
        pass(&mut inbox, &mut far, &frames(&[3000; 200]), drop).await;
        assert_eq!(inbox.chunk, START_BYTES, "it was filled often");
        assert!(!inbox.needs_memory());
        far.write_all(&frames(&[500_000, 10])).await.unwrap();
        std::future::poll_fn(|cx| inbox.poll_fill(cx)).await.unwrap();
        assert!(inbox.next().unwrap().is_none() && inbox.needs_memory());
        assert!(inbox.buffer_bytes <= 2 * START_BYTES, "{}", inbox.buffer_bytes);
        {
            let mut waiting = pin!(inbox.reserve_memory());
            let pending = std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending()));
            assert!(pending.await);
        }
        drop(others);
        inbox.reserve_memory().await;
        assert!(!inbox.needs_memory());
        assert_eq!(inbox.min_progress_bytes(), Some(0));
        {
            let mut waiting = pin!(budget.reserve(1024 * 1024 - 400_000));
            let pending = std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending()));
            assert!(pending.await, "it is taken");
            assert!(inbox.min_progress_bytes() > Some(30_000), "others wait for it");
        }
        let mut read = Vec::new();
        while read.len() < 2 {
            std::future::poll_fn(|cx| inbox.poll_fill(cx)).await.unwrap();
            while let Some(frame) = inbox.next().unwrap() {
                read.push(frame.body.len());
            }
        }
        assert_eq!(read, [500_000, 10]);
        assert!(inbox.frame_memory.is_none(), "given back with the frame");
        drop(inbox);
        assert!(budget.try_reserve(1024 * 1024).is_some(), "all of it");
    }

    #[tokio::test]
    async fn frame_larger_than_a_buffer_behind_another_one_is_not_moved() {
        let (mut inbox, mut far) = pair();
        let bodies = [500_000, 500_000, 2_500_000, 2_500_000, 10];
        far.write_all(&frames(&bodies)).await.unwrap();
        let (mut reads, mut found) = (Vec::new(), Vec::new());
        while found.len() < bodies.len() {
            let before = found.len();
            let bytes = std::future::poll_fn(|cx| inbox.poll_fill(cx)).await.unwrap();
            reads.push((found.len(), bytes));
            while let Some(frame) = inbox.next().unwrap() {
                assert!(frame.body.iter().all(|byte| *byte == 7));
                found.push(frame.body.len());
            }
            assert!(found.len() <= before + 1, "a buffer holds one of them");
        }
        assert_eq!(found, bodies);
        for frame in [1, 3] {
            let of_frame = reads
                .iter()
                .filter(|(of, _)| *of == frame)
                .map(|(_, bytes)| *bytes);
            let of_frame: Vec<_> = of_frame.collect();
            assert_eq!(of_frame.len(), 2, "{of_frame:?}");
            assert_eq!(of_frame[0], START_BYTES);
        }
    }

    #[tokio::test]
    async fn one_read_brings_several_large_frames() {
        let bodies = [65_536; 64];
        let (found, reads) = read(&bodies, 16 * 1024 * 1024).await;
        assert_eq!(found, bodies);
        assert!(reads <= 32, "{reads} reads for {} frames", bodies.len());
    }
}
