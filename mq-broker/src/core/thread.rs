//! The core's own thread: continues where requests left work, writes the empty entry when the log is idle,
//! and ends the log at a clean stop.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::inbox::Wake;
use super::{Core, StartError};
use crate::log::Log as _;

/// The longest sleep of the thread. Inline turns postpone the empty entry without waking it.
const TICK: Duration = Duration::from_millis(500);

/// The running thread.
#[derive(Debug)]
pub struct CoreThread {
    core: Arc<Core>,
    handle: JoinHandle<()>,
}

impl CoreThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system provides no thread.
    pub fn start(core: Arc<Core>) -> Result<Self, StartError> {
        let running = Arc::clone(&core);
        let handle = std::thread::Builder::new()
            .name("mq-core".to_owned())
            .spawn(move || run(&running))
            .map_err(StartError::Thread)?;
        Ok(Self { core, handle })
    }

    /// Accepts no more commands, finishes the waiting ones, writes the last entry and syncs. Blocks.
    ///
    /// # Errors
    /// The thread panicked.
    pub fn stop(self) -> io::Result<()> {
        self.core.inbox.close();
        self.handle
            .join()
            .map_err(|_| io::Error::other("the core's thread panicked"))
    }
}

fn run(core: &Core) {
    let mut time = TICK;
    loop {
        let wake = core.inbox.wait(time);
        let Ok(mut holder) = core.holder.lock() else {
            return core.fail("the core panicked");
        };
        if core.failed.is_cancelled() {
            return;
        }
        let due = holder.log.wake_at().is_some_and(|at| at <= core.clock.now());
        if wake != Wake::Time || due || !core.inbox.is_empty() {
            core.turn(&mut holder);
        }
        if wake == Wake::Closed && core.inbox.is_empty() {
            let stopped = holder.stop_log(core);
            core.publish(&mut holder);
            for (reply, answer) in holder.completed() {
                reply.send(answer);
            }
            if let Err(poisoned) = stopped {
                core.fail(&poisoned.to_string());
            }
            return;
        }
        let next = holder.log.wake_at().map_or(TICK, |at| {
            Duration::from_millis(at.0.saturating_sub(core.clock.now().0)).min(TICK)
        });
        drop(holder);
        time = if core.inbox.is_empty() {
            next
        } else {
            Duration::ZERO
        };
    }
}

impl super::Holder {
    fn stop_log(&mut self, core: &Core) -> Result<(), crate::log::Poisoned> {
        self.log.stop(core.clock.now(), &mut self.applier)
    }
}
