//! The caller's buffer of one stream: filled by the task that reads the connection (or by the handler, in
//! process), emptied by the caller. Its capacity is the credit it has granted.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use super::Credit;
use super::items::{Item, Sink};
use crate::BoxFuture;
use crate::error::RpcError;
use crate::frame::Window;

/// The buffer.
#[derive(Debug)]
pub(crate) struct Inlet {
    window: Window,
    state: Mutex<State>,
    /// Notified when an item was taken: in process, the handler waits for this.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Each with the number of bytes it has cost.
    items: VecDeque<(Result<Item, RpcError>, usize)>,
    /// What the sender may still send.
    credit: Credit,
    /// Taken by the caller but not yet granted again.
    taken: (u64, u64),
    reader: Option<Waker>,
    opened: bool,
    received: bool,
}

/// The sender has sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overrun;

impl Inlet {
    pub(super) fn new(window: Window) -> Self {
        Self {
            window,
            state: Mutex::default(),
            room: Notify::new(),
        }
    }

    /// A sender is about to be asked; returns the credit that it starts with.
    pub(crate) fn open(&self) -> Window {
        let mut state = self.state();
        state.credit = Credit::of(self.window);
        state.taken = (0, 0);
        state.opened = true;
        self.window
    }

    /// Whether a sender was asked.
    pub(super) fn is_open(&self) -> bool {
        self.state().opened
    }

    /// Takes in an item whose body had `bytes` bytes, according to the sender.
    pub(crate) fn receive(&self, item: Result<Item, RpcError>, bytes: usize) -> Result<(), Overrun> {
        let mut state = self.state();
        if !state.credit.spend(bytes) {
            return Err(Overrun);
        }
        state.received = true;
        state.items.push_back((item, bytes));
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }

    /// The next item, and whether more should be granted now.
    pub(super) fn poll_next(&self, cx: &Context<'_>) -> Poll<(Result<Item, RpcError>, bool)> {
        let mut state = self.state();
        let Some((item, bytes)) = state.items.pop_front() else {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        state.taken.0 += 1;
        state.taken.1 += bytes as u64;
        let due = state.is_due(self.window);
        drop(state);
        if due {
            self.room.notify_one();
        }
        Poll::Ready((item, due))
    }

    /// What the caller has taken since the last grant, once that is worth a frame: it counts as granted from
    /// then on.
    pub(crate) fn grant_due(&self) -> Option<Window> {
        let mut state = self.state();
        if !state.is_due(self.window) {
            return None;
        }
        let narrow = |taken: u64| u32::try_from(taken).unwrap_or(u32::MAX);
        let window = Window {
            items: narrow(state.taken.0),
            bytes: narrow(state.taken.1),
        };
        state.taken.0 -= u64::from(window.items);
        state.taken.1 -= u64::from(window.bytes);
        state.credit.grant(window);
        Some(window)
    }

    /// The peer could not be notified of a grant: it is due again.
    pub(crate) fn take_back(&self, window: Window) {
        let mut state = self.state();
        state.taken.0 += u64::from(window.items);
        state.taken.1 += u64::from(window.bytes);
        state.credit.revoke(window);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Half of a window at once, so that a sender whose caller keeps up never stops, and frames are few.
    fn is_due(&self, window: Window) -> bool {
        let half = |whole: u32| u64::from(whole.div_ceil(2)).max(1);
        self.taken.0 >= half(window.items) || self.taken.1 >= half(window.bytes)
    }
}

/// In process, a handler sends directly into the buffer.
impl Sink for Inlet {
    fn is_ready(&self) -> bool {
        self.grant_due();
        self.state().credit.is_open()
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.room.notified())
    }

    fn send(&self, item: &Item) -> Result<Option<BoxFuture<'_, ()>>, RpcError> {
        let received = self.receive(Ok(item.clone()), item.bytes());
        Ok(received.is_err().then(|| self.ready()))
    }

    fn has_sent(&self) -> bool {
        self.state().received
    }

    fn leaving(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}
