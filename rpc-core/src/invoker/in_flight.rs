//! The calls of one connection that wait for an answer. A slot belongs to a guard, so that an answer, a
//! deadline, a lost connection and a dropped caller all free it; its id carries a generation, so that a late
//! answer matches no call.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::frame::Frame;

/// Bits of an id that hold the slot's index.
const INDEX_BITS: u32 = 24;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
/// Generations wrap around after this; the id stays positive, so it is never the heartbeat's -1.
const GENERATION_MASK: u64 = (1 << (62 - INDEX_BITS)) - 1;
/// Set in the ids of calls that nobody waits for.
const ONEWAY_BIT: u64 = 1 << 62;

/// How a call ended.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The peer answered.
    Frame(Frame),
    /// Its time ran out.
    TimedOut,
    /// The connection ended after `written` bytes had been written.
    Lost { written: u64 },
}

/// Why no call can be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The connection has ended.
    Closed,
    /// As many calls as allowed are in flight.
    Full,
}

#[derive(Debug)]
enum State {
    Free,
    Waiting { waker: Waker, deadline: Instant },
    Done(Answer),
}

#[derive(Debug)]
struct Slot {
    generation: u64,
    state: State,
}

#[derive(Debug, Default)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<usize>,
    oneways: u64,
    closed: bool,
    /// When the connection's task will next check the deadlines, if it will.
    armed: Option<Instant>,
    /// The connection's task.
    reader: Option<Waker>,
    dropped: u64,
}

/// The table of calls in flight.
#[derive(Debug)]
pub(crate) struct InFlight {
    table: Mutex<Table>,
    max: usize,
}

/// A slot that is taken: its guard (`slot_guard.rs`) owns it until [`InFlight::poll`] has returned the answer
/// or it calls [`InFlight::release`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotId(u64);

impl SlotId {
    /// The id on the wire.
    pub(crate) const fn wire(self) -> i64 {
        self.0.cast_signed()
    }
}

