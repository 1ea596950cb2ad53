//! How the memory budget is divided among the parts of the broker.

use mq_common::units::show_bytes;

use super::Config;

/// Bytes of memory for each part. Their sum is below the budget: the remainder is for small uses (SQLite, a
/// round of compaction) and for what the system's allocator cannot use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// The newest batches of all queues.
    pub tail: usize,
    /// Commands that wait for the core, including those whose callers have disconnected.
    pub inbox: usize,
    /// Bodies of requests in progress.
    pub requests: usize,
    /// Read buffers of connections.
    pub reading: usize,
    /// Answers that wait to be written.
    pub backlog: usize,
    /// The part of `backlog` for answers to fetches, from the read until their last byte is written.
    pub answers: usize,
    /// The part of `answers` that one connection may take.
    pub connection: usize,
    /// The key table of a key compaction.
    pub keys: usize,
    /// The index of the journal's segment that is being written.
    pub rows: usize,
    /// Footers of the journal's segments.
    pub footers: usize,
    /// Indexes of queue files.
    pub marks: usize,
}

impl Config {
    /// The shares. What a part takes beyond its default share, by a setting of its own, is subtracted from
    /// the others.
    #[must_use]
    pub fn shares(&self) -> Shares {
        let budget = usize::try_from(self.memory.budget_bytes).unwrap_or(usize::MAX);
        let usual = budget / 8;
        let part = |set: usize, most: usize| if set == 0 { usual } else { most.min(set) };
        let tail = part(self.store.tail_bytes_max, budget / 2);
        let inbox = part(self.journal.inbox_bytes_max, budget / 4);
        let keys = match self.store.key_compaction_map_bytes {
            0 => budget / 32,
            set => set.min(budget / 8),
        };
        let rest = budget - tail - inbox - keys;
        Shares {
            tail,
            inbox,
            requests: rest / 4,
            reading: rest / 6,
            backlog: rest / 3,
            answers: rest / 4,
            connection: (rest / 12).clamp(1 << 20, 64 << 20),
            keys,
            rows: rest / 8,
            footers: (rest / 24).min(16 << 20),
            marks: (rest / 48).min(8 << 20),
        }
    }

    /// Refuses settings of parts that exceed their largest share of the budget.
    pub(super) fn check_shares(&self) -> Result<(), String> {
        let Shares {
            tail, inbox, keys, ..
        } = self.shares();
        for (key, set, most) in [
            ("store.tail_bytes_max", self.store.tail_bytes_max, tail),
            ("journal.inbox_bytes_max", self.journal.inbox_bytes_max, inbox),
            (
                "store.key_compaction_map_bytes",
                self.store.key_compaction_map_bytes,
                keys,
            ),
        ] {
            let shown = |bytes: usize| show_bytes(u64::try_from(bytes).unwrap_or(u64::MAX));
            if set > most {
                return Err(format!(
                    "`{key}` = {} is too large a part of `memory.budget_bytes` = {}: expected at most {}, or raise the budget",
                    shown(set),
                    show_bytes(self.memory.budget_bytes),
                    shown(most)
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Given, Source};

    fn config(given: &[(&str, u64)]) -> Result<Shares, crate::config::Error> {
        let given: Vec<_> = given
            .iter()
            .map(|(key, value)| Given {
                key: (*key).to_owned(),
                value: value.to_string(),
                source: Source::Flag,
            })
            .collect();
        Ok(Config::merge(&given)?.shares())
    }

    fn sum(shares: &Shares) -> usize {
        let Shares {
            tail,
            inbox,
            requests,
            reading,
            backlog,
            answers: _,
            connection: _,
            keys,
            rows,
            footers,
            marks,
        } = shares;
        tail + inbox + requests + reading + backlog + keys + rows + footers + marks
    }

    #[test]
    fn shares_keep_to_the_budget_whatever_a_part_is_set_to() {
        for budget in [64 << 20, 256 << 20, 512 << 20, 1 << 34] {
            for tail in [0, 1, 1 << 20, budget / 4, budget / 2] {
                for inbox in [0, 1, budget / 8] {
                    let shares = config(&[
                        ("memory.budget_bytes", budget),
                        ("store.tail_bytes_max", tail),
                        ("journal.inbox_bytes_max", inbox),
                    ]);
                    let shares = shares.unwrap();
                    assert!(sum(&shares) as u64 <= budget, "{shares:?} of {budget}");
                    assert!(shares.answers as u64 >= budget / 20, "{shares:?} of {budget}");
                }
            }
        }
    }

    #[test]
    fn part_beyond_its_most_is_refused_with_the_budget() {
        let error = config(&[("store.tail_bytes_max", 1 << 30)])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`store.tail_bytes_max` = 1GiB")
                && error.contains("= 512MiB: expected at most 256MiB"),
            "{error}"
        );
        assert_eq!(config(&[]).unwrap().tail, 64 << 20);
    }
}
