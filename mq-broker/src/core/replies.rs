//! How a request learns the outcome of its commands: one allocation for all of them, one wake-up after the
//! last.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::log::{Completion, Refused};
use crate::state::Outcome;

/// The answer to one command.
pub type Answer = Completion<Outcome>;

#[derive(Debug)]
struct Shared {
    answers: Mutex<Answers>,
    left: AtomicUsize,
    done: Notify,
}

#[derive(Debug)]
struct Answers {
    each: Vec<Answer>,
    /// The first refusal of one of them that may be retried.
    refused: Option<Refused>,
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
            answers: Mutex::new(Answers {
                each: vec![Answer::Unknown; count],
                refused: None,
            }),
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
        std::mem::take(&mut self.shared.answers().each)
    }
}

impl Shared {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reply {
    /// The refusal of an earlier command of the same request, if that may be retried: the commands after it
    /// must not overtake it.
    pub(super) fn refused_before(&self) -> Option<Refused> {
        self.shared.answers().refused.clone()
    }

    /// Answers.
    pub(super) fn send(mut self, answer: Answer) {
        let mut answers = self.shared.answers();
        // A command that is too large will never be accepted, so nothing waits for it.
        if let Answer::Refused(refused) = &answer
            && !matches!(refused, Refused::TooLarge { .. })
        {
            answers.refused.get_or_insert_with(|| refused.clone());
        }
        if let Some(place) = answers.each.get_mut(self.index) {
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

    #[tokio::test]
    async fn commands_behind_a_refused_one_know_it_unless_it_can_never_be_taken() {
        let (replies, each) = Replies::new(3);
        let mut each = each.collect::<Vec<_>>().into_iter();
        let too_large = Refused::TooLarge {
            bytes: 2,
            bytes_max: 1,
        };
        each.next().unwrap().send(Answer::Refused(too_large.clone()));
        let second = each.next().unwrap();
        assert_eq!(second.refused_before(), None);
        second.send(Answer::Refused(Refused::ReadOnly));
        let third = each.next().unwrap();
        assert_eq!(third.refused_before(), Some(Refused::ReadOnly));
        drop(third);
        let answers = replies.all().await;
        assert_eq!(
            answers[..2],
            [Answer::Refused(too_large), Answer::Refused(Refused::ReadOnly)]
        );
    }
}
