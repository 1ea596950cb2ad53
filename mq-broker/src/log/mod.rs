//! The seam of the log: one total order of commands, made durable. The log knows nothing of what commands
//! mean, and only the log reads and writes the journal's frames.
//!
//! The core drives a log through the trait [`Log`]. Opening the log, sealing a segment on request and giving
//! segments back are particular to [`Solo`], the only implementation: a second one would bring its own.
//!
//! The one invariant: an entry is handed to the [`Applier`] only once it is flushed, in order, each exactly
//! once; a ticket is answered `Applied` only with the durability that was really reached.
//!
//! A log is synchronous and has one holder at a time. [`Log::propose`] queues and never waits; [`Log::turn`]
//! gathers what is queued into one write, applies it, syncs at most once, and leaves the completions.

pub mod entry;
pub mod solo;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use mq_common::batch::Batch;
use mq_common::ids::{Durability, Lsn, Term, Timestamp};

pub use self::solo::{
    FreeError, Freed, Inspection, Level, OpenError, Piece, Reach, Recycler, RereadError, Settings, Solo,
    Space, Standing, entries, make_room, segment_header, segment_of,
};
pub use crate::store::{Location, PlacedRow, SegmentId};

/// Bytes of commands and batches that go into one entry, and into one turn: a turn is one write.
pub const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of one command, meta and batches together: the largest batch with room for what describes it.
pub const COMMAND_BYTES_MAX: usize = GROUP_BYTES_MAX + 64 * 1024;

/// One change, as it is proposed. The log stores `meta` and the batches' producer regions; it copies neither.
#[derive(Debug, Clone)]
pub struct Command {
    /// What to do, encoded by the state machine. It must contain everything that `apply` needs (record counts
    /// too), because a damaged batch may be missing when the entry is replayed.
    pub meta: Bytes,
    /// Checked producer regions.
    pub batches: Vec<Batch>,
    /// At most one such command goes into an entry: for commands whose lsn becomes an identity (a
    /// transaction's).
    pub own_lsn: bool,
    /// What it is for: decides how long it is accepted while the disk fills up.
    pub purpose: Purpose,
}

/// What a command is for, as far as disk space matters: the later in this list, the longer it is accepted
/// while the disk fills up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// It stores messages: refused as soon as the disk is nearly full.
    Stores,
    /// It records something small, such as the progress of a group: still accepted when only the reserve is
    /// left.
    Notes,
    /// It ends something that takes space (a topic, a transaction, the validity of messages): accepted up to
    /// the last byte.
    Frees,
}

impl Command {
    /// A command. With batches it [stores](Purpose::Stores) messages, without it [notes](Purpose::Notes)
    /// something.
    #[must_use]
    pub const fn new(meta: Bytes, batches: Vec<Batch>) -> Self {
        let purpose = if batches.is_empty() {
            Purpose::Notes
        } else {
            Purpose::Stores
        };
        Self {
            meta,
            batches,
            own_lsn: false,
            purpose,
        }
    }

    /// The same command, accepted up to the last byte of the disk.
    #[must_use]
    pub const fn that_frees(mut self) -> Self {
        self.purpose = Purpose::Frees;
        self
    }

    /// The same command, with an lsn that no other such command shares.
    #[must_use]
    pub const fn with_own_lsn(mut self) -> Self {
        self.own_lsn = true;
        self
    }

    /// The bytes that count against [`COMMAND_BYTES_MAX`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.meta.len() + self.batches.iter().map(Batch::len).sum::<usize>()
    }
}

/// Identifies a proposed command until its completion. Never used twice in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// How safe a command must be before it completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// Given to the operating system.
    Flushed,
    /// On the disk.
    Synced,
}

