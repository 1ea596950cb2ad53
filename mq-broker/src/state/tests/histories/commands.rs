//! Random commands: most of them about things that exist, some about things that do not.

use super::*;

impl History {
    pub(super) fn command(&mut self) -> Command {
        match self.rng.u32(0..100) {
            0..30 => Command::Append(self.part()),
            30..36 => Command::CreateTopic(self.declaration()),
            36..40 => {
                let mut declaration = self.declaration();
                declaration.version = self.rng.u64(1..6);
                declaration.deleted = self.rng.u32(0..4) == 0;
                Command::AdoptTopic {
                    declaration,
                    drop_transactions: self.rng.bool(),
                }
            }
            40..42 => Command::DeleteTopic {
                name: self.topic(),
                drop_transactions: self.rng.bool(),
            },
            42..57 => Command::SendHalf(SendHalf {
                producer_group: group_name(["p", "q"][self.rng.usize(0..2)]),
                key: self.rng.bool().then(|| format!("key-{}", self.rng.u32(0..12))),
                check_after_ms: self.rng.u32(0..10_000),
                checksum: self.rng.u64(0..3),
                parts: (0..self.rng.usize(1..4)).map(|_| self.part()).collect(),
            }),
            57..72 => Command::EndTransaction {
                number: self.number(),
                decision: [Decision::Commit, Decision::Rollback, Decision::Unknown][self.rng.usize(0..3)],
            },
            72..74 => Command::ResumeTransaction {
                number: self.number(),
            },
            74..80 => Command::CountChecks {
                numbers: (0..self.rng.usize(0..3)).map(|_| self.number()).collect(),
            },
            80..82 => Command::AlterTopic(self.altered()),
            82..86 => Command::Trim {
                starts: (0..self.rng.usize(0..4))
                    .map(|_| (self.queue(), Offset(self.rng.u64(0..30))))
                    .collect(),
            },
            86..90 => Command::CreateGroup(CreateGroup {
                name: group_name(["g", "h", "i"][self.rng.usize(0..3)]),
                topic: self.topic(),
                mode: GroupMode::Stream,
                cursors: (0..self.rng.usize(0..3))
                    .map(|_| (self.queue(), Offset(self.rng.u64(0..20))))
                    .collect(),
            }),
            90..93 => {
                let number = self.number();
                let parts = self.state.transaction(number).map(|open| open.parts.clone());
                let parts = parts.unwrap_or_else(|| vec![self.part()]);
                Command::MoveHalf { number, parts }
            }
            _ => Command::Progress {
                acks: (0..self.rng.usize(0..4)).map(|_| self.ack()).collect(),
            },
        }
    }

    fn topic(&mut self) -> TopicName {
        topic_name(["s", "t", "u"][self.rng.usize(0..3)])
    }

    fn declaration(&mut self) -> Declaration {
        let first = if self.rng.u32(0..4) == 0 { "there" } else { "here" };
        let mut homes = vec![first];
        for _ in 0..self.rng.usize(0..4) {
            homes.push(["here", "there"][self.rng.usize(0..2)]);
        }
        let name = self.topic();
        let mut declaration = declaration(name.as_str(), self.rng.u64(1..4), &homes);
        if self.rng.u32(0..3) == 0 {
            declaration.settings = self.settings();
        }
        declaration
    }

    fn settings(&mut self) -> TopicSettings {
        let mut some = |max| self.rng.bool().then(|| self.rng.u64(1..max));
        let settings = TopicSettings {
            retention_ms: some(1000),
            retention_bytes: some(u64::MAX >> 2),
            hold_ms: some(1000).map(|ms| ms + 1000),
            message_bytes_max: some(1000).map(|bytes| u32::try_from(bytes).unwrap()),
            consumed: self.rng.bool(),
            compact: false,
        };
        TopicSettings {
            compact: !settings.consumed && self.rng.bool(),
            ..settings
        }
    }

    /// A change of a topic that is there, or of one that is not.
    fn altered(&mut self) -> Declaration {
        let name = self.topic();
        let known = self.state.topic(&name).map(|topic| topic.declaration.clone());
        let mut altered = known.unwrap_or_else(|| self.declaration());
        match self.rng.u32(0..4) {
            0 => altered.homes.push(0),
            1 => altered.version += 1,
            2 => drop(altered.homes.pop()),
            _ => {}
        }
        if altered.homes.is_empty() {
            altered.homes.push(0);
        }
        altered.settings = self.settings();
        altered
    }

    fn queue(&mut self) -> QueueKey {
        let live: Vec<QueueKey> = self.state.queues().map(|(key, _)| key).collect();
        if live.is_empty() || self.rng.u32(0..10) == 0 {
            return QueueKey(self.rng.u32(0..40));
        }
        live[self.rng.usize(0..live.len())]
    }

    fn part(&mut self) -> Part {
        let records = self.rng.u32(0..6);
        part(self.queue(), if records == 0 { 0 } else { records })
    }

    fn number(&mut self) -> TransactionNumber {
        let known: Vec<TransactionNumber> = self
            .model
            .open
            .keys()
            .chain(self.model.decided.keys().rev().take(4))
            .copied()
            .collect();
        if known.is_empty() || self.rng.u32(0..10) == 0 {
            return TransactionNumber(self.rng.u64(0..200));
        }
        known[self.rng.usize(0..known.len())]
    }

    fn ack(&mut self) -> Ack {
        Ack {
            group: GroupKey(self.rng.u32(0..6)),
            queue: self.queue(),
            next: Offset(self.rng.u64(0..30)),
        }
    }
}
