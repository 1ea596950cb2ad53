//! The log of one broker without replication: the journal, written and synced here.
//!
//! A turn is `Group::fill` (waiting commands become entries), one write, apply, at most one sync. A write
//! that finds no space is taken back and its commands are refused (`roll`); any other failure poisons the log
//! for good. A segment without room is sealed between the writes of two turns, when all its entries are
//! applied.

mod ahead;
mod disk_space;
mod error;
mod group_commit;
mod idle;
mod inspect;
mod recover;
mod recycle;
mod reread;
mod roll;
mod scan;
mod segment;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mq_common::ids::{Durability, Lsn, Term, Timestamp};

use self::ahead::Ahead;
pub use self::disk_space::{Level, Space, Standing, make_room};
pub use self::error::OpenError;
use self::group_commit::{Fill, Group, Pending, Waiting, frame_share};
use self::idle::IdleTimer;
pub use self::inspect::{Inspection, Piece, segment_header};
pub use self::recycle::{FreeError, Freed, Recycler};
pub use self::reread::{Reach, RereadError, entries, segment_of};
use self::segment::{FIXED_BYTES, Failed, Segment};
use super::entry::FRAME_HEADER_BYTES;
use super::{
    Applier, COMMAND_BYTES_MAX, Command, Completion, Log, Poisoned, Purpose, Refused, Role, Ticket, Want,
    Watermarks,
};
use crate::store::segment_index::footer::ROW_BYTES;
use crate::store::{Folder, SegmentId};

/// Bytes of a segment, at least: a few small entries.
const SEGMENT_BYTES_MIN: u32 = 1024;
/// Bytes of a segment, at most: positions are u32, and a footer may follow.
const SEGMENT_BYTES_MAX: u32 = 1 << 30;

/// Sizes and times of the journal.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of a segment.
    pub segment_bytes: u32,
    /// Rows of a segment: one that has this many is sealed, however much room it has left. Its rows are in memory until
    /// then. A single command may have more of them, and a transaction's end may place more.
    pub segment_rows_max: usize,
    /// Segments filled with zeros ahead while the disk is idle.
    pub segments_ahead: usize,
    /// Spare segments that are kept, freed ones included; a segment freed beyond them is unlinked. If this
    /// and `segments_ahead` are both 0, there is no helper thread.
    pub spares_max: usize,
    /// Zeros written at once after small frames in a segment that was not a spare; 0 = none.
    pub zeros_ahead_bytes: u32,
    /// Bytes that may wait for the disk.
    pub waiting_bytes_max: usize,
    /// After this long without an entry, an empty one covers the last; and nothing stays unsynced for longer.
    pub idle: Duration,
    /// With fewer bytes free on the disk, no messages are accepted; 0 = only when a write finds no space.
    pub full_bytes: u64,
    /// Like `full_bytes`, in percent of the disk; the larger of the two counts.
    pub full_percent: u8,
    /// The seed of a new journal's checksums: random, so that no message can imitate a frame.
    pub chain_start: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            segment_rows_max: usize::MAX,
            segments_ahead: 2,
            spares_max: 4,
            zeros_ahead_bytes: 1024 * 1024,
            waiting_bytes_max: 32 * 1024 * 1024,
            idle: Duration::from_secs(1),
            full_bytes: 0,
            full_percent: 0,
            chain_start: fastrand::u32(..),
        }
    }
}

impl Settings {
    fn check(&self) -> Result<(), OpenError> {
        let bytes = self.segment_bytes;
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) {
            return Err(OpenError::Settings(format!(
                "a segment of {bytes} bytes; expected {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}"
            )));
        }
        Ok(())
    }
}

/// The journal of one broker, as its log.
#[derive(Debug)]
pub struct Solo<R> {
    folder: Arc<Folder>,
    settings: Settings,
    segment: Segment,
    ahead: Ahead,
    space: Space,
    term: Term,
    time: Timestamp,
    marks: Watermarks,
    waiting: Waiting,
    tickets: u64,
    group: Group,
    results: Vec<R>,
    completions: VecDeque<(Ticket, Completion<R>)>,
    /// Applied commands that wait for a sync.
    held: Vec<(Ticket, R, Lsn)>,
    sync_wanted: bool,
    timer: IdleTimer,
    stopped: bool,
    poisoned: Option<Poisoned>,
}

