//! After a restart nothing is pending: what was not answered happened or did not, and remains so.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::{Known, Ledger, now};
use super::observed::Observed;

/// Takes over what was found, which was compared with the ledger before, and forgets batches that can never
/// be asked about again: those of deleted topics, and those below the starts.
pub(crate) fn settle(ledger: &mut Ledger, observed: &Observed) {
    topics(ledger, observed);
    messages(ledger, observed);
    transactions(ledger, observed);
    groups(ledger, observed);
    forget(ledger, observed);
}

fn topics(ledger: &mut Ledger, observed: &Observed) {
    for topic in &mut ledger.topics {
        let found = observed.topics.get(&topic.name);
        match (topic.id, found) {
            (Known::Unknown, Some(found)) => topic.id = Known::There(now(), found.id),
            (Known::Unknown, None) => topic.id = Known::Nothing,
            _ => {}
        }
        let Some(id) = topic.id.there().copied() else {
            continue;
        };
        let found = found.filter(|found| found.id == id);
        match (found, topic.deletion) {
            (Some(_), _) => topic.deletion = None,
            (None, Some((asked, None))) => topic.deletion = Some((asked, Some(now()))),
            (None, _) => {}
        }
        if let Some(found) = found {
            for version in &mut topic.versions {
                if version.known == Known::Unknown {
                    let is_there = (version.number == 0 || found.version == version.number)
                        && found.settings == version.settings
                        && found.queues.len() == version.queues as usize;
                    version.known = if is_there {
                        Known::There(now(), ())
                    } else {
                        Known::Nothing
                    };
                }
            }
        }
    }
}

fn messages(ledger: &mut Ledger, observed: &Observed) {
    // Ends of queues that have holes.
    let mut compacted = BTreeMap::new();
    for found in observed.topics.values() {
        let Some(topic) = ledger
            .topics
            .iter()
            .rposition(|topic| topic.id.there() == Some(&found.id))
        else {
            continue;
        };
        let durability = ledger.topics[topic].durability;
        for (number, queue) in (0..).zip(&found.queues) {
            for (offset, value) in queue.messages() {
                let Some((number, _, first)) = ledger.batch_of(value) else {
                    continue;
                };
                let sent = ledger.sent.get_mut(&number).expect("it was just there");
                if sent.placed == Known::Unknown {
                    sent.placed = Known::There(now(), (offset - first as u64, durability));
                }
            }
            if queue.values.contains(&None) {
                compacted.insert((topic, number), queue.end());
            }
        }
    }
    for sent in ledger.sent.values_mut() {
        if sent.placed != Known::Unknown || sent.transaction.is_some() {
            continue;
        }
        match compacted.get(&(sent.topic, sent.queue)) {
            // It may lie in a hole, and come back when the pass that left it is undone.
            Some(end) => sent.below = sent.below.min(*end),
            // Not there, or already deleted: either way it cannot appear later.
            None => sent.placed = Known::Nothing,
        }
    }
}

fn transactions(ledger: &mut Ledger, observed: &Observed) {
    for transaction in &mut ledger.transactions {
        let open = observed.open.get(&transaction.key);
        match (&transaction.id, open) {
            (Known::Unknown, Some((id, _))) => transaction.id = Known::There(now(), id.clone()),
            (Known::Unknown, None) => transaction.id = Known::Nothing,
            _ => {}
        }
        match (transaction.end, open) {
            (Some((_, None)), Some(_)) => transaction.end = None,
            (Some((asked, None)), None) => transaction.end = Some((asked, Some(now()))),
            _ => {}
        }
        let is_over = transaction.end.is_some() || transaction.id == Known::Nothing;
        for part in transaction.parts.iter().filter(|_| is_over) {
            if let Some(sent) = ledger.sent.get_mut(part)
                && sent.placed == Known::Unknown
            {
                sent.placed = Known::Nothing;
            }
        }
    }
}

fn groups(ledger: &mut Ledger, observed: &Observed) {
    for (name, group) in &mut ledger.groups {
        let Some(found) = observed.groups.get(name) else {
            if group.known == Known::Unknown {
                group.known = Known::Nothing;
            }
            continue;
        };
        let is_new = group.known.there().is_none();
        if is_new {
            group.known = Known::There(now(), ());
        }
        for (queue, cursor) in &found.cursors {
            let progress = group.queues.entry(*queue).or_default();
            if is_new {
                progress.began = *cursor;
            }
            // What was asked and not answered has happened or not.
            progress.acked.push((now(), *cursor));
        }
    }
}

fn forget(ledger: &mut Ledger, observed: &Observed) {
    let mut gone = BTreeSet::new();
    for (number, topic) in ledger.topics.iter().enumerate() {
        let found = observed.topics.get(&topic.name);
        let found = found.filter(|found| topic.id.there() == Some(&found.id));
        let Some(found) = found else {
            gone.insert(number);
            continue;
        };
        for (queue, found) in (0..).zip(&found.queues) {
            ledger.starts.insert((number, queue), found.start);
        }
    }
    let starts = &ledger.starts;
    let is_over = |sent: &super::ledger::Sent| {
        let start = starts.get(&(sent.topic, sent.queue)).copied().unwrap_or_default();
        match sent.placed {
            _ if gone.contains(&sent.topic) => true,
            Known::There(_, (offset, _)) => offset + sent.values.len() as u64 <= start,
            Known::Unknown if sent.below <= start => true,
            // Kept: it must never appear. Transactions that are not decided yet are here, too.
            Known::Nothing | Known::Unknown => false,
        }
    };
    let over: Vec<usize> = ledger
        .sent
        .iter()
        .filter(|(_, sent)| is_over(sent))
        .map(|(number, _)| *number)
        .collect();
    for number in over {
        ledger.forget(number);
    }
}
