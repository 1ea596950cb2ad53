//! Whether what a broker shows after its death is what its answers promised. Pure.
//!
//! What was acknowledged before the death is there, in its place and in order, or lies below a start that the
//! topic's settings explain, or went for a later message of its key (see `keys`); what was not answered is
//! there as a whole or not at all; nothing is there twice, and nothing that nobody asked for or that was
//! known to be gone.

use std::collections::{BTreeMap, HashSet};

use mq_common::ids::Durability;

use super::keys::Keys;
use super::ledger::{Group, Known, Ledger, Sent, Time, Topic, Transaction};
use super::observed::{self, Observed};
use super::starts;

/// How the broker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// Its process was killed: all that it answered stays.
    Killed,
    /// The power was cut: what was only in memory may be gone, acks too.
    PowerCut,
}

/// Nothing is wrong, or the first thing that is. What was asked from `moment` on, or is known only since,
/// does not count.
pub(crate) fn check(ledger: &Ledger, observed: &Observed, death: Death, moment: Time) -> Result<(), String> {
    let check = Check {
        ledger,
        observed,
        death,
        moment,
    };
    let alive = check.topics()?;
    let keys = check.keys(&alive);
    let seen = check.messages(&alive, &keys)?;
    check.acknowledged(&alive, &keys)?;
    for (number, transaction) in ledger.transactions.iter().enumerate() {
        check.transaction(number, transaction, &alive, &seen)?;
    }
    check.open()?;
    check.groups(&alive)
}

struct Check<'a> {
    ledger: &'a Ledger,
    observed: &'a Observed,
    death: Death,
    moment: Time,
}

/// Topics of the ledger that were found.
type Alive<'a> = BTreeMap<usize, &'a observed::Topic>;
/// By topic and queue.
type AllKeys<'a> = BTreeMap<(usize, u32), Keys<'a>>;
/// Batches of which something was found.
type Seen = HashSet<usize>;

