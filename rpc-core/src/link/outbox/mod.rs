//! The queue of encoded frames of one connection. Senders append whole frames under a short lock; the writer
//! task takes everything at once. A cancelled sender can never leave half a frame.

mod in_place;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use self::in_place::Line;
use super::backlog::{Backlog, Part};
use super::waits::Waits;
use crate::message::Hold;

/// Pieces of at least this size are queued by reference and leave in a vectored write; copying them would
/// cost more than the extra slice.
const REFERENCE_BYTES_MIN: usize = 8 * 1024;

/// Why a frame was not queued; no part of it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The connection is closed or closing.
    Closed,
    /// Another `bytes` would exceed the limit on unwritten bytes.
    Full { bytes: usize },
}

/// What the writer takes in one go: first `segments`, then `small`.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) segments: VecDeque<Bytes>,
    pub(crate) small: BytesMut,
}

#[derive(Default)]
struct State {
    batch: Batch,
    /// All bytes ever queued.
    accepted: u64,
    /// Whether every frame of the batch asked to be written without delay.
    urgent: bool,
    closed: bool,
    /// There is no writer any longer.
    abandoned: bool,
    /// More frames follow at once: the writer is not woken for each.
    corked: bool,
    /// Values that are released when all bytes up to a position have been written.
    held: VecDeque<(u64, Arc<dyn Hold>)>,
    /// Its share of the backlog of all connections, if that is limited.
    part: Option<Part>,
    /// The writer, when it has nothing to do.
    parked: Option<Waker>,
    /// A sender is writing a frame in place: the writer has nothing to do until it has finished.
    in_place: bool,
}

/// The queue. Limited in bytes; an empty queue accepts any single frame, so that no limit makes a frame
/// impossible.
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Never locked while `state` is held.
    line: Line,
    /// All bytes ever given to the operating system.
    written: AtomicU64,
    unwritten: AtomicUsize,
    unwritten_max: usize,
    /// Notified when bytes were written while a sender waited for space.
    room: Notify,
    waiting_for_room: AtomicUsize,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("unwritten", &self.unwritten)
            .finish_non_exhaustive()
    }
}

impl Outbox {
    pub(crate) fn new(unwritten_max: usize) -> Self {
        Self {
            state: Mutex::default(),
            line: Line::default(),
            written: AtomicU64::new(0),
            unwritten: AtomicUsize::new(0),
            unwritten_max,
            room: Notify::new(),
            waiting_for_room: AtomicUsize::new(0),
        }
    }

    /// Counts the unwritten bytes here in the backlog of all connections.
    pub(crate) fn within(self, backlog: Backlog) -> Self {
        self.state().part = Some(Part::new(backlog));
        self
    }

    /// Whether a peer that does not read blocks others: they wait for a value that is held for it, or all
    /// connections together have much unwritten.
    pub(super) fn blocks_others(&self) -> bool {
        let state = self.state();
        let is_contended = state.held.front().is_some_and(|(_, held)| held.is_contended());
        is_contended
            || state
                .part
                .as_ref()
                .is_some_and(|part| part.backlog().is_under_pressure())
    }

    /// Queues one or more whole frames: the contents of `head`, followed by `parts`. A large `head` is queued
    /// by reference and left empty. `urgent` says that no other frame is expected soon, so that waiting to
    /// batch would only cost time: a small frame is then written right here if the writer sleeps. Returns the
    /// position of its end in the stream, to compare with [`Outbox::written`].
    pub(crate) fn push(&self, head: &mut BytesMut, parts: &[Bytes], urgent: bool) -> Result<u64, Refused> {
        let bytes = head.len() + parts.iter().map(Bytes::len).sum::<usize>();
        let large = (head.len() >= REFERENCE_BYTES_MIN).then(|| head.split().freeze());
        let mut state = self.state();
        if state.closed {
            return Err(Refused::Closed);
        }
        // Changed only under the lock, so a load and a store suffice; others read it without the lock.
        let unwritten = self.unwritten.load(Ordering::Relaxed);
        if unwritten > 0 && unwritten.saturating_add(bytes) > self.unwritten_max {
            return Err(Refused::Full { bytes });
        }
        self.unwritten.store(unwritten + bytes, Ordering::Release);
        if let Some(part) = &mut state.part {
            part.set(unwritten + bytes);
        }
        state.accepted += bytes as u64;
        let end = state.accepted;
        if urgent
            && let Some(writer) = state.sleeper()
            && in_place::is_possible(bytes, parts.len())
        {
            state.in_place = true;
            drop(state);
            self.write_in_place(head, parts, &writer);
            return Ok(end);
        }
        state.urgent &= urgent;
        match large {
            Some(large) => state.batch.append(&large),
            None => state.batch.small.extend_from_slice(head),
        }
        parts.iter().for_each(|part| state.batch.append(part));
        let writer = if state.corked || state.in_place {
            None
        } else {
            state.parked.take()
        };
        if writer.is_some() {
            state.urgent = urgent;
        }
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        Ok(end)
    }