/// Why a command was not accepted. Definite: nothing happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another broker leads; `leader` is its address, if known.
    #[error("this broker does not lead its shard; the leader is {}", leader.as_deref().unwrap_or("not known"))]
    NotLeader {
        /// Address of the leader.
        leader: Option<String>,
    },
    /// More bytes are waiting for the disk than allowed.
    #[error("{bytes_waiting} bytes wait for the disk, {bytes_max} are allowed; try again later")]
    Overloaded {
        /// Bytes of commands waiting.
        bytes_waiting: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The command does not fit into an entry.
    #[error("the command has {bytes} bytes, {bytes_max} are allowed")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The disk is nearly full: no messages are accepted, everything else continues.
    #[error(
        "the disk is nearly full: {free} bytes are free, messages need {needed}; delete topics or \
         other files, make the disk larger, or lower `disk.full_bytes`"
    )]
    DiskFull {
        /// Bytes that are free.
        free: u64,
        /// Bytes that must be.
        needed: u64,
    },
    /// The reserve of a full disk is in use, too: only commands that give space back are accepted.
    #[error(
        "the disk is full and the journal's reserve is in use: {free} bytes are free, {needed} are needed; only deletions \
         and ends of transactions are accepted; delete topics or other files, or make the disk larger"
    )]
    ReserveUsed {
        /// Bytes that are free.
        free: u64,
        /// Bytes that must be.
        needed: u64,
    },
    /// The journal cannot begin another segment, for a reason other than space.
    #[error("the journal cannot begin another segment: {reason}; every request tries again")]
    NoSegment {
        /// The operating system's error and the file.
        reason: String,
    },
    /// The log accepts no more commands: it was stopped, or a write or sync failed.
    #[error("the log accepts no more commands")]
    ReadOnly,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion<R> {
    /// It is part of the log and was applied.
    Applied {
        /// What `apply` answered.
        result: R,
        /// Its entry.
        lsn: Lsn,
        /// The durability reached, at least the one wanted.
        reached: Durability,
    },
    /// It is not part of the log, and never will be: there was no space for it.
    Refused(Refused),
    /// It may be part of the log or not: a write or sync failed. Only the next start can tell.
    Unknown,
}

/// A failed write or sync. It is final: the log serves nothing more and the process must exit, because the
/// kernel may consider pages clean that never reached the disk, so no later sync can be trusted.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} of `{}` failed: {source}", path.display())]
pub struct Poisoned {
    /// What failed: `write`, `sync`, ...
    pub operation: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// The error.
    #[source]
    pub source: Arc<std::io::Error>,
}

/// How far the log has got: `appended >= flushed >= synced`. Everything flushed is applied when a turn
/// returns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Watermarks {
    /// The last entry with an lsn.
    pub appended: Lsn,
    /// The last entry given to the operating system.
    pub flushed: Lsn,
    /// The last entry on the disk.
    pub synced: Lsn,
}

impl Watermarks {
    /// Panics if the order is broken: an acknowledgement could then be false.
    pub(crate) fn assert_order(self) {
        assert!(
            self.appended >= self.flushed && self.flushed >= self.synced,
            "watermarks out of order: {self:?}"
        );
    }
}

/// Who may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// This log accepts commands, in this term.
    Leader {
        /// Higher after every start.
        term: Term,
    },
    /// Another log does.
    Follower {
        /// Its address, if known.
        leader: Option<String>,
    },
}

/// A command of an entry, without its batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// As proposed.
    pub meta: Bytes,
    /// How many of the entry's batches are this command's.
    pub batches: u32,
}

/// A batch of an entry: where its producer region lies, and the region itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Where it lies in the journal.
    pub location: Location,
    /// The stored CRC-32C of the region.
    pub checksum: u32,
    /// The region; `None` if replay found it damaged although it was synced: its offsets are a hole.
    pub batch: Option<Batch>,
}

/// A group of commands with one log sequence number.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its place in the log.
    pub lsn: Lsn,
    /// The term it was written in.
    pub term: Term,
    /// The leader's time; never decreases from one entry to the next.
    pub time: Timestamp,
    /// The segment of the journal that holds it.
    pub segment: SegmentId,
    /// It was read back at start. Its batches share the buffer of a whole segment: keep none of them.
    pub replayed: bool,
    /// The commands in order. None in an empty entry.
    pub parts: &'a [Part],
    /// All batches of all commands, in order.
    pub batches: &'a [Stored],
}

