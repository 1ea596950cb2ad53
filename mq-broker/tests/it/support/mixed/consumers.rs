//! Members of consumer groups: they read, acknowledge some of it, and some of that twice or out of order.

use std::collections::BTreeMap;

use fastrand::Rng;
use mq_common::ErrorCode;
use mq_common::api::fetch::{FetchRequest, Want};
use mq_common::api::group::{Ack, AckRequest, Assigned, GroupMode, HeartbeatRequest, StartAt};
use mq_common::ids::{GroupName, MemberId, Offset, OwnerEpoch, QueueNumber, TopicName};

use super::ledger::{Group, Known, now};
use super::load::{Answer, Load, expect};
use super::value;
use crate::support::topic;

/// A group and one of its members.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader(pub(crate) &'static str, pub(crate) &'static str);

struct Member<'a> {
    load: &'a Load,
    group: GroupName,
    name: MemberId,
    topic: TopicName,
    number: usize,
    /// Its queues, and where it reads on.
    owned: BTreeMap<QueueNumber, (OwnerEpoch, Offset)>,
}

/// Makes a group that begins at the first message; `false` = the broker is gone.
pub(super) async fn join(load: &Load, group: &str, of: &str) -> bool {
    let mut member = Member::new(load, (group, "first"), of);
    member.beat().await && member.leave().await
}

/// Reads and acknowledges.
pub(super) async fn consume(load: Load, mut random: Rng, reader: Reader, of: &str) {
    let mut member = Member::new(&load, (reader.0, reader.1), of);
    while load.goes_on() {
        if !member.beat().await {
            return;
        }
        for _ in 0..10 {
            for queue in member.owned.keys().copied().collect::<Vec<_>>() {
                if !(member.read(queue).await && member.acknowledge(&mut random, queue).await) {
                    return;
                }
            }
            load.pause(&mut random, 0..20).await;
        }
    }
}

impl<'a> Member<'a> {
    fn new(load: &'a Load, (group, name): (&str, &str), of: &str) -> Self {
        let number = load.with(|ledger| ledger.alive(of));
        Self {
            load,
            group: GroupName::new(group).unwrap(),
            name: MemberId(name.to_owned()),
            topic: topic(of),
            number: number.expect("its topic is there"),
            owned: BTreeMap::new(),
        }
    }

    fn heartbeat(&self, leaving: bool) -> HeartbeatRequest {
        let owned = self.owned.iter().filter(|_| !leaving);
        HeartbeatRequest {
            group: self.group.clone(),
            member: self.name.clone(),
            topic: self.topic.clone(),
            mode: GroupMode::Stream,
            start: Some(StartAt::Earliest),
            owned: owned.map(|(queue, (epoch, _))| (*queue, *epoch)).collect(),
            leaving,
        }
    }

    /// Its queues are free again; `false` = the broker is gone.
    async fn leave(&self) -> bool {
        let call = self.load.client.group.heartbeat(self.heartbeat(true));
        let answer = self.load.answer(call.into_future()).await;
        !matches!(answer, Answer::NotSent | Answer::Unknown)
    }

    /// A heartbeat; the first one of all makes the group. `false` = the broker is gone.
    async fn beat(&mut self) -> bool {
        let name = self.group.to_string();
        self.load.with(|ledger| {
            let new = Group {
                topic: self.number,
                known: Known::Unknown,
                queues: BTreeMap::new(),
            };
            let group = ledger.groups.entry(name.clone()).or_insert(new);
            if group.known == Known::Nothing {
                group.known = Known::Unknown;
            }
        });
        let call = self.load.client.group.heartbeat(self.heartbeat(false));
        let response = match self.load.answer(call.into_future()).await {
            Answer::Done(response) => response,
            Answer::Refused(error) => {
                expect(&error, &[ErrorCode::NotMember, ErrorCode::UnknownGroup]);
                self.owned.clear();
                return true;
            }
            Answer::NotSent | Answer::Unknown => return false,
        };
        self.load.with(|ledger| {
            let group = ledger.groups.get_mut(&name).expect("just entered");
            if group.known == Known::Unknown {
                group.known = Known::There(now(), ());
                for assigned in &response.assigned {
                    group.queues.entry(assigned.queue.0).or_default().began = assigned.cursor.0;
                }
            }
        });
        let is_kept = |assigned: &&Assigned| !response.revoking.contains(&assigned.queue);
        let kept = response.assigned.iter().filter(is_kept).map(|assigned| {
            let known = self.owned.get(&assigned.queue);
            let known = known.filter(|(epoch, _)| *epoch == assigned.epoch);
            let at = known.map_or(assigned.cursor, |(_, at)| *at);
            (assigned.queue, (assigned.epoch, at))
        });
        self.owned = kept.collect();
        true
    }