    /// Keeps `held` alive until all bytes up to `end`, a position that [`Outbox::push`] returned, have been
    /// written.
    pub(crate) fn hold(&self, end: u64, held: Arc<dyn Hold>) {
        let mut state = self.state();
        // Pushing and holding are two steps: another frame's value may have been added in between; it is then
        // kept until the values before it are released.
        if self.written() < end && !state.abandoned {
            state.held.push_back((end, held));
        }
    }

    /// Holds the writer back until the guard is dropped, which must happen within the same poll of a task:
    /// everything queued until then leaves in one write.
    pub(crate) fn cork(&self) -> Corked<'_> {
        self.state().corked = true;
        Corked(self)
    }

    fn uncork(&self) {
        let mut state = self.state();
        state.corked = false;
        let writer = if state.batch.is_empty() || state.in_place {
            None
        } else {
            state.parked.take()
        };
        if writer.is_some() {
            // All expected frames have been queued.
            state.urgent = true;
        }
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// All bytes ever given to the operating system: a frame that ends beyond this has not left the process
    /// completely.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Bytes not yet written.
    pub(crate) fn unwritten(&self) -> usize {
        self.unwritten.load(Ordering::Acquire)
    }

    /// Whether more than half of the limit is used.
    pub(crate) fn is_half_full(&self) -> bool {
        self.unwritten() > self.half()
    }

    /// Waits until at most half of the limit is used, or the queue is closed.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(crate) async fn half_empty(&self) {
        self.below(self.half()).await;
    }

    /// Waits until a frame of `bytes` that was refused as [`Refused::Full`] would be accepted, or the queue
    /// is closed: at least until half of the limit is free, and longer for a frame that needs more than that.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(crate) async fn room_for(&self, bytes: usize) {
        self.below(self.unwritten_max.saturating_sub(bytes)).await;
    }

    /// Waits until at most `bytes`, and at most half of the limit, are unwritten, or the queue is closed.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(crate) async fn below(&self, bytes: usize) {
        let bytes = bytes.min(self.half());
        if self.unwritten() <= bytes {
            return;
        }
        let _waits = Waits::enter(&self.waiting_for_room);
        loop {
            let mut told = std::pin::pin!(self.room.notified());
            // Enabled before the check, so that a write between check and wait is not missed.
            told.as_mut().enable();
            if self.unwritten() <= bytes || self.is_closed() {
                return;
            }
            told.await;
        }
    }

    const fn half(&self) -> usize {
        self.unwritten_max / 2
    }

    /// Accepts no more frames; queued ones are still written, then the writer ends.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let writer = state.parked.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        self.room.notify_waiters();
    }

    /// There is no writer any longer: what is left is dropped, and further frames are refused.
    pub(crate) fn abandon(&self) {
        self.close();
        let mut state = self.state();
        let left = std::mem::take(&mut *state);
        (state.closed, state.abandoned) = (true, true);
        drop(state);
        // Outside the lock, as in `wrote`.
        drop(left);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// The writer's side: ready when there is something to write (`true`: write now; `false`: other frames
    /// may follow) or the queue is closed and empty (`None`).
    pub(super) fn poll_ready(&self, cx: &Context<'_>) -> Poll<Option<bool>> {
        let mut state = self.state();
        if state.in_place {
            state.parked = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if !state.batch.is_empty() && (!state.corked || state.closed) {
            return Poll::Ready(Some(state.urgent || state.closed));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        state.parked = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The writer's side: takes everything queued, in exchange for an empty batch whose buffers are reused.
    pub(super) fn take(&self, batch: &mut Batch) {
        let mut state = self.state();
        std::mem::swap(&mut state.batch, batch);
        state.urgent = true;
    }

    /// The writer's side: `bytes` more were given to the operating system.
    pub(super) fn wrote(&self, bytes: usize) {
        let written = self.written.fetch_add(bytes as u64, Ordering::AcqRel) + bytes as u64;
        let mut state = self.state();
        let unwritten = self.unwritten.load(Ordering::Relaxed);
        self.unwritten.store(unwritten - bytes, Ordering::Release);
        if let Some(part) = &mut state.part {
            part.set(unwritten - bytes);
        }
        let done = state.held.iter().take_while(|(end, _)| *end <= written).count();
        let done: Vec<_> = state.held.drain(..done).collect();
        drop(state);
        // Outside the lock: dropping a held value may run any code.
        drop(done);
        if self.waiting_for_room.load(Ordering::Acquire) > 0 {
            self.room.notify_waiters();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The writer, if it sleeps and nothing is queued or being written.
    fn sleeper(&self) -> Option<Waker> {
        let idle = self.batch.is_empty() && !self.corked && !self.in_place;
        if idle { self.parked.clone() } else { None }
    }
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.small.is_empty()
    }

    fn append(&mut self, piece: &Bytes) {
        if piece.len() < REFERENCE_BYTES_MIN {
            self.small.extend_from_slice(piece);
            return;
        }
        if !self.small.is_empty() {
            self.segments.push_back(self.small.split().freeze());
        }
        self.segments.push_back(piece.clone());
    }
}

/// Holds back the writer of an outbox.
#[derive(Debug)]
#[must_use = "the writer is held back until it is dropped"]
pub(crate) struct Corked<'a>(&'a Outbox);

impl Drop for Corked<'_> {
    fn drop(&mut self) {
        self.0.uncork();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn push(outbox: &Outbox, bytes: &[u8]) {
        outbox.push(&mut BytesMut::from(bytes), &[], false).unwrap();
    }

    #[test]
    fn corked_writer_waits_until_the_guard_is_gone() {
        let outbox = Outbox::new(1000);
        let cx = Context::from_waker(Waker::noop());
        assert!(outbox.poll_ready(&cx).is_pending());
        let corked = outbox.cork();
        push(&outbox, b"one");
        assert!(outbox.poll_ready(&cx).is_pending());
        push(&outbox, b"two");
        drop(corked);
        assert_eq!(outbox.poll_ready(&cx), Poll::Ready(Some(true)));
        let mut batch = Batch::default();
        outbox.take(&mut batch);
        assert_eq!(&batch.small[..], b"onetwo");
    }

    #[test]
    fn room_for_a_large_frame_is_there_when_it_fits_and_not_before() {
        let outbox = Outbox::new(1000);
        let mut cx = Context::from_waker(Waker::noop());
        push(&outbox, &[0; 600]);
        let refused = outbox.push(&mut BytesMut::from(&[0; 700][..]), &[], false);
        assert_eq!(refused, Err(Refused::Full { bytes: 700 }));
        let [mut large, mut small, mut huge] = [700, 450, 5000].map(|bytes| Box::pin(outbox.room_for(bytes)));
        assert!(small.as_mut().poll(&mut cx).is_pending());
        outbox.wrote(250);
        assert!(small.as_mut().poll(&mut cx).is_ready(), "half is free");
        assert!(
            large.as_mut().poll(&mut cx).is_pending(),
            "half is free, and that is too little"
        );
        outbox.wrote(50);
        assert!(large.as_mut().poll(&mut cx).is_ready());
        assert!(huge.as_mut().poll(&mut cx).is_pending());
        outbox.wrote(300);
        assert!(
            huge.as_mut().poll(&mut cx).is_ready(),
            "an empty queue takes any frame"
        );
    }

    /// A value that others may wait for.
    #[derive(Default)]
    struct Wanted(AtomicUsize);

    impl Hold for Wanted {
        fn is_contended(&self) -> bool {
            self.0.load(Ordering::Relaxed) > 0
        }
    }

    #[test]
    fn what_is_held_is_let_go_with_the_last_byte_or_the_writer() {
        let outbox = Outbox::new(1000);
        let places: Vec<Arc<Wanted>> = (0..3).map(|_| Arc::default()).collect();
        let free = || -> Vec<bool> { places.iter().map(|place| Arc::strong_count(place) == 1).collect() };
        for place in &places {
            let end = outbox
                .push(&mut BytesMut::from(&[0; 100][..]), &[], false)
                .unwrap();
            outbox.hold(end, Arc::<Wanted>::clone(place));
        }
        outbox.wrote(99);
        assert_eq!(free(), [false; 3]);
        assert!(!outbox.blocks_others());
        places[0].0.store(1, Ordering::Relaxed);
        assert!(outbox.blocks_others());
        outbox.wrote(102);
        assert_eq!(free(), [true, true, false]);
        assert!(!outbox.blocks_others(), "nobody waits for the third");
        let end = outbox.push(&mut BytesMut::from(&[0; 5][..]), &[], false).unwrap();
        outbox.wrote(104);
        assert_eq!(free(), [true; 3]);
        outbox.hold(end, Arc::<Wanted>::clone(&places[0]));
        assert_eq!(free(), [true; 3], "it was written before");
        let end = outbox.push(&mut BytesMut::from(&[0; 5][..]), &[], false).unwrap();
        outbox.hold(end, Arc::<Wanted>::clone(&places[0]));
        outbox.abandon();
        assert_eq!(free(), [true; 3], "also while requests still know the connection");
        let refused = outbox.push(&mut BytesMut::from(&[0; 5][..]), &[], false);
        assert_eq!(refused, Err(Refused::Closed));
    }

    #[test]
    fn closed_outbox_is_emptied_even_if_corked() {
        let outbox = Outbox::new(1000);
        let cx = Context::from_waker(Waker::noop());
        let _corked = outbox.cork();
        push(&outbox, b"one");
        outbox.close();
        assert_eq!(outbox.poll_ready(&cx), Poll::Ready(Some(true)));
    }
}