impl<R> Solo<R> {
    /// Opens the journal, or creates it: checks it, cuts a torn tail, makes what it found durable, replays
    /// every entry after `from` (the checkpoint's lsn, 0 without one) through the applier, and appends and
    /// syncs an empty entry with a higher term than any before.
    ///
    /// # Errors
    /// [`OpenError`]; nothing that was ever synced is changed in that case.
    pub fn open<A: Applier<Result = R>>(
        folder: &Arc<Folder>,
        settings: Settings,
        from: Lsn,
        now: Timestamp,
        applier: &mut A,
    ) -> Result<Self, OpenError> {
        settings.check()?;
        let ahead = Ahead::open(
            folder,
            settings.segment_bytes,
            settings.segments_ahead,
            settings.spares_max,
        )?;
        let segment = recover::recover(folder, &settings, &ahead, from, applier)?;
        segment.reserve();
        ahead.begun(segment.id());
        let space = Space::new(ahead.shared(), settings.full_bytes, settings.full_percent);
        space.look();
        let last = Lsn(segment.point.next.0 - 1);
        let timer = IdleTimer::new(settings.idle, now);
        let mut solo = Self {
            folder: Arc::clone(folder),
            settings,
            term: Term(segment.point.term.0 + 1),
            time: segment.point.time.max(now),
            segment,
            ahead,
            space,
            marks: Watermarks {
                appended: last,
                flushed: last,
                synced: last,
            },
            waiting: Waiting::default(),
            tickets: 0,
            group: Group::default(),
            results: Vec::new(),
            completions: VecDeque::new(),
            held: Vec::new(),
            sync_wanted: false,
            timer,
            stopped: false,
            poisoned: None,
        };
        if let Some(refused) = solo.write_empty(now, applier, Purpose::Frees)? {
            return Err(OpenError::NoSpace(refused));
        }
        solo.sync_all()?;
        Ok(solo)
    }

    /// Frees sealed segments.
    #[must_use]
    pub fn recycler(&self) -> Recycler {
        Recycler::new(self.ahead.shared())
    }

    /// The segment being written.
    #[must_use]
    pub const fn segment(&self) -> SegmentId {
        self.segment.id()
    }

    /// Watches the free space of the disk.
    #[must_use]
    pub fn space(&self) -> &Space {
        &self.space
    }

    fn try_write<A: Applier<Result = R>>(&mut self, now: Timestamp, applier: &mut A) -> Result<(), Poisoned> {
        self.timer.turned(now);
        if let Some(poisoned) = self.ahead.failed() {
            return Err(poisoned);
        }
        let rows_max = self.settings.segment_rows_max;
        if self.group.fill(&mut self.waiting, &self.segment, rows_max) == Fill::NoRoom {
            let purpose = self.waiting.purpose().unwrap_or(Purpose::Notes);
            if let Some(refused) = self.roll(applier, purpose)? {
                self.refuse_waiting(purpose, &refused);
                return Ok(());
            }
            let fill = self.group.fill(&mut self.waiting, &self.segment, rows_max);
            assert_eq!(
                fill,
                Fill::Done,
                "a command that was not refused fits into an empty segment"
            );
        }
        if !self.group.is_empty() {
            self.write_group(now, applier)?;
        } else if self.timer.is_empty_entry_due(self.time, now) {
            self.write_empty(now, applier, Purpose::Notes)?;
        }
        Ok(())
    }

    /// One write, then apply. If the write was refused, returns why: the commands are then not part of the
    /// log.
    fn write_group<A: Applier<Result = R>>(
        &mut self,
        now: Timestamp,
        applier: &mut A,
    ) -> Result<Option<Refused>, Poisoned> {
        self.time = self.time.max(now);
        self.ahead.wrote();
        // On a nearly full disk, the remaining blocks are for frames.
        let ahead = match self.space.standing().level {
            Level::Open => self.settings.zeros_ahead_bytes,
            Level::Full | Level::ReadOnly => 0,
        };
        self.segment.fill_ahead(self.group.frames_bytes(), ahead);
        let before = self.segment.point.next;
        let written = self
            .group
            .write(&mut self.segment, self.term, self.time, self.marks.synced);
        let last = match written {
            Ok(last) => last,
            Err(Failed::Undone(undone)) => return self.take_back(&undone).map(Some),
            Err(Failed::Poisoned(poisoned)) => return Err(poisoned),
        };
        assert!(last >= before, "a group holds an entry");
        self.marks.appended = last;
        self.marks.flushed = last;
        self.marks.assert_order();
        let is_overdue = self.timer.wrote(self.time);
        self.sync_wanted |= is_overdue || self.group.wants_sync();
        self.apply_group(applier);
        Ok(None)
    }

    fn apply_group<A: Applier<Result = R>>(&mut self, applier: &mut A) {
        for (entry, tickets) in self.group.entries(&self.segment) {
            applier.apply(&entry, &mut self.results);
            assert_eq!(self.results.len(), tickets.len(), "one result per command");
            let lsn = entry.lsn;
            for ((ticket, want), result) in tickets.iter().zip(self.results.drain(..)) {
                match want {
                    Want::Flushed => {
                        let reached = Durability::Memory;
                        let applied = Completion::Applied { result, lsn, reached };
                        self.completions.push_back((*ticket, applied));
                    }
                    Want::Synced => self.held.push((*ticket, result, lsn)),
                }
            }
        }
        self.segment.made_rows(applier.rows(self.segment.id()));
        self.group.clear();
    }