impl<'a> Check<'a> {
    fn topics(&self) -> Result<Alive<'a>, String> {
        let mut alive = Alive::new();
        for (name, found) in &self.observed.topics {
            let is_it = |topic: &Topic| {
                topic.name == *name
                    && topic.asked < self.moment
                    && match topic.id {
                        Known::There(_, id) => id == found.id,
                        Known::Unknown => true,
                        Known::Nothing => false,
                    }
            };
            let number = self.ledger.topics.iter().rposition(is_it);
            let number = number.ok_or_else(|| format!("topic `{name}` with id {} is invented", found.id))?;
            self.declaration(&self.ledger.topics[number], found)?;
            alive.insert(number, found);
        }
        for (number, topic) in self.ledger.topics.iter().enumerate() {
            let (asked, answered) = topic.deletion.unzip();
            let is_gone = answered.flatten().is_some_and(|at| at < self.moment);
            let is_expected =
                topic.id.before(self.moment).there().is_some() && asked.is_none_or(|at| at >= self.moment);
            match alive.contains_key(&number) {
                true if is_gone => return Err(format!("topic `{}` is back", topic.name)),
                false if is_expected => return Err(format!("topic `{}` is lost", topic.name)),
                _ => {}
            }
        }
        Ok(alive)
    }

    /// The last version that was acknowledged, or a later one that was asked for.
    fn declaration(&self, topic: &Topic, found: &observed::Topic) -> Result<(), String> {
        let asked = topic
            .versions
            .iter()
            .filter(|version| version.asked < self.moment);
        let asked: Vec<_> = asked.collect();
        let known = |version: &&super::ledger::Version| version.known.before(self.moment).there().is_some();
        let last = asked.iter().rposition(known).unwrap_or_default();
        let fits = |version: &&super::ledger::Version| {
            version.known != Known::Nothing
                && (version.number == 0 || version.number == found.version)
                && version.settings == found.settings
                && version.queues as usize == found.queues.len()
        };
        if asked[last..].iter().any(fits) {
            return Ok(());
        }
        Err(format!(
            "topic `{}` is of version {} with {} queues and {:?}; expected was one of {:?}",
            topic.name,
            found.version,
            found.queues.len(),
            found.settings,
            &asked[last..]
        ))
    }

    fn keys(&self, alive: &Alive<'a>) -> AllKeys<'a> {
        let queues = alive.iter().flat_map(|(topic, found)| {
            let queues = (0..).zip(&found.queues);
            queues.map(|(queue, found)| ((*topic, queue), found))
        });
        queues
            .map(|(queue, found)| (queue, Keys::new(self.ledger, queue, found, self.moment)))
            .collect()
    }

    /// Every message that is there was asked for, once, in order; batches are whole but for what went for
    /// later messages of its key; starts are explained.
    fn messages(&self, alive: &Alive<'a>, keys: &AllKeys<'a>) -> Result<Seen, String> {
        let mut seen = Seen::new();
        for (topic, found) in alive {
            for (queue, found) in (0..).zip(&found.queues) {
                let keys = &keys[&(*topic, queue)];
                if let Some(wrong) = keys.wrong() {
                    let name = &self.ledger.topics[*topic].name;
                    return Err(format!("queue {queue} of `{name}` {wrong}"));
                }
                self.queue((*topic, queue), found, keys, &mut seen)?;
                if !starts::is_explained(self.ledger, (*topic, queue), found, self.moment) {
                    let name = &self.ledger.topics[*topic].name;
                    return Err(format!(
                        "queue {queue} of `{name}` starts at {}, which none of its settings explains; it ends at {}",
                        found.start,
                        found.end()
                    ));
                }
                let before = self
                    .ledger
                    .starts
                    .get(&(*topic, queue))
                    .copied()
                    .unwrap_or_default();
                if self.death == Death::Killed && found.start < before {
                    return Err(format!(
                        "the start of queue {queue} went back from {before} to {}",
                        found.start
                    ));
                }
            }
        }
        Ok(seen)
    }

    fn queue(
        &self,
        (topic, queue): (usize, u32),
        found: &observed::Queue,
        keys: &Keys<'_>,
        seen: &mut Seen,
    ) -> Result<(), String> {
        let name = &self.ledger.topics[topic].name;
        let mut last_asked = 0;
        // Behind the last batch.
        let mut next = found.start;
        for (offset, value) in found.messages() {
            if offset < next {
                continue;
            }
            let place = || format!("`{value:.40}` at offset {offset} of queue {queue} of `{name}`");
            let known = self.ledger.batch_of(value);
            let (number, sent, first) = known.ok_or_else(|| format!("invented: {}", place()))?;
            if (sent.topic, sent.queue) != (topic, queue) {
                return Err(format!("in a wrong queue: {}", place()));
            }
            if sent.asked >= self.moment || sent.placed == Known::Nothing || offset >= sent.below {
                return Err(format!("never stored, and there: {}", place()));
            }
            if !seen.insert(number) {
                return Err(format!("twice or in parts: {}", place()));
            }
            // Only the first one may have begun before the start.
            let base = offset.checked_sub(first as u64);
            let base = base.filter(|base| *base >= next || next == found.start);
            let base = base.ok_or_else(|| format!("its batch does not begin with it: {}", place()))?;
            next = base + sent.values.len() as u64;
            let mut all = (base..).zip(&sent.values);
            let is_there = |(offset, expected): (u64, &String)| {
                let there = found.at(offset);
                offset < found.start || there == Some(expected) || keys.explain(offset, expected)
            };
            if !all.all(is_there) {
                return Err(format!("its batch is not whole: {}", place()));
            }
            // Whoever was answered before another asked stands before it.
            if let Known::There(at, _) = sent.placed {
                if at < last_asked {
                    return Err(format!(
                        "behind something that was sent after it was there: {}",
                        place()
                    ));
                }
                last_asked = last_asked.max(sent.asked);
            }
        }
        Ok(())
    }

    /// Every batch with a receipt that holds is at its offset, or below the start, or went for later messages
    /// of its key.
    fn acknowledged(&self, alive: &Alive<'_>, keys: &AllKeys<'_>) -> Result<(), String> {
        for sent in self.ledger.sent.values() {
            let Some((offset, durability)) = sent.placed.before(self.moment).there().copied() else {
                continue;
            };
            let Some(found) = alive.get(&sent.topic) else {
                // Deleted, or being deleted: looked at above.
                continue;
            };
            if self.death == Death::PowerCut && durability == Durability::Memory {
                continue;
            }
            let queue = found.queues.get(sent.queue as usize);
            let queue =
                queue.ok_or_else(|| format!("queue {} of topic {} is lost", sent.queue, sent.topic))?;
            self.holds(sent, offset, queue, &keys[&(sent.topic, sent.queue)])?;
        }
        Ok(())
    }

    fn holds(
        &self,
        sent: &Sent,
        offset: u64,
        found: &observed::Queue,
        keys: &Keys<'_>,
    ) -> Result<(), String> {
        for (offset, value) in (offset..).zip(&sent.values) {
            let is_there = offset < found.start || found.at(offset) == Some(value);
            if !is_there && !keys.explain(offset, value) {
                let name = &self.ledger.topics[sent.topic].name;
                return Err(format!(
                    "lost: `{value:.40}`, acknowledged at offset {offset} of queue {} of `{name}`; the queue has {} to {}",
                    sent.queue,
                    found.start,
                    found.end()
                ));
            }
        }
        Ok(())
    }

    /// As it was decided, and all of it or nothing.
    fn transaction(
        &self,
        number: usize,
        transaction: &Transaction,
        alive: &Alive<'_>,
        seen: &Seen,
    ) -> Result<(), String> {
        let key = &transaction.key;
        let said = |what: &str| Err(format!("transaction {number} (`{key}`) {what}"));
        let is_open = self.observed.open.contains_key(key);
        let parts = transaction.parts.iter();
        let is_visible = |part: &&usize| seen.contains(*part);
        let visible = parts.clone().filter(is_visible).count();
        // A part may have been deleted by now; in a queue that deleted nothing it would be seen.
        let mut missing = parts.filter(|part| {
            let Some(sent) = self.ledger.sent.get(*part) else {
                return false;
            };
            let queue = alive
                .get(&sent.topic)
                .map(|topic| &topic.queues[sent.queue as usize]);
            !seen.contains(*part) && queue.is_some_and(|queue| queue.start == 0)
        });
        let is_whole = missing.next().is_none();
        let is_asked = transaction.asked < self.moment && transaction.id != Known::Nothing;
        let is_there = transaction.id.before(self.moment).there().is_some();
        // Whether its end was asked for, and answered.
        let end = transaction.end.filter(|(asked, _)| *asked < self.moment);
        let end = end.map(|(_, answered)| answered.is_some_and(|at| at < self.moment));
        if visible > 0 && !(transaction.commits && end.is_some()) {
            return said("is visible and was not committed");
        }
        if visible > 0 && !is_whole {
            return said("is visible in parts");
        }
        if is_open && visible > 0 {
            return said("is open and visible");
        }
        match end {
            None if is_open && !is_asked => said("is open and nobody asked for it"),
            None if !is_open && is_there => said("is lost; it was open"),
            Some(true) if is_open => said("is open; it was decided"),
            Some(true) if transaction.commits && !is_whole => said("was committed and is lost"),
            Some(false) if transaction.commits && !is_open && !is_whole => {
                said("is neither open nor committed")
            }
            _ => Ok(()),
        }
    }

    fn open(&self) -> Result<(), String> {
        for (key, (id, messages)) in &self.observed.open {
            let known = self.ledger.transactions.iter().find(|known| known.key == *key);
            let known = known.ok_or_else(|| format!("the open transaction {id} (`{key}`) is invented"))?;
            if known.id.there().is_some_and(|known| known != id) {
                return Err(format!("the open transaction `{key}` has become {id}"));
            }
            let sent = known.parts.iter().filter_map(|part| self.ledger.sent.get(part));
            let sent: usize = sent.map(|sent| sent.values.len()).sum();
            if *messages != sent as u64 {
                return Err(format!(
                    "the open transaction `{key}` has {messages} messages of {sent}"
                ));
            }
        }
        Ok(())
    }

    fn groups(&self, alive: &Alive<'_>) -> Result<(), String> {
        for (name, found) in &self.observed.groups {
            let group = self.ledger.groups.get(name);
            let group = group.ok_or_else(|| format!("group `{name}` is invented"))?;
            let topic = alive.get(&group.topic);
            let topic = topic.ok_or_else(|| format!("group `{name}` has outlived its topic"))?;
            for (queue, cursor) in &found.cursors {
                let start = topic.queues[*queue as usize].start;
                self.cursor(name, group, *queue, (*cursor, start))?;
            }
        }
        for (name, group) in &self.ledger.groups {
            let is_expected =
                group.known.before(self.moment).there().is_some() && alive.contains_key(&group.topic);
            if is_expected && !self.observed.groups.contains_key(name) {
                return Err(format!("group `{name}` is lost"));
            }
        }
        Ok(())
    }

    fn cursor(&self, name: &str, group: &Group, queue: u32, found: (u64, u64)) -> Result<(), String> {
        let (cursor, start) = found;
        let progress = group.queues.get(&queue).cloned().unwrap_or_default();
        let most = progress.asked_before(self.moment).max(start);
        if cursor > most {
            return Err(format!(
                "group `{name}` is at {cursor} of queue {queue}, and asked for no more than {most}"
            ));
        }
        let least = progress.acked_before(self.moment);
        if self.death == Death::Killed && cursor < least {
            return Err(format!(
                "group `{name}` is at {cursor} of queue {queue}; everything before {least} was acknowledged"
            ));
        }
        Ok(())
    }
}
