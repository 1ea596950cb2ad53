//! Whether a queue's start is where its topic's settings may have moved it. Pure.

use super::ledger::{Ledger, Time};
use super::observed::Queue;

/// Most bytes that a stored batch of one message needs in addition to its value.
const OVERHEAD_BYTES: u64 = 130;

/// Whether any of the settings that the topic had until `moment` lets everything below the start go. What was
/// found right before stays so.
pub(crate) fn is_explained(ledger: &Ledger, queue: (usize, u32), found: &Queue, moment: Time) -> bool {
    let known = ledger.starts.get(&queue).copied().unwrap_or_default();
    if found.start <= known {
        return true;
    }
    let versions = ledger.topics[queue.0].versions.iter();
    let mut asked = versions.filter(|version| version.asked < moment);
    let age_ms = age_ms(ledger, queue, found.start, moment);
    let is_older = |ms: u64| age_ms.is_none_or(|age| age + age / 50 + 20 >= ms);
    let kept = found.messages().map(|(_, value)| value);
    let kept = kept.chain(compacted(ledger, queue, found));
    let kept: u64 = kept.map(|value| value.len() as u64 + OVERHEAD_BYTES).sum();
    let consumed = consumed(ledger, queue, moment);
    let is_consumed = consumed.is_some_and(|consumed| found.start <= consumed);
    asked.any(|version| {
        let settings = &version.settings;
        let is_old = settings.retention_ms.is_some_and(is_older);
        let is_far = settings.retention_bytes.is_some_and(|bytes| kept >= bytes);
        let is_free = settings
            .hold_ms
            .is_none_or(|ceiling| consumed.is_none() || is_consumed || is_older(ceiling));
        ((is_old || is_far) && is_free) || (settings.consumed && is_consumed)
    })
}

/// What went for later messages of its key, perhaps only since the start moved.
fn compacted<'a>(ledger: &'a Ledger, queue: (usize, u32), found: &'a Queue) -> impl Iterator<Item = &'a str> {
    let sent = ledger.sent.values();
    let sent = sent.filter(move |sent| (sent.topic, sent.queue) == queue);
    sent.flat_map(move |sent| {
        let base = sent.placed.there().map(|(offset, _)| *offset);
        let placed = base.map(|base| (base..).zip(&sent.values)).into_iter().flatten();
        placed.filter_map(|(offset, value)| found.is_compacted(offset).then_some(value.as_str()))
    })
}

/// How old the last message below the start is at most, by the ledger; `None` = it knows none.
fn age_ms(ledger: &Ledger, queue: (usize, u32), start: u64, moment: Time) -> Option<u64> {
    let below = ledger.sent.values().filter_map(|sent| {
        let (offset, _) = sent.placed.there()?;
        let is_below = (sent.topic, sent.queue) == queue && *offset < start;
        is_below.then_some((*offset, sent.asked))
    });
    let (_, asked) = below.max()?;
    Some(moment.saturating_sub(asked) / 1_000_000)
}

/// Behind what every group has asked to be done with; `None` = there is no group.
fn consumed(ledger: &Ledger, (topic, queue): (usize, u32), moment: Time) -> Option<u64> {
    let groups = ledger.groups.values().filter(|group| group.topic == topic);
    let known = groups.filter(|group| group.known.before(moment).there().is_some());
    let progress = known.map(|group| {
        let progress = group.queues.get(&queue);
        progress.map_or(0, |progress| progress.asked_before(moment))
    });
    progress.min()
}
