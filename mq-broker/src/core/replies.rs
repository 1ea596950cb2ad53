//! How a request learns what became of its commands: one allocation for all of them, one wake when the last is known.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mq_common::ids::{Durability, Lsn};
use tokio::sync::Notify;

use crate::log::Refused;
use crate::state::Outcome;

/// What became of one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is in the log.
    Applied {
        /// What the state machine says.
        outcome: Outcome,
        /// Its entry.
        lsn: Lsn,
        /// The durability it has.
        reached: Durability,
    },
    /// Definitely nothing happened.
    Refused(Refused),
    /// The log failed in between: it may have happened or not.
    Unknown,
}

#[derive(Debug)]
struct Shared {
    answers: Mutex<Vec<Answer>>,
    left: AtomicUsize,
    done: Notify,
}

/// The waiting side.
#[derive(Debug)]
pub(super) struct Replies {
    shared: Arc<Shared>,
}

/// The answering side of one command. Dropped unused, it answers [`Answer::Unknown`].
#[derive(Debug)]
pub(super) struct Reply {
    shared: Arc<Shared>,
    index: usize,
    sent: bool,
}

impl Replies {
    /// The waiting side and `count` answering ones.
    pub(super) fn new(count: usize) -> (Self, impl Iterator<Item = Reply>) {
        let shared = Arc::new(Shared {
            answers: Mutex::new(vec![Answer::Unknown; count]),
            left: AtomicUsize::new(count),
            done: Notify::new(),
        });
        let replies = Self {
            shared: Arc::clone(&shared),
        };
        let each = (0..count).map(move |index| Reply {
            shared: Arc::clone(&shared),
            index,
            sent: false,
        });
        (replies, each)
    }

    /// All answers, in order. Dropping the future loses them; the commands go on.
    pub(super) async fn all(self) -> Vec<Answer> {
        while self.shared.left.load(Ordering::Acquire) > 0 {
            self.shared.done.notified().await;
        }
        std::mem::take(&mut *self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Reply {
    /// Answers.
    pub(super) fn send(mut self, answer: Answer) {
        let mut answers = self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = answers.get_mut(self.index) {
            *place = answer;
        }
        drop(answers);
        self.finish();
    }

    fn finish(&mut self) {
        self.sent = true;
        if self.shared.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.done.notify_one();
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.sent {
            self.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropped_reply_answers_unknown() {
        let (replies, each) = Replies::new(2);
        let mut each: Vec<Reply> = each.collect();
        drop(each.pop());
        each.pop().unwrap().send(Answer::Refused(Refused::ReadOnly));
        assert_eq!(
            replies.all().await,
            [Answer::Refused(Refused::ReadOnly), Answer::Unknown]
        );
    }
}
