//! The log of one broker without replication: the journal, written and synced here.

mod error;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mq_common::ids::{Lsn, Timestamp};

pub use self::error::OpenError;
use super::{Applier, Command, Completion, Log, Poisoned, Refused, Role, Ticket, Want, Watermarks};
use crate::store::Folder;

/// Sizes and times of the journal.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of a segment.
    pub segment_bytes: u32,
    /// Segments filled with zeros ahead while the disk is idle; 0 = none, and no helper thread.
    pub segments_ahead: usize,
    /// Bytes that may wait for the disk.
    pub waiting_bytes_max: usize,
    /// An empty entry covers the last one after this long without another.
    pub idle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            segments_ahead: 2,
            waiting_bytes_max: 32 * 1024 * 1024,
            idle: Duration::from_secs(1),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Solo<R> {
    completions: VecDeque<(Ticket, Completion<R>)>,
}

impl<R> Solo<R> {
    /// Opens the journal, or begins it: checks it, cuts a torn tail, makes durable what it found, replays every entry
    /// behind `from` (the checkpoint's lsn, 0 without one) through the applier, and appends and syncs an empty entry
    /// with a term higher than any before.
    ///
    /// # Errors
    /// [`OpenError`]; nothing that was ever synced is changed then.
    pub fn open<A: Applier<Result = R>>(
        folder: &Arc<Folder>,
        settings: Settings,
        from: Lsn,
        now: Timestamp,
        applier: &mut A,
    ) -> Result<Self, OpenError> {
        todo!("{folder:?} {settings:?} {from} {now} {}", size_of_val(applier))
    }
}

impl<A: Applier> Log<A> for Solo<A::Result> {
    fn propose(&mut self, _command: Command, _want: Want) -> Result<Ticket, Refused> {
        Err(Refused::ReadOnly)
    }
    fn turn(&mut self, _now: Timestamp, _applier: &mut A) -> Result<(), Poisoned> {
        Ok(())
    }
    fn completions(&mut self) -> impl Iterator<Item = (Ticket, Completion<A::Result>)> {
        self.completions.drain(..)
    }
    fn request_sync(&mut self) {}
    fn wake_at(&self) -> Option<Timestamp> {
        None
    }
    fn watermarks(&self) -> Watermarks {
        Watermarks::default()
    }
    fn role(&self) -> Role {
        Role::Follower { leader: None }
    }
    fn bytes_waiting(&self) -> usize {
        0
    }
    fn stop(&mut self, _now: Timestamp, _applier: &mut A) -> Result<(), Poisoned> {
        Ok(())
    }
}
