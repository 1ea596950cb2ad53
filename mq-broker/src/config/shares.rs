//! What each part of the broker gets of the memory's budget.

use super::Config;

/// Bytes of memory for each part. Together they are the budget, but for a part of it that is left to what is small: SQLite,
/// a round of compaction, what the system's allocator cannot use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// The newest batches of all queues.
    pub tail: usize,
    /// Commands that wait for the core, also those whose callers have gone away.
    pub inbox: usize,
    /// Bodies of requests that are worked on.
    pub requests: usize,
    /// Buffers that connections are read into.
    pub reading: usize,
    /// Answers that wait to be written.
    pub backlog: usize,
    /// Of that, answers to fetches, from the read until their last byte is written.
    pub answers: usize,
    /// Of that, the answers of one connection.
    pub connection: usize,
    /// Keys that a compaction by keys remembers.
    pub keys: usize,
    /// Footers of the journal's segments.
    pub footers: usize,
    /// Indexes of queue files.
    pub marks: usize,
}

impl Config {
    /// The shares. What the parts with settings of their own take beyond their usual goes off the others.
    #[must_use]
    pub fn shares(&self) -> Shares {
        let budget = usize::try_from(self.memory.budget_bytes).unwrap_or(usize::MAX);
        let usual = budget / 8;
        let part = |set: usize, most: usize| if set == 0 { usual } else { most.min(set) };
        let tail = part(self.store.tail_bytes_max, budget / 2);
        let inbox = part(self.journal.inbox_bytes_max, budget / 4);
        let keys = match self.store.compact_map_bytes {
            0 => budget / 32,
            set => set.min(budget / 8),
        };
        let rest = budget - tail - inbox - keys;
        Shares {
            tail,
            inbox,
            requests: rest / 3,
            reading: rest / 6,
            backlog: rest / 3,
            answers: rest / 4,
            connection: (rest / 12).clamp(1 << 20, 64 << 20),
            keys,
            footers: (rest / 24).min(16 << 20),
            marks: (rest / 48).min(8 << 20),
        }
    }

    /// Why the settings of parts do not go with the budget, if they do not.
    pub(super) fn check_shares(&self) -> Result<(), String> {
        let Shares {
            tail, inbox, keys, ..
        } = self.shares();
        for (key, set, most) in [
            ("store.tail_bytes_max", self.store.tail_bytes_max, tail),
            ("journal.inbox_bytes_max", self.journal.inbox_bytes_max, inbox),
            ("store.compact_map_bytes", self.store.compact_map_bytes, keys),
        ] {
            if set > most {
                return Err(format!(
                    "`{key}` = {set} is too large a part of `memory.budget_bytes` = {}: {most} at most, or raise the budget",
                    self.memory.budget_bytes
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
            footers,
            marks,
        } = shares;
        tail + inbox + requests + reading + backlog + keys + footers + marks
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
            error.contains("`store.tail_bytes_max` = 1073741824") && error.contains("536870912"),
            "{error}"
        );
        assert_eq!(config(&[]).unwrap().tail, 64 << 20);
    }
}
