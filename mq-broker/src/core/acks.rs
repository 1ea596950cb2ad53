//! Collects the acks of many members for a few milliseconds into one command that asks for no sync.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mq_common::ids::Offset;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::{Answer, Core};
use crate::ids::{GroupKey, QueueKey};
use crate::log::{self, Want};
use crate::state::{Command, command::Ack};

#[derive(Debug, Default)]
struct Gathered {
    acks: BTreeMap<(GroupKey, QueueKey), Offset>,
    waiting: Vec<oneshot::Sender<Answer>>,
}

/// Collects acks. Bounded by the requests in flight, each of which waits here at most once.
#[derive(Debug)]
pub struct Acks {
    core: Arc<Core>,
    gathered: Mutex<Gathered>,
    merge: Duration,
    tasks: TaskTracker,
}

impl Acks {
    /// Collects for `merge`; commands in progress run in `tasks`.
    #[must_use]
    pub fn new(core: Arc<Core>, merge: Duration, tasks: TaskTracker) -> Self {
        Self {
            core,
            gathered: Mutex::default(),
            merge,
            tasks,
        }
    }

    /// Adds acks, and answers once they are applied. Dropping the future loses the answer; the acks are still
    /// applied.
    pub async fn add(self: &Arc<Self>, acks: Vec<Ack>) -> Answer {
        let (sender, answer) = oneshot::channel();
        if self.gather(acks, sender) {
            let acks = Arc::clone(self);
            self.tasks.spawn(async move { acks.flush().await });
        }
        answer.await.unwrap_or(Answer::Unknown)
    }

    /// Returns whether these are the first of a new command.
    fn gather(&self, acks: Vec<Ack>, sender: oneshot::Sender<Answer>) -> bool {
        let mut gathered = self.lock();
        let first = gathered.waiting.is_empty();
        for ack in acks {
            let next = gathered.acks.entry((ack.group, ack.queue)).or_default();
            *next = ack.next.max(*next);
        }
        gathered.waiting.push(sender);
        first
    }

    async fn flush(&self) {
        tokio::time::sleep(self.merge).await;
        let Gathered { acks, waiting } = std::mem::take(&mut *self.lock());
        let acks = acks
            .into_iter()
            .map(|((group, queue), next)| Ack { group, queue, next })
            .collect();
        let command = log::Command::new(Command::Progress { acks }.encode(), Vec::new());
        let answer = self.core.propose_one(command, Want::Flushed).await;
        for waiting in waiting {
            // The caller may have gone away.
            drop(waiting.send(answer.clone()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