impl InFlight {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            table: Mutex::default(),
            max: max.min(1 << INDEX_BITS),
        }
    }

    /// Takes a slot for a call of the task in `cx`; also returns whether no other call was in flight.
    pub(crate) fn start(&self, cx: &Context<'_>, deadline: Instant) -> Result<(SlotId, bool), Refused> {
        let mut table = self.table();
        if table.closed {
            return Err(Refused::Closed);
        }
        let alone = table.in_flight() == 0;
        let index = match table.free.pop() {
            Some(index) => index,
            None if table.slots.len() < self.max => {
                table.slots.push(Slot {
                    generation: 0,
                    state: State::Free,
                });
                table.slots.len() - 1
            }
            None => return Err(Refused::Full),
        };
        let slot = &mut table.slots[index];
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        slot.state = State::Waiting {
            waker: cx.waker().clone(),
            deadline,
        };
        let id = SlotId(slot.generation << INDEX_BITS | index as u64);
        let reader = table.arm(deadline);
        drop(table);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok((id, alone))
    }

    /// An id for a call that nobody waits for; no answer can match it.
    pub(crate) fn oneway(&self) -> i64 {
        let mut table = self.table();
        table.oneways += 1;
        (ONEWAY_BIT | (table.oneways & (ONEWAY_BIT - 1))).cast_signed()
    }

    /// The answer, if it has arrived: the slot is then free again. Otherwise the task in `cx` is woken when
    /// it arrives.
    pub(crate) fn poll(&self, id: SlotId, cx: &Context<'_>) -> Poll<Answer> {
        let mut table = self.table();
        let Some(slot) = table.slot(id.0) else {
            // Only a released slot is not found, and then its guard is gone.
            return Poll::Pending;
        };
        match &mut slot.state {
            State::Free => Poll::Pending,
            State::Waiting { waker, .. } => {
                if !waker.will_wake(cx.waker()) {
                    waker.clone_from(cx.waker());
                }
                Poll::Pending
            }
            State::Done(_) => match table.free(id) {
                State::Done(answer) => Poll::Ready(answer),
                State::Free | State::Waiting { .. } => Poll::Pending,
            },
        }
    }

    /// Frees a slot whose answer is no longer wanted. Returns whether no answer had arrived, so that the peer
    /// may be told to stop.
    pub(crate) fn release(&self, id: SlotId) -> bool {
        let mut table = self.table();
        table.slot(id.0).is_some() && matches!(table.free(id), State::Waiting { .. })
    }

    /// Wakes the connection's task.
    pub(crate) fn wake_reader(&self) {
        let reader = self.table().reader.clone();
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Hands answers to their calls; those that match none are dropped and counted. Callers are woken after
    /// the lock is released, when all frames of one read have been handed over. `frames` and `wakers` are
    /// left empty.
    pub(crate) fn complete(&self, frames: &mut Vec<Frame>, wakers: &mut Vec<Waker>) {
        let mut table = self.table();
        for frame in frames.drain(..) {
            let slot = u64::try_from(frame.id).ok().and_then(|id| table.slot(id));
            match slot.map(|slot| &mut slot.state) {
                Some(state @ State::Waiting { .. }) => {
                    if let State::Waiting { waker, .. } =
                        std::mem::replace(state, State::Done(Answer::Frame(frame)))
                    {
                        wakers.push(waker);
                    }
                }
                _ => table.dropped += 1,
            }
        }
        drop(table);
        wakers.drain(..).for_each(Waker::wake);
    }

    /// Ends the calls whose time is over, and returns when to check again. The task in `cx` is woken when a
    /// new call needs it sooner.
    pub(crate) fn expire(&self, now: Instant, cx: &Context<'_>, wakers: &mut Vec<Waker>) -> Option<Instant> {
        let mut table = self.table();
        if !table
            .reader
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            table.reader = Some(cx.waker().clone());
        }
        if table.armed.is_some_and(|armed| armed <= now) {
            let mut next: Option<Instant> = None;
            for slot in &mut table.slots {
                let State::Waiting { deadline, .. } = &slot.state else {
                    continue;
                };
                if *deadline > now {
                    next = Some(next.map_or(*deadline, |known| known.min(*deadline)));
                } else if let State::Waiting { waker, .. } =
                    std::mem::replace(&mut slot.state, State::Done(Answer::TimedOut))
                {
                    wakers.push(waker);
                }
            }
            table.armed = next;
        }
        let armed = table.armed;
        drop(table);
        wakers.drain(..).for_each(Waker::wake);
        armed
    }

    /// Ends all calls: the connection has ended after `written` bytes had been written.
    pub(crate) fn close(&self, written: u64) {
        let mut wakers = Vec::new();
        let mut table = self.table();
        table.closed = true;
        for slot in &mut table.slots {
            if !matches!(slot.state, State::Waiting { .. }) {
                continue;
            }
            if let State::Waiting { waker, .. } =
                std::mem::replace(&mut slot.state, State::Done(Answer::Lost { written }))
            {
                wakers.push(waker);
            }
        }
        drop(table);
        wakers.drain(..).for_each(Waker::wake);
    }

    /// Calls that wait for an answer or have not yet taken it.
    pub(crate) fn len(&self) -> usize {
        self.table().in_flight()
    }

    /// Answers that matched no waiting call.
    pub(crate) fn dropped(&self) -> u64 {
        self.table().dropped
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn slot(&mut self, id: u64) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(index_of(id))?;
        (slot.generation == id >> INDEX_BITS).then_some(slot)
    }

    /// Frees a slot that is known to exist, and returns what it held.
    fn free(&mut self, id: SlotId) -> State {
        let index = index_of(id.0);
        let slot = &mut self.slots[index];
        // From now on, the old generation must match no call.
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        self.free.push(index);
        std::mem::replace(&mut slot.state, State::Free)
    }

    /// Records a deadline; returns the task to wake if it would otherwise check too late.
    fn arm(&mut self, deadline: Instant) -> Option<Waker> {
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return None;
        }
        self.armed = Some(deadline);
        self.reader.clone()
    }
}

/// The index in an id: 24 bits, which fit any `usize`.
const fn index_of(id: u64) -> usize {
    (id & INDEX_MASK) as usize
}
