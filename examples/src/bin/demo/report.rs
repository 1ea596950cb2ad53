//! The demo's final report: figures, losses, and the proof.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::Run;
use crate::ledger::{Arrival, Fate, Mode, quantile};
use crate::proof::{Claim, Evidence, claims};
use crate::publish::Publisher;
use crate::show::{self, grouped, time};
use crate::subscribe::GROUPS;

/// Measured times.
pub(crate) struct Timing {
    /// Kept alive, because the broker asks its listener about undecided transactions.
    pub(crate) _publisher: Arc<Publisher>,
    /// From the first send to the last answer.
    pub(crate) took: Duration,
    /// From the kill until the new broker was ready.
    pub(crate) down: Duration,
    /// When the new broker was ready.
    pub(crate) ready: Instant,
}

/// Lines that must arrive and have not, summed over the groups.
pub(crate) fn missing(run: &Run) -> usize {
    let fates = run.ledger.fates();
    let must: Vec<u32> = (0_u32..)
        .zip(&fates)
        .filter(|(_, fate)| matches!(fate, Fate::Acked { .. } | Fate::Committed))
        .map(|(line, _)| line)
        .collect();
    (0..GROUPS.len())
        .map(|group| {
            let seen = lines(&run.ledger.arrivals(group));
            must.iter().filter(|line| !seen.contains(line)).count()
        })
        .sum()
}

fn lines(arrivals: &[Arrival]) -> HashSet<u32> {
    arrivals.iter().filter_map(|arrival| arrival.line).collect()
}

