//! Which messages key compaction may have deleted from a queue. Pure.
//!
//! Of each key the newest message stays, unless it is a tombstone whose time is over: with that goes all that
//! came before it. A pass that no checkpoint had may be undone by a death, and then what it let go is there
//! again, all of it at once: so a message may be gone at one look and be there at the next. But nothing is
//! ever there whose tombstone is gone.

use std::collections::HashMap;

use super::ledger::{Known, Ledger, Sent, Time};
use super::observed::Queue;
use super::value::{TOMBSTONE_MS, is_tombstone, key};

/// What is known of the keys of one queue.
pub(super) struct Keys<'a> {
    found: &'a Queue,
    /// Its topic compacts, or did once.
    compacts: bool,
    /// Of each key the last offset that has a message.
    last: HashMap<&'a str, u64>,
    tombstones: HashMap<&'a str, Vec<Tombstone>>,
    /// Offsets in holes at which nothing is known to have been stored, and what may have been stored there.
    nameless: u64,
    unknown: u64,
}

/// A message that deletes its key.
struct Tombstone {
    /// Its offset; if that is not known, where it was stored then at most.
    at: Result<u64, u64>,
    /// Its time is over.
    is_over: bool,
}

impl<'a> Keys<'a> {
    /// What was asked before `moment` counts.
    pub(super) fn new(
        ledger: &'a Ledger,
        (topic, queue): (usize, u32),
        found: &'a Queue,
        moment: Time,
    ) -> Self {
        let mut versions = ledger.topics[topic].versions.iter();
        let compacts = versions.any(|version| version.asked < moment && version.settings.compact);
        let mut keys = Self {
            found,
            compacts,
            last: HashMap::new(),
            tombstones: HashMap::new(),
            nameless: found.values.iter().filter(|value| value.is_none()).count() as u64,
            unknown: 0,
        };
        for (offset, value) in found.messages() {
            if let Some(key) = key(value) {
                keys.last.insert(key, offset);
            }
        }
        let sent = ledger.sent.values();
        for sent in sent.filter(|sent| (sent.topic, sent.queue) == (topic, queue) && sent.asked < moment) {
            keys.note(sent, moment);
        }
        keys
    }

    fn note(&mut self, sent: &'a Sent, moment: Time) {
        // Its append was later than this, and clocks differ a little.
        let age_ms = moment.saturating_sub(sent.asked) / 1_000_000;
        let is_over = age_ms + age_ms / 50 + 20 >= TOMBSTONE_MS;
        for (value, index) in sent.values.iter().zip(0..) {
            let at = match sent.placed {
                Known::There(_, (base, _)) => Ok(base + index),
                Known::Unknown => Err(sent.below),
                Known::Nothing => continue,
            };
            let is_named = at.is_ok_and(|at| self.found.is_compacted(at));
            self.nameless = self.nameless.saturating_sub(u64::from(is_named));
            if let Some(key) = key(value) {
                self.unknown += u64::from(at.is_err());
                if is_tombstone(value) {
                    self.tombstones
                        .entry(key)
                        .or_default()
                        .push(Tombstone { at, is_over });
                }
            }
        }
    }

    /// Whether this value lies where a pass left a hole, and may have gone there.
    pub(super) fn explain(&self, offset: u64, value: &str) -> bool {
        let Some(key) = key(value).filter(|_| self.compacts && self.found.is_compacted(offset)) else {
            return false;
        };
        let is_behind = |tombstone: &Tombstone| match tombstone.at {
            Ok(at) => at >= offset,
            Err(below) => below > offset,
        };
        self.last.get(key).is_some_and(|last| *last > offset)
            || self.tombstones.get(key).is_some_and(|tombstones| {
                tombstones
                    .iter()
                    .any(|tombstone| tombstone.is_over && is_behind(tombstone))
            })
    }

    /// The first thing that no pass does.
    pub(super) fn wrong(&self) -> Option<String> {
        if !self.compacts && self.found.values.contains(&None) {
            return Some("has holes, and its topic never compacted".to_owned());
        }
        if self.nameless > self.unknown {
            return Some(format!(
                "has {} offsets in holes at which nothing is known, and {} messages that may have been there",
                self.nameless, self.unknown
            ));
        }
        let mut back = self.last.iter().filter_map(|(key, last)| {
            let tombstones = self.tombstones.get(key)?;
            let gone = tombstones
                .iter()
                .filter_map(|tombstone| tombstone.at.ok())
                .find(|at| at > last && self.found.is_compacted(*at))?;
            Some(format!(
                "has key `{key}` at {last} again; that it was deleted at {gone} is gone"
            ))
        });
        back.next()
    }
}
