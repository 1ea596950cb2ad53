//! The part of the core that can be read without holding it: topics, visible ranges, the log's progress, and
//! the volatile state (members of groups, check-back questions about transactions), each under a short lock
//! of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use mq_common::ids::{Term, Timestamp};
use tokio::sync::Notify;

use super::topics::Topics;
use super::visible_ranges::VisibleRanges;
use crate::log::Watermarks;
use crate::state::effects::{GroupChange, TransactionChange};
use crate::state::{Effects, State};
use crate::store::Store;
use crate::volatile::{Checks, Members, POLL_TICK, Schedule, Settings, Subscription};

/// State that is never logged: pure structures of the leader, fed by effects and the time.
#[derive(Debug)]
pub struct Volatile {
    /// Members of groups and owners of queues.
    pub members: Members,
    /// Check-back questions about open transactions.
    pub checks: Checks,
    /// Randomness that spreads the questions over time.
    pub rng: Rng,
    settings: Settings,
}

/// What can be read of the core without holding it.
#[derive(Debug)]
pub struct Published {
    /// All topics.
    pub topics: Topics,
    /// Visible ranges of all queues.
    pub visible: VisibleRanges,
    /// Locations of batches.
    pub store: Arc<Store>,
    /// Wakes the polls for questions when a question is due before their next check.
    pub checks_changed: Notify,
    volatile: Mutex<Volatile>,
    marks: Mutex<Watermarks>,
}

impl Published {
    /// Empty, before replay.
    #[must_use]
    pub fn new(store: Arc<Store>, members: Settings, checks: Schedule) -> Self {
        let volatile = Volatile {
            members: Members::new(Term(0), members),
            checks: Checks::new(checks),
            rng: Rng::new(),
            settings: members,
        };
        Self {
            topics: Topics::default(),
            visible: VisibleRanges::default(),
            store,
            checks_changed: Notify::new(),
            volatile: Mutex::new(volatile),
            marks: Mutex::default(),
        }
    }

    /// The volatile state. Hold the lock briefly and never across an await.
    pub fn volatile(&self) -> MutexGuard<'_, Volatile> {
        self.volatile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Builds the volatile state from the state after replay.
    pub(super) fn load_volatile(&self, state: &State, now: Timestamp) {
        let mut volatile = self.volatile();
        let Volatile {
            members,
            checks,
            rng,
            settings,
        } = &mut *volatile;
        *members = Members::from_state(state, state.at().term, *settings);
        for transaction in state.transactions() {
            let age = Duration::from_millis(now.0.saturating_sub(transaction.since.0));
            checks.opened(Instant::now(), transaction, age, rng);
        }
    }

    /// Updates the volatile state with the effects of an entry.
    pub(super) fn feed_volatile(&self, state: &State, effects: &Effects) {
        if effects.groups.is_empty() && effects.transactions.is_empty() {
            return;
        }
        let mut volatile = self.volatile();
        let Volatile {
            members, checks, rng, ..
        } = &mut *volatile;
        for change in &effects.groups {
            match change {
                GroupChange::Created(key) | GroupChange::Queues(key) => {
                    if let Some(subscription) = Subscription::of(state, *key) {
                        members.put(subscription);
                    }
                }
                GroupChange::Progress(key, queue, next)
                | GroupChange::Lost {
                    group: key,
                    queue,
                    to: next,
                    ..
                } => members.progress(*key, *queue, *next),
                GroupChange::Deleted(key) => members.delete(*key),
            }
        }
        let mut is_due_soon = false;
        for change in &effects.transactions {
            match change {
                TransactionChange::Opened { number, .. } | TransactionChange::Resumed { number } => {
                    if let Some(transaction) = state.transaction(*number) {
                        checks.opened(Instant::now(), transaction, Duration::ZERO, rng);
                        is_due_soon |=
                            Duration::from_millis(u64::from(transaction.check_after_ms)) < POLL_TICK;
                    }
                }
                TransactionChange::Parked { number } | TransactionChange::Decided { number, .. } => {
                    checks.forget(*number);
                }
                TransactionChange::Asked { .. } | TransactionChange::Moved { .. } => {}
            }
        }
        drop(volatile);
        if is_due_soon {
            self.checks_changed.notify_waiters();
        }
    }

    pub(super) fn watermarks(&self) -> Watermarks {
        *self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_watermarks(&self, marks: Watermarks) {
        *self.marks.lock().unwrap_or_else(PoisonError::into_inner) = marks;
    }
}