/// One command of an [`Entry`].
#[derive(Debug, Clone, Copy)]
pub struct EntryCommand<'a> {
    /// As proposed.
    pub meta: &'a Bytes,
    /// Index of its first batch among the entry's: the `index` of a [`crate::ids::BatchAt`].
    pub first_batch: u32,
    /// Its batches.
    pub batches: &'a [Stored],
}

impl<'a> Entry<'a> {
    /// The commands with their batches.
    pub fn commands(&self) -> impl Iterator<Item = EntryCommand<'a>> + use<'a> {
        let batches = self.batches;
        let mut next = 0_u32;
        self.parts.iter().map(move |part| {
            let first_batch = next;
            next += part.batches;
            EntryCommand {
                meta: &part.meta,
                first_batch,
                batches: &batches[first_batch as usize..next as usize],
            }
        })
    }
}

/// What entries are handed to: the state machine, and the store that remembers where batches lie.
pub trait Applier {
    /// The result of a command.
    type Result;

    /// Applies an entry that is flushed, and pushes one result per command in order. Also remembers the
    /// places of its batches, at least until [`Applier::seal`].
    fn apply(&mut self, entry: &Entry<'_>, results: &mut Vec<Self::Result>);

    /// How many rows [`Applier::seal`] would return for this segment now.
    fn rows(&self, segment: SegmentId) -> usize;

    /// All entries of this segment were applied: the rows of its `Placed` footer, sorted by queue and base
    /// offset.
    fn seal(&mut self, segment: SegmentId) -> Vec<PlacedRow>;

    /// Whether replay met an entry that cannot be applied; the journal is then left as it is.
    fn is_broken(&self) -> bool {
        false
    }
}

/// The log as the core sees it.
pub trait Log {
    /// The result of a command, as the applier returns it.
    type Result;

    /// Queues a command, in call order. Never blocks; the next turn writes it.
    ///
    /// # Errors
    /// [`Refused`]: definitely nothing happened.
    fn propose(&mut self, command: Command, want: Want) -> Result<Ticket, Refused>;

    /// Writes what waits (at most [`GROUP_BYTES_MAX`], in one write) and applies it; commands that want no
    /// more than that complete. With nothing to do it returns at once. True = a sync is wanted, by a command
    /// or because it is due: call [`Log::sync`].
    ///
    /// # Errors
    /// [`Poisoned`], now and at every later call; the completions say `Unknown` for every ticket that was
    /// pending.
    fn write<A: Applier<Result = Self::Result>>(
        &mut self,
        now: Timestamp,
        applier: &mut A,
    ) -> Result<bool, Poisoned>;

    /// Makes durable what was written, with one sync at most; the commands that want it complete. Blocks for
    /// as long as the disk takes.
    ///
    /// # Errors
    /// As [`Log::write`].
    fn sync(&mut self) -> Result<(), Poisoned>;

    /// A write, and a sync if one is wanted.
    ///
    /// # Errors
    /// As [`Log::write`].
    fn turn<A: Applier<Result = Self::Result>>(
        &mut self,
        now: Timestamp,
        applier: &mut A,
    ) -> Result<(), Poisoned> {
        if self.write(now, applier)? {
            self.sync()?;
        }
        Ok(())
    }

    /// What completed since the last call; each ticket exactly once.
    fn completions(&mut self) -> impl Iterator<Item = (Ticket, Completion<Self::Result>)>;

    /// Makes the next turn sync although no command waits for it: for a checkpoint.
    fn request_sync(&mut self);

    /// When a turn is due although nothing was proposed (the empty entry that covers the last one, a late
    /// sync).
    fn wake_at(&self) -> Option<Timestamp>;

    /// How far it has come.
    fn watermarks(&self) -> Watermarks;

    /// Who may write.
    fn role(&self) -> Role;

    /// Bytes proposed and not yet written.
    fn bytes_waiting(&self) -> usize;

    /// Clean stop: writes what waits and an empty entry after it, syncs, and accepts no more commands.
    ///
    /// # Errors
    /// As [`Log::turn`].
    fn stop<A: Applier<Result = Self::Result>>(
        &mut self,
        now: Timestamp,
        applier: &mut A,
    ) -> Result<(), Poisoned>;
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ticket {}", self.0)
    }
}