    /// One fetch of a queue; `false` = the broker is gone.
    async fn read(&mut self, queue: QueueNumber) -> bool {
        let Some((epoch, offset)) = self.owned.get(&queue).copied() else {
            return true;
        };
        let request = FetchRequest {
            member: Some((self.group.clone(), self.name.clone())),
            wants: vec![Want {
                topic: self.topic.clone(),
                queue,
                offset,
                epoch: Some(epoch),
            }],
            bytes_max: 100_000,
            wait_ms: 5,
        };
        let read = match self.load.answer(self.load.client.fetch_as(request)).await {
            Answer::Done(read) => read,
            Answer::Refused(error) if error.code == ErrorCode::OffsetOutOfRange => {
                let (start, _) = error.range.expect("it says where to go on");
                self.owned.insert(queue, (epoch, Offset(start)));
                return true;
            }
            Answer::Refused(error) => {
                expect(&error, &[ErrorCode::NotMember, ErrorCode::Fenced]);
                self.owned.remove(&queue);
                return true;
            }
            Answer::NotSent | Answer::Unknown => return false,
        };
        assert_eq!(
            read.holes, read.compacted,
            "damage in queue {queue} of `{}`",
            self.topic
        );
        self.load.with(|ledger| {
            for message in read.messages {
                let offset = message.offset;
                let saw =
                    value::text(message).and_then(|text| ledger.saw(self.number, queue.0, offset, &text));
                saw.unwrap_or_else(|wrong| panic!("{wrong}"));
            }
        });
        self.owned.insert(queue, (epoch, read.next));
        true
    }

    /// Acknowledges up to somewhere before where it reads on, or nothing, or again; `false` = the broker is
    /// gone.
    async fn acknowledge(&mut self, random: &mut Rng, queue: QueueNumber) -> bool {
        let Some((epoch, at)) = self.owned.get(&queue).copied() else {
            return true;
        };
        let next = match random.u8(..6) {
            0 => return true,
            1 => at.0.saturating_sub(random.u64(..10)),
            _ => at.0,
        };
        let group = self.group.to_string();
        self.load.with(|ledger| {
            let group = ledger.groups.get_mut(&group).expect("it is a member");
            let progress = group.queues.entry(queue.0).or_default();
            progress.asked.push((now(), next));
        });
        let request = AckRequest {
            group: self.group.clone(),
            member: self.name.clone(),
            topic: self.topic.clone(),
            acks: vec![Ack {
                queue,
                epoch,
                next: Offset(next),
            }],
        };
        let times = if random.u8(..5) == 0 { 2 } else { 1 };
        for _ in 0..times {
            let call = self.load.client.group.ack(request.clone());
            let outcome = match self.load.answer(call.into_future()).await {
                Answer::Done(mut response) => response.outcomes.remove(0),
                Answer::Refused(error) => Err(error),
                Answer::NotSent | Answer::Unknown => return false,
            };
            match outcome {
                Ok(()) => self.load.with(|ledger| {
                    let group = ledger.groups.get_mut(&group).expect("it is a member");
                    let progress = group.queues.entry(queue.0).or_default();
                    progress.acked.push((now(), next));
                }),
                Err(error) => {
                    let codes = [
                        ErrorCode::NotMember,
                        ErrorCode::Fenced,
                        ErrorCode::OffsetOutOfRange,
                        ErrorCode::UnknownGroup,
                    ];
                    expect(&error, &codes);
                    self.owned.remove(&queue);
                }
            }
        }
        true
    }
}
