//! What of the core can be seen without holding it: topics, visible ends, how far the log has come, and the volatile
//! side (members of groups, questions about transactions), each behind a short lock of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mq_common::ids::Timestamp;

use super::tails::Tails;
use super::topics::Topics;
use crate::log::Watermarks;
use crate::state::{Effects, State};
use crate::store::Store;

/// What is never logged: pure structures of the leader, fed by effects and the time.
#[derive(Debug, Default)]
pub struct Volatile {}

/// See the module.
#[derive(Debug)]
pub struct Published {
    /// All topics.
    pub topics: Topics,
    /// Visible ends of all queues.
    pub tails: Tails,
    /// Where batches are.
    pub store: Arc<Store>,
    volatile: Mutex<Volatile>,
    marks: Mutex<Watermarks>,
}

impl Published {
    /// Nothing yet.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            topics: Topics::default(),
            tails: Tails::default(),
            store,
            volatile: Mutex::default(),
            marks: Mutex::default(),
        }
    }

    /// The volatile side.
    pub fn volatile(&self) -> MutexGuard<'_, Volatile> {
        self.volatile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn load_volatile(&self, _state: &State, _now: Timestamp) {}

    pub(super) fn feed_volatile(&self, _state: &State, _effects: &Effects, _now: Timestamp) {}

    pub(super) fn watermarks(&self) -> Watermarks {
        *self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_watermarks(&self, marks: Watermarks) {
        *self.marks.lock().unwrap_or_else(PoisonError::into_inner) = marks;
    }
}