    /// One sync, if anything is not synced; then the commands that waited for it complete.
    fn sync_all(&mut self) -> Result<(), Poisoned> {
        if self.marks.synced < self.marks.flushed {
            self.segment.sync()?;
            self.marks.synced = self.marks.flushed;
            self.marks.assert_order();
        }
        self.timer.synced();
        self.sync_wanted = false;
        let synced = self.marks.synced;
        self.completions
            .extend(self.held.drain(..).map(|(ticket, result, lsn)| {
                assert!(lsn <= synced, "acknowledged before the sync");
                let reached = Durability::Fsynced;
                (ticket, Completion::Applied { result, lsn, reached })
            }));
        Ok(())
    }

    fn poison(&mut self, poisoned: &Poisoned) {
        tracing::error!(%poisoned, "the journal failed: the broker must stop");
        self.poisoned = Some(poisoned.clone());
        let held = self.held.drain(..).map(|(ticket, ..)| ticket);
        let written = self.group.tickets().iter().map(|(ticket, _)| *ticket);
        let waiting = std::iter::from_fn(|| self.waiting.pop()).map(|pending| pending.ticket);
        let unknown = held.chain(written).chain(waiting);
        self.completions
            .extend(unknown.map(|ticket| (ticket, Completion::Unknown)));
        self.group.clear();
    }

    /// Runs a step that may fail; a failure is final.
    fn guard(&mut self, step: impl FnOnce(&mut Self) -> Result<(), Poisoned>) -> Result<(), Poisoned> {
        if let Some(poisoned) = &self.poisoned {
            return Err(poisoned.clone());
        }
        let done = step(self);
        if let Err(poisoned) = &done {
            self.poison(poisoned);
        }
        done
    }

    /// Bytes of the largest command that fits into an empty segment.
    fn command_bytes_max(&self, batches: usize) -> usize {
        let around = FIXED_BYTES + FRAME_HEADER_BYTES + batches * ROW_BYTES;
        (self.settings.segment_bytes as usize).saturating_sub(around)
    }
}

impl<R> Log for Solo<R> {
    type Result = R;

    fn propose(&mut self, command: Command, want: Want) -> Result<Ticket, Refused> {
        if self.stopped || self.poisoned.is_some() {
            return Err(Refused::ReadOnly);
        }
        let bytes = command.bytes();
        let bytes_max = COMMAND_BYTES_MAX.min(self.command_bytes_max(command.batches.len()));
        if bytes > COMMAND_BYTES_MAX || frame_share(&command) > self.command_bytes_max(command.batches.len())
        {
            return Err(Refused::TooLarge { bytes, bytes_max });
        }
        if let Some(refused) = self.space.refuses(command.purpose) {
            return Err(refused);
        }
        let bytes_waiting = self.waiting.bytes();
        if bytes_waiting > 0 && bytes_waiting + Waiting::counted(&command) > self.settings.waiting_bytes_max {
            return Err(Refused::Overloaded {
                bytes_waiting,
                bytes_max: self.settings.waiting_bytes_max,
            });
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.waiting.push(Pending {
            ticket,
            want,
            command,
        });
        Ok(ticket)
    }

    fn write<A: Applier<Result = R>>(&mut self, now: Timestamp, applier: &mut A) -> Result<bool, Poisoned> {
        self.guard(|solo| solo.try_write(now, applier))?;
        Ok(self.sync_wanted)
    }

    fn sync(&mut self) -> Result<(), Poisoned> {
        self.guard(Self::sync_all)
    }

    fn completions(&mut self) -> impl Iterator<Item = (Ticket, Completion<R>)> {
        self.completions.drain(..)
    }

    fn request_sync(&mut self) {
        self.sync_wanted = true;
    }

    fn wake_at(&self) -> Option<Timestamp> {
        if self.poisoned.is_some() || self.stopped {
            return None;
        }
        self.timer.wake_at(self.time, self.ahead.is_to_be_watched())
    }

    fn watermarks(&self) -> Watermarks {
        self.marks
    }

    fn role(&self) -> Role {
        Role::Leader { term: self.term }
    }

    fn bytes_waiting(&self) -> usize {
        self.waiting.bytes()
    }

    fn stop<A: Applier<Result = R>>(&mut self, now: Timestamp, applier: &mut A) -> Result<(), Poisoned> {
        if self.stopped {
            return Ok(());
        }
        self.stopped = true;
        self.guard(|solo| {
            while !solo.waiting.is_empty() {
                solo.try_write(now, applier)?;
            }
            solo.write_empty(now, applier, Purpose::Notes)?;
            solo.sync_all()
        })
    }
}
