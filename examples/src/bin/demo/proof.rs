//! The proof, line by line: a pure function of what the publishers and the consumers recorded.

use std::collections::{BTreeMap, HashMap};

use crate::ledger::{Arrival, Fate};
use crate::show::grouped;

/// One claim and whether it held.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// In words.
    pub(crate) text: String,
    /// The first few exceptions; empty if the claim holds.
    pub(crate) exceptions: Vec<String>,
}

/// Exceptions shown for one claim.
const EXCEPTIONS_MAX: usize = 5;

impl Claim {
    pub(crate) fn new(text: String) -> Self {
        Self {
            text,
            exceptions: Vec::new(),
        }
    }

    pub(crate) fn except(&mut self, exception: String) {
        match self.exceptions.len() {
            0..EXCEPTIONS_MAX => self.exceptions.push(exception),
            EXCEPTIONS_MAX => self.exceptions.push("and more".to_owned()),
            _ => {}
        }
    }

    /// Whether there is no exception.
    pub(crate) fn held(&self) -> bool {
        self.exceptions.is_empty()
    }
}

/// The records that the claims are checked against.
pub(crate) struct Evidence<'a> {
    /// The outcome of each line.
    pub(crate) fates: &'a [Fate],
    /// The section (and so the key) of each line.
    pub(crate) sections: &'a [u32],
    /// Each group's name and what arrived in it, in order.
    pub(crate) groups: &'a [(&'static str, Vec<Arrival>)],
}

/// All claims.
pub(crate) fn claims(evidence: &Evidence<'_>) -> Vec<Claim> {
    let mut claims = Vec::new();
    for (name, arrivals) in evidence.groups {
        claims.push(all_arrived(evidence, name, arrivals));
        claims.push(unchanged(evidence, name, arrivals));
        claims.push(in_order_per_queue(name, arrivals));
        claims.push(in_order_per_key(evidence, name, arrivals));
    }
    claims.push(nothing_invented(evidence));
    claims.push(stored_once(evidence));
    claims
}

fn all_arrived(evidence: &Evidence<'_>, name: &str, arrivals: &[Arrival]) -> Claim {
    let mut seen = vec![false; evidence.fates.len()];
    for line in arrivals.iter().filter_map(|arrival| arrival.line) {
        if let Some(seen) = seen.get_mut(line as usize) {
            *seen = true;
        }
    }
    let must = |fate: &Fate| matches!(fate, Fate::Acked { .. } | Fate::Committed);
    let count = evidence.fates.iter().filter(|fate| must(fate)).count();
    let mut claim = Claim::new(format!(
        "{name}: each of the {} acknowledged or committed lines arrived",
        grouped(count)
    ));
    for (line, (fate, seen)) in evidence.fates.iter().zip(&seen).enumerate() {
        if must(fate) && !seen {
            claim.except(format!("line {line} ({fate:?}) did not arrive"));
        }
    }
    claim
}

fn unchanged(evidence: &Evidence<'_>, name: &str, arrivals: &[Arrival]) -> Claim {
    let mut claim = Claim::new(format!("{name}: unchanged, and where the receipt said"));
    for arrival in arrivals {
        let place = (arrival.queue, arrival.offset);
        if !arrival.unchanged {
            claim.except(format!(
                "the message at {place:?} differs from line {:?}",
                arrival.line
            ));
        }
        let fate = arrival.line.and_then(|line| evidence.fates.get(line as usize));
        if let Some(Fate::Acked { queue, offset }) = fate
            && (*queue, *offset) != place
        {
            claim.except(format!(
                "line {:?} was acknowledged at {:?} but is at {place:?}",
                arrival.line,
                (queue, offset)
            ));
        }
    }
    claim
}

/// Every message of the topic is ours and offsets are dense, so what arrives for the first time in a queue
/// must be 0, 1, 2, ...: a gap would be a loss, a step back a reordering. A repeated offset is allowed: its
/// ack was in flight when the broker was killed.
fn in_order_per_queue(name: &str, arrivals: &[Arrival]) -> Claim {
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    let mut claim = Claim::new(format!("{name}: every queue in order and without a gap"));
    for arrival in arrivals {
        let next = next.entry(arrival.queue).or_default();
        if arrival.offset > *next {
            claim.except(format!(
                "queue {}: offset {} came before {next}",
                arrival.queue, arrival.offset
            ));
        }
        *next = (*next).max(arrival.offset + 1);
    }
    claim
}

/// Lines of one key come in the order of the text. This holds for transactions too, because one transaction
/// is one whole section, and a section is one key.
fn in_order_per_key(evidence: &Evidence<'_>, name: &str, arrivals: &[Arrival]) -> Claim {
    let mut claim = Claim::new(format!(
        "{name}: the lines of each key in the order they were sent"
    ));
    let mut last: HashMap<u32, (u32, u64)> = HashMap::new();
    let mut first_time: Vec<&Arrival> = arrivals.iter().collect();
    first_time.sort_by_key(|arrival| (arrival.queue, arrival.offset));
    first_time.dedup_by_key(|arrival| (arrival.queue, arrival.offset));
    for arrival in first_time {
        let Some(line) = arrival.line else { continue };
        let Some(section) = evidence.sections.get(line as usize) else {
            continue;
        };
        if let Some((before, _)) = last.insert(*section, (line, arrival.offset))
            && before >= line
        {
            claim.except(format!("key {section}: line {line} comes after line {before}"));
        }
    }
    claim
}