/// Prints everything; returns whether all claims hold.
pub(crate) fn report(run: &Run, timing: &Timing, ends: &BTreeMap<u32, u64>, undecided: usize) -> bool {
    let fates = run.ledger.fates();
    let groups: Vec<(&'static str, Vec<Arrival>)> = GROUPS
        .iter()
        .enumerate()
        .map(|(group, (name, _))| (*name, run.ledger.arrivals(group)))
        .collect();
    let seen = groups
        .first()
        .map(|(_, arrivals)| lines(arrivals))
        .unwrap_or_default();

    show::heading("What was sent");
    modes(run, &fates, &seen);
    transactions(run);
    speed(run, timing, &fates, &groups);

    show::heading("The proof");
    let mut claims = claims(&Evidence {
        fates: &fates,
        sections: &run.input.sections,
        groups: &groups,
    });
    claims.push(read_to_the_end(ends, &groups));
    claims.push(all_decided(undecided));
    for claim in &claims {
        show::claim(&claim.text, &claim.exceptions);
    }
    let held = claims.iter().all(Claim::held);
    let verdict = if held {
        "All of it held: what was acknowledged survived the kill."
    } else {
        "Not all of it held: this is a defect."
    };
    show::verdict(held, verdict);
    held
}

fn modes(run: &Run, fates: &[Fate], seen: &HashSet<u32>) {
    let rows = Mode::ALL.map(|mode| {
        let of_mode: Vec<(u32, Fate)> = (0_u32..)
            .zip(fates)
            .zip(&run.input.sections)
            .filter(|(_, section)| Mode::of_section(**section) == mode)
            .map(|((line, fate), _)| (line, *fate))
            .collect();
        let count = |wanted: fn(Fate) -> bool| of_mode.iter().filter(|(_, fate)| wanted(*fate)).count();
        let arrived = |wanted: fn(Fate) -> bool| {
            of_mode
                .iter()
                .filter(|(line, fate)| wanted(*fate) && seen.contains(line))
                .count()
        };
        let handed = count(|fate| fate == Fate::Handed);
        let unknown = count(|fate| fate == Fate::Unknown);
        let unknown_arrived = arrived(|fate| fate == Fate::Unknown);
        vec![
            mode.name().to_owned(),
            grouped(of_mode.len()),
            grouped(count(|fate| matches!(fate, Fate::Acked { .. } | Fate::Committed))),
            grouped(count(|fate| fate == Fate::RolledBack)),
            grouped(count(|fate| matches!(fate, Fate::Refused | Fate::Unsent))),
            if unknown == 0 {
                "0".to_owned()
            } else {
                format!("{unknown} ({unknown_arrived} arrived)")
            },
            match mode {
                Mode::Oneway => grouped(handed - arrived(|fate| fate == Fate::Handed)),
                _ => "-".to_owned(),
            },
        ]
    });
    show::table(
        &[
            "mode",
            "lines",
            "acknowledged",
            "rolled back",
            "refused",
            "outcome unknown",
            "lost one way",
        ],
        &rows,
    );
    show::note(
        "Outcome unknown: the connection died between request and answer; the line may have arrived, and was never resent.",
    );
    show::note(
        "Lost one way: nobody promised anything for those, so they may be lost with the broker; they are counted here.",
    );
}

fn transactions(run: &Run) {
    let value = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    let counts = &run.counts;
    show::note(&format!(
        "Transactions: {} committed, {} rolled back, {} left undecided until the broker asked ({} asked).",
        value(&counts.committed),
        value(&counts.rolled_back),
        value(&counts.left),
        match value(&counts.asked) {
            1 => "one question".to_owned(),
            asked => format!("{asked} questions"),
        }
    ));
}

fn speed(run: &Run, timing: &Timing, fates: &[Fate], groups: &[(&'static str, Vec<Arrival>)]) {
    show::heading("How fast");
    let up = timing.took.saturating_sub(timing.down).as_secs_f64().max(1e-3);
    let sent = fates.iter().filter(|fate| **fate != Fate::Unsent).count();
    let waits = run.ledger.waits(&[Mode::Sync], &run.input.sections);
    let rate = grouped(
        (sent as f64 / up)
            .round()
            .max(0.0)
            .to_string()
            .parse()
            .unwrap_or(0),
    );
    show::fact(
        "publish",
        &format!("{rate} lines/s over all four modes while the broker was up"),
    );
    show::fact(
        "receipt",
        &format!(
            "p50 {}, p99 {} (sync sends: each one fsynced)",
            time(quantile(&waits, 500)),
            time(quantile(&waits, 990))
        ),
    );
    for (group, (name, arrivals)) in groups.iter().enumerate() {
        let ways = run
            .ledger
            .ways(group, &[Mode::Sync, Mode::Callback], &run.input.sections);
        let repeats = arrivals.len()
            - arrivals
                .iter()
                .map(|a| (a.queue, a.offset))
                .collect::<HashSet<_>>()
                .len();
        show::fact(
            name,
            &format!(
                "{} messages, {}; from send to handler p50 {}, p99 {} (the outage is in it)",
                grouped(arrivals.len()),
                match repeats {
                    0 => "each once".to_owned(),
                    repeats => format!("{repeats} of them a second time"),
                },
                time(quantile(&ways, 500)),
                time(quantile(&ways, 990))
            ),
        );
    }
    show::fact(
        "outage",
        &format!(
            "{} from the kill to the new broker's readiness; then the next message {}",
            time(timing.down),
            back_at_work(timing.ready, groups)
        ),
    );
}

/// How long after the new broker was ready each group had its next message.
fn back_at_work(ready: Instant, groups: &[(&'static str, Vec<Arrival>)]) -> String {
    let back = groups.iter().map(|(name, arrivals)| {
        let after = arrivals
            .iter()
            .map(|arrival| arrival.at)
            .filter(|at| *at >= ready);
        after.min().map_or_else(
            || format!("never in `{name}`"),
            |first| format!("after {} in `{name}`", time(first - ready)),
        )
    });
    back.collect::<Vec<_>>().join(", ")
}

/// Claims that all groups have read everything that the broker has.
fn read_to_the_end(ends: &BTreeMap<u32, u64>, groups: &[(&'static str, Vec<Arrival>)]) -> Claim {
    let total: u64 = ends.values().sum();
    let mut claim = Claim::new(format!(
        "both groups read every queue to its end ({} messages)",
        grouped_u64(total)
    ));
    for (name, arrivals) in groups {
        let mut read: BTreeMap<u32, u64> = BTreeMap::new();
        for arrival in arrivals {
            let next = read.entry(arrival.queue).or_default();
            *next = (*next).max(arrival.offset + 1);
        }
        for (queue, end) in ends {
            let read = read.get(queue).copied().unwrap_or(0);
            if read != *end {
                claim.except(format!(
                    "{name}: queue {queue} was read to {read}, its end is {end}"
                ));
            }
        }
    }
    claim
}

fn grouped_u64(number: u64) -> String {
    grouped(usize::try_from(number).unwrap_or(usize::MAX))
}

fn all_decided(undecided: usize) -> Claim {
    let mut claim = Claim::new("no transaction is left undecided".to_owned());
    if undecided > 0 {
        claim.except(format!("{undecided} are"));
    }
    claim
}
