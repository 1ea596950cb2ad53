//! Whether the disk has space for more. There are two watermarks. Below the first, no messages are accepted,
//! and everything else continues in a reserve, the spare segments. When the reserve is used up too, only
//! commands that give space back are accepted.
//!
//! The one invariant: a command refused here was never written. Reads are not affected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::ahead::Shared;
use crate::log::{Purpose, Refused};
use crate::store::disk::DiskSpace;
use crate::store::{Folder, layout};

/// With less than this free at a start, spares are given up.
const START_BYTES: u64 = 1 << 20;

/// Which commands are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Open,
    /// No messages: the disk is nearly full.
    Full,
    /// Only commands that give space back: the reserve is in use.
    ReadOnly,
}

impl Level {
    /// Whether a command is accepted.
    #[must_use]
    pub const fn admits(self, purpose: Purpose) -> bool {
        match self {
            Self::Open => true,
            Self::Full => !matches!(purpose, Purpose::Stores),
            Self::ReadOnly => matches!(purpose, Purpose::Frees),
        }
    }

    /// As one word, which `mq cluster status` shows.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Open => "ok",
            Self::Full => "full",
            Self::ReadOnly => "read_only",
        }
    }
}

/// The state of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Which commands are accepted.
    pub level: Level,
    /// Bytes that were free at the last check.
    pub free: u64,
    /// Bytes of the file system.
    pub total: u64,
    /// Bytes below which no messages are accepted.
    pub needed: u64,
}

impl Standing {
    /// Why a command is refused now; `None` = it is accepted.
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

/// What the last check found. Read at every command, so without a lock; the numbers may come from different
/// checks.
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

/// Watches the space of a journal. Works without holding the log; clones share their state.
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

    /// The state at the last check.
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

    /// Why a command is refused now; `None` = it is accepted.
    pub(super) fn refuses(&self, purpose: Purpose) -> Option<Refused> {
        // The common case costs one load.
        if self.level() == Level::Open {
            return None;
        }
        self.standing().refuses(purpose)
    }

    /// Checks the disk. Blocks for as long as the system takes to answer.
    pub fn look(&self) -> Standing {
        let folder = &self.shared.folder;
        match folder.disk().space(folder.path()) {
            Ok(found) => self.saw(found),
            Err(error) => tracing::warn!(%error, "the free space of the data folder cannot be determined"),
        }
        self.standing()
    }

    fn saw(&self, found: DiskSpace) {
        let segment = u64::from(self.shared.segment_bytes);
        let ready = self.shared.there_is_space(found.free);
        let before = self.level();
        // One segment above the watermark before messages are accepted again: otherwise the first one
        // accepted could cross it at once.
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

    /// A write found no space, whatever the figures say (a quota, or another program was faster).
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
            Level::Open => tracing::info!(free, needed, "there is space again: messages are accepted"),
            Level::Full => tracing::warn!(free, needed, "the disk is nearly full: no messages are accepted"),
            Level::ReadOnly => tracing::error!(
                free,
                needed,
                "the disk is full and the journal's reserve is in use: only deletions and ends of transactions are accepted"
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

/// Called before anything in a data folder is opened for writing: gives up spare segments if the disk is so
/// full that the checkpoint's database could not be opened.
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
    // Half-filled ones first: every start removes them anyway.
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