fn nothing_invented(evidence: &Evidence<'_>) -> Claim {
    let mut claim = Claim::new(
        "no message was invented; no line that was rolled back or refused became visible".to_owned(),
    );
    for (name, arrivals) in evidence.groups {
        for arrival in arrivals {
            let fate = arrival.line.and_then(|line| evidence.fates.get(line as usize));
            match fate {
                None => claim.except(format!(
                    "{name}: the message at {:?} is no line",
                    (arrival.queue, arrival.offset)
                )),
                Some(Fate::Unsent | Fate::RolledBack | Fate::Refused) => {
                    claim.except(format!(
                        "{name}: line {:?} arrived although {fate:?}",
                        arrival.line
                    ));
                }
                Some(_) => {}
            }
        }
    }
    claim
}

fn stored_once(evidence: &Evidence<'_>) -> Claim {
    let mut claim = Claim::new(
        "no line is stored twice, and all groups received the same message at each offset".to_owned(),
    );
    let mut place_of: HashMap<u32, (u32, u64)> = HashMap::new();
    let mut line_at: HashMap<(u32, u64), u32> = HashMap::new();
    for (name, arrivals) in evidence.groups {
        for arrival in arrivals {
            let Some(line) = arrival.line else { continue };
            let place = (arrival.queue, arrival.offset);
            let (first_place, first_line) = (
                *place_of.entry(line).or_insert(place),
                *line_at.entry(place).or_insert(line),
            );
            if first_place != place || first_line != line {
                claim.except(format!(
                    "{name}: line {line} at {place:?}, but {first_line} and {first_place:?} before"
                ));
            }
        }
    }
    claim
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn arrival(line: u32, queue: u32, offset: u64) -> Arrival {
        Arrival {
            line: Some(line),
            unchanged: true,
            queue,
            offset,
            at: Instant::now(),
        }
    }

    fn exceptions(fates: &[Fate], arrivals: Vec<Arrival>) -> Vec<String> {
        let sections: Vec<u32> = fates.iter().map(|_| 0).collect();
        let groups = [("g", arrivals)];
        let claims = claims(&Evidence {
            fates,
            sections: &sections,
            groups: &groups,
        });
        claims.into_iter().flat_map(|claim| claim.exceptions).collect()
    }

    const fn acked(offset: u64) -> Fate {
        Fate::Acked { queue: 0, offset }
    }

    #[test]
    fn a_run_without_fault_holds() {
        let fates = [
            acked(0),
            acked(1),
            Fate::Handed,
            Fate::Unknown,
            Fate::RolledBack,
            Fate::Committed,
        ];
        let arrivals = vec![
            arrival(0, 0, 0),
            arrival(1, 0, 1),
            arrival(3, 0, 2),
            arrival(5, 0, 3),
        ];
        assert_eq!(exceptions(&fates, arrivals), Vec::<String>::new());
    }

    #[test]
    fn a_repeated_delivery_holds() {
        let arrivals = vec![
            arrival(0, 0, 0),
            arrival(1, 0, 1),
            arrival(0, 0, 0),
            arrival(1, 0, 1),
        ];
        assert_eq!(exceptions(&[acked(0), acked(1)], arrivals), Vec::<String>::new());
    }

    #[test]
    fn a_lost_line_is_found() {
        assert_eq!(
            exceptions(&[acked(0), Fate::Committed], vec![arrival(0, 0, 0)]).len(),
            1
        );
    }

    #[test]
    fn a_changed_line_is_found() {
        let changed = Arrival {
            unchanged: false,
            ..arrival(0, 0, 0)
        };
        assert_eq!(exceptions(&[acked(0)], vec![changed]).len(), 1);
    }

    #[test]
    fn a_gap_and_a_step_back_are_found() {
        let fates = [acked(0), acked(1)];
        assert!(!exceptions(&fates, vec![arrival(1, 0, 1), arrival(0, 0, 0)]).is_empty());
    }

    #[test]
    fn lines_of_a_key_out_of_order_are_found() {
        let fates = [acked(1), acked(0)];
        assert!(!exceptions(&fates, vec![arrival(1, 0, 0), arrival(0, 0, 1)]).is_empty());
    }

    #[test]
    fn rolled_back_and_foreign_lines_are_found() {
        assert_eq!(exceptions(&[Fate::RolledBack], vec![arrival(0, 0, 0)]).len(), 1);
        assert_eq!(exceptions(&[], vec![arrival(7, 0, 0)]).len(), 1);
    }

    #[test]
    fn a_line_stored_twice_is_found() {
        let fates = [Fate::Unknown];
        assert!(!exceptions(&fates, vec![arrival(0, 0, 0), arrival(0, 0, 1)]).is_empty());
    }
}
