//! The outcome of each line: recorded by the publishers and the consumers, and read by the proof at the end.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How a line is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// Each send is awaited.
    Sync,
    /// Handed over, never acknowledged, never resent.
    Oneway,
    /// A closure gets the receipt.
    Callback,
    /// As half messages, visible at the commit.
    Transaction,
}

impl Mode {
    /// All of them, in the order of the tables.
    pub(crate) const ALL: [Self; 4] = [Self::Sync, Self::Oneway, Self::Callback, Self::Transaction];

    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Oneway => "oneway",
            Self::Callback => "callback",
            Self::Transaction => "transaction",
        }
    }

    /// The mode of a section: whole sections, so that a key is never sent in two modes.
    pub(crate) const fn of_section(section: u32) -> Self {
        Self::ALL[(section % 4) as usize]
    }
}

/// What the publisher knows about a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Not sent.
    Unsent,
    /// Handed over one way: it may arrive or be lost.
    Handed,
    /// The broker sent a receipt for this position.
    Acked {
        /// The queue.
        queue: u32,
        /// The offset in it.
        offset: u64,
    },
    /// The connection failed meanwhile: it may arrive, and is never resent.
    Unknown,
    /// Its transaction was decided as committed: it must arrive, no matter how the broker learns of the
    /// decision.
    Committed,
    /// Its transaction was decided as rolled back: it must never arrive.
    RolledBack,
    /// Definitely not sent, and given up.
    Refused,
}

/// One line that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// The line number that it carries.
    pub(crate) line: Option<u32>,
    /// Whether its bytes equal that line.
    pub(crate) unchanged: bool,
    /// The queue.
    pub(crate) queue: u32,
    /// The offset in it.
    pub(crate) offset: u64,
    /// When.
    pub(crate) at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    fate: Fate,
    sent: Option<Instant>,
    answered: Option<Instant>,
}

/// The ledger. Its locks are held for a few instructions at a time.
#[derive(Debug)]
pub(crate) struct Ledger {
    entries: Mutex<Vec<Entry>>,
    arrivals: Vec<Mutex<Vec<Arrival>>>,
}

impl Ledger {
    /// An empty ledger for this many lines and groups.
    pub(crate) fn new(lines: usize, groups: usize) -> Self {
        let empty = Entry {
            fate: Fate::Unsent,
            sent: None,
            answered: None,
        };
        Self {
            entries: Mutex::new(vec![empty; lines]),
            arrivals: (0..groups).map(|_| Mutex::default()).collect(),
        }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The line is about to be sent.
    pub(crate) fn sent(&self, line: u32) {
        if let Some(entry) = self.entries().get_mut(line as usize) {
            entry.sent = Some(Instant::now());
        }
    }

    /// Records its outcome.
    pub(crate) fn settle(&self, line: u32, fate: Fate) {
        if let Some(entry) = self.entries().get_mut(line as usize) {
            entry.fate = fate;
            entry.answered = Some(Instant::now());
        }
    }

    /// Records an arrival in a group; arrivals are kept in the order of these calls.
    pub(crate) fn arrived(&self, group: usize, arrival: Arrival) {
        self.arrivals[group]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(arrival);
    }

    /// The outcome of each line.
    pub(crate) fn fates(&self) -> Vec<Fate> {
        self.entries().iter().map(|entry| entry.fate).collect()
    }

    /// Everything that arrived in a group, in order.
    pub(crate) fn arrivals(&self, group: usize) -> Vec<Arrival> {
        self.arrivals[group]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// From sending to the receipt, for acknowledged lines of one mode, sorted.
    pub(crate) fn waits(&self, modes: &[Mode], sections: &[u32]) -> Vec<Duration> {
        let entries = self.entries();
        let of_mode = entries.iter().zip(sections).filter(|(entry, section)| {
            matches!(entry.fate, Fate::Acked { .. }) && modes.contains(&Mode::of_section(**section))
        });
        let mut waits: Vec<Duration> = of_mode
            .filter_map(|(entry, _)| Some(entry.answered?.duration_since(entry.sent?)))
            .collect();
        waits.sort_unstable();
        waits
    }

    /// The number of arrivals in a group.
    pub(crate) fn arrivals_count(&self, group: usize) -> usize {
        self.arrivals[group]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// From sending to the first arrival in a group, for lines of some modes, sorted.
    pub(crate) fn ways(&self, group: usize, modes: &[Mode], sections: &[u32]) -> Vec<Duration> {
        let arrivals = self.arrivals(group);
        let entries = self.entries();
        let mut seen = vec![false; entries.len()];
        let mut ways = Vec::with_capacity(arrivals.len());
        for arrival in arrivals {
            let Some(line) = arrival.line.map(|line| line as usize) else {
                continue;
            };
            let Some(sent) = entries.get(line).and_then(|entry| entry.sent) else {
                continue;
            };
            if !sections
                .get(line)
                .is_some_and(|section| modes.contains(&Mode::of_section(*section)))
            {
                continue;
            }
            if !std::mem::replace(&mut seen[line], true) {
                ways.push(arrival.at.saturating_duration_since(sent));
            }
        }
        ways.sort_unstable();
        ways
    }
}

/// The value below which this share of the sorted values lies.
pub(crate) fn quantile(sorted: &[Duration], per_mille: usize) -> Duration {
    let index = (sorted.len() * per_mille / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}
