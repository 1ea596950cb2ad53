//! Whether the disk has space for more. Two watermarks: below the first no messages are taken any more, and the spare
//! segments are the reserve in which everything else goes on; with the reserve used up too, only what gives space back
//! is taken.
//!
//! The one invariant: what was refused here was never written. Reads need none of this.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::ahead::Shared;
use crate::log::{Purpose, Refused};
use crate::store::disk::DiskSpace;
use crate::store::{Folder, layout};

/// With less than this free at a start, spares are given up for it.
const START_BYTES: u64 = 1 << 20;

/// What is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Open,
    /// No messages: the disk is nearly full.
    Full,
    /// Only what gives space back: the reserve is in use.
    ReadOnly,
}

impl Level {
    /// Whether a command may be taken.
    #[must_use]
    pub const fn admits(self, purpose: Purpose) -> bool {
        match self {
            Self::Open => true,
            Self::Full => !matches!(purpose, Purpose::Stores),
            Self::ReadOnly => matches!(purpose, Purpose::Frees),
        }
    }

    /// In a word, as `mq cluster status` shows it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Open => "ok",
            Self::Full => "full",
            Self::ReadOnly => "read_only",
        }
    }
}

/// How the disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What is taken.
    pub level: Level,
    /// Bytes that are free, as of the last look.
    pub free: u64,
    /// Bytes of the file system.
    pub total: u64,
    /// Bytes below which no messages are taken.
    pub needed: u64,
}

impl Standing {
    /// Why a command is not taken now, if it is not.
    pub(super) const fn refuses(&self, purpose: Purpose) -> Option<Refused> {
        let Self { free, needed, .. } = *self;
        if self.level.admits(purpose) {
            return None;
        }
        Some(match purpose {
            Purpose::Stores => Refused::DiskFull { free, needed },
            _ => Refused::ReserveUsed { free, needed },
        })
    }
}

/// What was last seen. Read at every command, so without a lock; its numbers need not fit together.
#[derive(Debug, Default)]
pub(super) struct Seen {
    level: AtomicU8,
    free: AtomicU64,
    total: AtomicU64,
}

impl Seen {
    fn level(&self) -> Level {
        match self.level.load(Ordering::Relaxed) {
            0 => Level::Open,
            1 => Level::Full,
            _ => Level::ReadOnly,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.level() != Level::Open
    }
}

/// The watch over the space of a journal. Needs no hold of the log; clones are the same one.
#[derive(Debug, Clone)]
pub struct Space {
    shared: Arc<Shared>,
    full_bytes: u64,
    full_percent: u8,
}

impl Space {
    pub(super) fn new(shared: &Arc<Shared>, full_bytes: u64, full_percent: u8) -> Self {
        Self {
            shared: Arc::clone(shared),
            full_bytes,
            full_percent,
        }
    }

    /// As of the last look.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let seen = &self.shared.seen;
        let total = seen.total.load(Ordering::Relaxed);
        Standing {
            level: self.level(),
            free: seen.free.load(Ordering::Relaxed),
            total,
            needed: self.needed(total),
        }
    }

    /// Why a command is not taken now, if it is not.
    pub(super) fn refuses(&self, purpose: Purpose) -> Option<Refused> {
        // The common case costs one load.
        if self.level() == Level::Open {
            return None;
        }
        self.standing().refuses(purpose)
    }

    /// Looks at the disk. Blocks for as long as the system takes to answer.
    pub fn look(&self) -> Standing {
        let folder = &self.shared.folder;
        match folder.disk().space(folder.path()) {
            Ok(found) => self.saw(found),
            Err(error) => tracing::warn!(%error, "the free space of the data folder cannot be seen"),
        }
        self.standing()
    }

    fn saw(&self, found: DiskSpace) {
        let segment = u64::from(self.shared.segment_bytes);
        let ready = self.shared.there_is_space(found.free);
        let before = self.level();
        // A segment more than the mark before messages are taken again: else each one taken would end it at once.
        let more = if before == Level::Open { 0 } else { segment };
        let needed = self.needed(found.total);
        let level = if needed == 0 || found.free >= needed.saturating_add(more) {
            Level::Open
        } else if ready > 0 || found.free >= segment {
            Level::Full
        } else {
            Level::ReadOnly
        };
        self.shared.seen.free.store(found.free, Ordering::Relaxed);
        self.shared.seen.total.store(found.total, Ordering::Relaxed);
        self.set(level);
    }

    /// A write found no space, whatever the figures say (a quota, or somebody was faster).
    pub(super) fn found_full(&self) {
        let level = self.level().max(Level::Full);
        self.set(level);
    }

    fn set(&self, level: Level) {
        let word = level as u8;
        let before = self.shared.seen.level.swap(word, Ordering::Relaxed);
        if before == word {
            return;
        }
        let Standing { free, needed, .. } = self.standing();
        match level {
            Level::Open => tracing::info!(free, needed, "there is space again: messages are taken"),
            Level::Full => tracing::warn!(free, needed, "the disk is nearly full: no messages are taken"),
            Level::ReadOnly => tracing::error!(
                free,
                needed,
                "the disk is full and the journal's reserve is in use: only deletions and ends of transactions are taken"
            ),
        }
    }

    fn level(&self) -> Level {
        self.shared.seen.level()
    }

    fn needed(&self, total: u64) -> u64 {
        let percent = total / 100 * u64::from(self.full_percent);
        self.full_bytes.max(percent)
    }
}

/// Before anything of a data folder is opened to write: gives up spare segments if the disk is so full that the
/// database of the checkpoint could not be opened.
///
/// # Errors
/// As the operating system says.
pub fn make_room(folder: &Folder) -> std::io::Result<()> {
    let disk = folder.disk();
    let parent = layout::journal_folder(folder.path());
    let spares = disk.list(&parent)?;
    let mut spares: Vec<(u64, bool)> = spares
        .iter()
        .filter_map(|name| layout::parse_spare(name))
        .collect();
    // Half-filled ones first: they go at every start.
    spares.sort_by_key(|(_, ready)| *ready);
    for (number, ready) in spares {
        let found = disk.space(folder.path())?;
        if found.free >= START_BYTES {
            break;
        }
        tracing::warn!(
            free = found.free,
            "a spare journal segment is given up to start on a full disk"
        );
        disk.remove(&layout::spare_file(folder.path(), number, ready))?;
    }
    Ok(())
}
