//! The members of `stream` groups on this broker: which are alive, and which queues they own with which
//! epoch. Pure.
//!
//! The one invariant: a queue has one owner at a time, and each grant has a higher epoch than all before it,
//! within one run of the broker (counter) and across restarts (term). So a member with an older epoch is
//! refused.
//!
//! A queue changes its owner in two phases: it is revoked, and granted again when the owner's heartbeat no
//! longer names it, when the owner's session ends, or after 30 s. Nothing happens between heartbeats; they
//! also advance the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mq_common::api::group::{Ack, Assigned, GroupMode, HeartbeatRequest, HeartbeatResponse};
use mq_common::ids::{GroupName, MemberId, Offset, OwnerEpoch, QueueNumber, Term, Timestamp, TopicName};
use mq_common::limits::NAME_BYTES_MAX;

use super::assign::{Holding, plan};
use super::refused::Refused;
use crate::ids::{GroupKey, QueueKey};
use crate::state::{State, command};

/// How long members and revocations last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// A member should send a heartbeat this often.
    pub heartbeat: Duration,
    /// And this often while queues are changing hands.
    pub heartbeat_hurried: Duration,
    /// Without a heartbeat for this long, a member is considered dead.
    pub session: Duration,
    /// A queue that is not given back this long after its revocation is taken away.
    pub revoke: Duration,
    /// Members of a group on this broker at most.
    pub members_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(3),
            heartbeat_hurried: Duration::from_millis(500),
            session: Duration::from_secs(12),
            revoke: Duration::from_secs(30),
            members_max: 10_000,
        }
    }
}

/// A group as the state knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Its key.
    pub key: GroupKey,
    /// Its name.
    pub name: GroupName,
    /// Its topic.
    pub topic: TopicName,
    /// Its mode.
    pub mode: GroupMode,
    /// When it was created.
    pub since: Timestamp,
    /// Queues of the topic on the shards that come before this one in the declared list.
    pub first_place: usize,
    /// Its queues on this shard with its cursors, in order of the numbers.
    pub queues: Vec<(QueueNumber, QueueKey, Offset)>,
}

impl Subscription {
    /// Reads it from the state; `None` if there is no such group.
    #[must_use]
    pub fn of(state: &State, key: GroupKey) -> Option<Self> {
        let group = state.group(key)?;
        let topic = state.topic(&group.topic)?;
        let queues = topic
            .here
            .iter()
            .filter_map(|(number, queue)| Some((*number, *queue, group.cursor(*queue)?)));
        Some(Self {
            key,
            name: group.name.clone(),
            topic: group.topic.clone(),
            mode: group.mode,
            since: group.since,
            first_place: topic.declaration.queues_before(state.shard()),
            queues: queues.collect(),
        })
    }
}

/// All groups with their members.
#[derive(Debug)]
pub struct Members {
    settings: Settings,
    term: Term,
    grants: u64,
    groups: BTreeMap<GroupName, Live>,
    names: BTreeMap<GroupKey, GroupName>,
}

#[derive(Debug)]
struct Live {
    subscription: Subscription,
    /// For each queue of the subscription.
    owners: Vec<Option<Owner>>,
    /// When each last sent a heartbeat.
    members: BTreeMap<MemberId, Instant>,
}

#[derive(Debug)]
struct Owner {
    member: MemberId,
    epoch: OwnerEpoch,
    /// First offset that was not delivered to it.
    delivered: Offset,
    /// The queue was revoked: it has until then to give it back.
    give_back_until: Option<Instant>,
}

impl Members {
    /// No groups yet. `term` is that of the log, higher after every start.
    #[must_use]
    pub const fn new(term: Term, settings: Settings) -> Self {
        Self {
            settings,
            term,
            grants: 0,
            groups: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }

    /// All groups of a state, without members.
    #[must_use]
    pub fn from_state(state: &State, term: Term, settings: Settings) -> Self {
        let mut members = Self::new(term, settings);
        for (key, _) in state.groups() {
            if let Some(subscription) = Subscription::of(state, key) {
                members.put(subscription);
            }
        }
        members
    }

    /// A group is new, or its topic got more queues.
    pub fn put(&mut self, subscription: Subscription) {
        debug_assert!(
            subscription
                .queues
                .is_sorted_by(|left, right| left.0 < right.0 && left.1 < right.1),
            "queues and their keys rise together"
        );
        self.names.insert(subscription.key, subscription.name.clone());
        let live = self
            .groups
            .entry(subscription.name.clone())
            .or_insert_with(|| Live {
                subscription: subscription.clone(),
                owners: Vec::new(),
                members: BTreeMap::new(),
            });
        // Queues are only ever added after the existing ones.
        live.owners.resize_with(subscription.queues.len(), || None);
        live.subscription = subscription;
    }

    /// A group is gone.
    pub fn delete(&mut self, key: GroupKey) {
        if let Some(name) = self.names.remove(&key) {
            self.groups.remove(&name);
        }
    }

    /// A cursor moved.
    pub fn progress(&mut self, key: GroupKey, queue: QueueKey, next: Offset) {
        let Some(live) = self.names.get(&key).and_then(|name| self.groups.get_mut(name)) else {
            return;
        };
        // Keys rise with the numbers: queues are made in order, and later ones have higher numbers.
        let queues = &mut live.subscription.queues;
        if let Ok(index) = queues.binary_search_by_key(&queue, |(_, key, _)| *key) {
            queues[index].2 = next;
        }
    }

    /// A member joins, stays, gives queues back, or leaves.
    ///
    /// # Errors
    /// [`Refused::UnknownGroup`]: make the group, then call again. The others go to the member.
    pub fn heartbeat(
        &mut self,
        now: Instant,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatResponse, Refused> {
        let settings = self.settings;
        let live = self
            .groups
            .get_mut(&request.group)
            .ok_or_else(|| Refused::UnknownGroup(request.group.clone()))?;
        live.check_subscription(&request.topic, request.mode)?;
        live.expire(now, &settings);
        if request.leaving {
            live.members.remove(&request.member);
            live.free(|owner| owner.member == request.member);
        } else {
            live.join(now, request, &settings)?;
            live.take_back(request);
        }
        let term = self.term;
        let grants = &mut self.grants;
        live.rebalance(now, &settings, || {
            let counter = *grants;
            *grants += 1;
            OwnerEpoch { term, counter }
        });
        Ok(live.answer(&request.member, &settings))
    }

    /// Whether a member may read on in a queue of the group's topic.
    ///
    /// # Errors
    /// [`Refused::NotMember`], [`Refused::Fenced`], the group or queue is unknown, or [`Refused::Mismatch`]
    /// with another topic: what is read there must not count as delivered here.
    pub fn check(
        &self,
        now: Instant,
        group: &GroupName,
        member: &MemberId,
        (topic, queue): (&TopicName, QueueNumber),
        epoch: OwnerEpoch,
    ) -> Result<(), Refused> {
        let live = self.live(group)?;
        live.check_subscription(topic, live.subscription.mode)?;
        live.owner(now, &self.settings, member, queue, epoch).map(|_| ())
    }

    /// The owner of this epoch gets messages up to `next`: call it before they are sent.
    pub fn delivered(&mut self, group: &GroupName, queue: QueueNumber, epoch: OwnerEpoch, next: Offset) {
        let Some(live) = self.groups.get_mut(group) else {
            return;
        };
        let Some(index) = live.index(queue) else { return };
        if let Some(owner) = live.owners[index].as_mut().filter(|owner| owner.epoch == epoch) {
            owner.delivered = owner.delivered.max(next);
        }
    }

    /// Whether a member may say that it is done with everything below `ack.next`; and if so, what to log.
    ///
    /// # Errors
    /// As [`Self::check`]; [`Refused::BeyondDelivered`]; [`Refused::Mismatch`] with another topic than the
    /// group's.
    pub fn ack(
        &self,
        now: Instant,
        group: &GroupName,
        topic: &TopicName,
        member: &MemberId,
        ack: &Ack,
    ) -> Result<command::Ack, Refused> {
        let live = self.live(group)?;
        live.check_subscription(topic, live.subscription.mode)?;
        let (index, owner) = live.owner(now, &self.settings, member, ack.queue, ack.epoch)?;
        let (_, queue, cursor) = live.subscription.queues[index];
        if ack.next > owner.delivered {
            return Err(Refused::BeyondDelivered {
                queue: ack.queue,
                next: ack.next,
                cursor,
                delivered: owner.delivered,
            });
        }
        Ok(command::Ack {
            group: live.subscription.key,
            queue,
            next: ack.next,
        })
    }

    /// The live members of a group, sorted.
    #[must_use]
    pub fn members_of(&self, now: Instant, group: &GroupName) -> Vec<MemberId> {
        let Some(live) = self.groups.get(group) else {
            return Vec::new();
        };
        let members = live.members.keys();
        members
            .filter(|member| live.lives(now, &self.settings, member))
            .cloned()
            .collect()
    }

    /// The owner of a queue; no member whose session is over, or that had to give the queue back by now. This
    /// is checked here and not only at the next heartbeat, because the last member may have died and there
    /// may be none.
    #[must_use]
    pub fn owner_of(&self, now: Instant, group: &GroupName, queue: QueueNumber) -> Option<&MemberId> {
        let live = self.groups.get(group)?;
        let owner = live.owners[live.index(queue)?].as_ref()?;
        let holds = live.lives(now, &self.settings, &owner.member) && owner.holds(now);
        holds.then_some(&owner.member)
    }

    fn live(&self, group: &GroupName) -> Result<&Live, Refused> {
        self.groups
            .get(group)
            .ok_or_else(|| Refused::UnknownGroup(group.clone()))
    }
}

impl Owner {
    /// Whether the queue was not revoked, or there is still time to give it back.
    fn holds(&self, now: Instant) -> bool {
        self.give_back_until.is_none_or(|until| now < until)
    }
}

impl Live {
    fn check_subscription(&self, topic: &TopicName, mode: GroupMode) -> Result<(), Refused> {
        let own = &self.subscription;
        if own.topic == *topic && own.mode == mode {
            return Ok(());
        }
        Err(Refused::Mismatch {
            group: own.name.clone(),
            topic: own.topic.clone(),
            mode: own.mode,
            member_topic: topic.clone(),
            member_mode: mode,
        })
    }

    fn lives(&self, now: Instant, settings: &Settings, member: &MemberId) -> bool {
        let seen = self.members.get(member);
        seen.is_some_and(|seen| now.saturating_duration_since(*seen) < settings.session)
    }

    fn index(&self, queue: QueueNumber) -> Option<usize> {
        self.subscription
            .queues
            .binary_search_by_key(&queue, |(number, ..)| *number)
            .ok()
    }

    fn owner(
        &self,
        now: Instant,
        settings: &Settings,
        member: &MemberId,
        queue: QueueNumber,
        epoch: OwnerEpoch,
    ) -> Result<(usize, &Owner), Refused> {
        let group = &self.subscription.name;
        if !self.lives(now, settings, member) {
            return Err(Refused::NotMember {
                group: group.clone(),
                member: member.clone(),
            });
        }
        let index = self.index(queue).ok_or_else(|| Refused::UnknownQueue {
            group: group.clone(),
            queue,
        })?;
        self.owners[index]
            .as_ref()
            .filter(|owner| owner.member == *member && owner.epoch == epoch)
            .filter(|owner| owner.holds(now))
            .map(|owner| (index, owner))
            .ok_or(Refused::Fenced { queue, epoch })
    }

    fn expire(&mut self, now: Instant, settings: &Settings) {
        self.members
            .retain(|_, seen| now.saturating_duration_since(*seen) < settings.session);
        let members = &self.members;
        for slot in &mut self.owners {
            let over = slot.as_ref().is_some_and(|owner| {
                !members.contains_key(&owner.member)
                    || owner.give_back_until.is_some_and(|until| now >= until)
            });
            if over {
                *slot = None;
            }
        }
    }

    fn free(&mut self, over: impl Fn(&Owner) -> bool) {
        for slot in &mut self.owners {
            if slot.as_ref().is_some_and(&over) {
                *slot = None;
            }
        }
    }

    fn join(&mut self, now: Instant, request: &HeartbeatRequest, settings: &Settings) -> Result<(), Refused> {
        let length = request.member.0.len();
        if length == 0 || length > NAME_BYTES_MAX {
            return Err(Refused::InvalidMember(length));
        }
        let members = self.members.len();
        if members >= settings.members_max && !self.members.contains_key(&request.member) {
            return Err(Refused::Full {
                group: request.group.clone(),
                members,
            });
        }
        self.members.insert(request.member.clone(), now);
        Ok(())
    }

    /// Frees the queues that were revoked and that the member no longer names.
    fn take_back(&mut self, request: &HeartbeatRequest) {
        let named: BTreeSet<_> = request.owned.iter().copied().collect();
        for ((number, ..), slot) in self.subscription.queues.iter().zip(&mut self.owners) {
            let given_back = slot.as_ref().is_some_and(|owner| {
                owner.member == request.member
                    && owner.give_back_until.is_some()
                    && !named.contains(&(*number, owner.epoch))
            });
            if given_back {
                *slot = None;
            }
        }
    }

    fn rebalance(&mut self, now: Instant, settings: &Settings, mut next_epoch: impl FnMut() -> OwnerEpoch) {
        let members: Vec<&MemberId> = self.members.keys().collect();
        let holdings: Vec<Holding> = self
            .owners
            .iter()
            .map(|owner| match owner {
                None => Holding::Free,
                Some(owner) if owner.give_back_until.is_some() => Holding::Revoking,
                Some(owner) => members
                    .binary_search(&&owner.member)
                    .map_or(Holding::Free, Holding::Owned),
            })
            .collect();
        let plan = plan(self.subscription.first_place, &holdings, members.len());
        for queue in plan.revoke {
            if let Some(owner) = &mut self.owners[queue] {
                owner.give_back_until = Some(now + settings.revoke);
            }
        }
        for (queue, member) in plan.grant {
            let (_, _, cursor) = self.subscription.queues[queue];
            self.owners[queue] = Some(Owner {
                member: members[member].clone(),
                epoch: next_epoch(),
                delivered: cursor,
                give_back_until: None,
            });
        }
    }

    fn answer(&self, member: &MemberId, settings: &Settings) -> HeartbeatResponse {
        let mut assigned = Vec::new();
        let mut revoking = Vec::new();
        let mut changing = false;
        for ((number, _, cursor), slot) in self.subscription.queues.iter().zip(&self.owners) {
            let Some(owner) = slot else { continue };
            changing |= owner.give_back_until.is_some();
            if owner.member == *member {
                assigned.push(Assigned {
                    queue: *number,
                    epoch: owner.epoch,
                    cursor: *cursor,
                });
                if owner.give_back_until.is_some() {
                    revoking.push(*number);
                }
            }
        }
        let heartbeat = if changing {
            settings.heartbeat_hurried
        } else {
            settings.heartbeat
        };
        HeartbeatResponse {
            assigned,
            revoking,
            since: self.subscription.since,
            members: u32::try_from(self.members.len()).unwrap_or(u32::MAX),
            heartbeat_ms: u32::try_from(heartbeat.as_millis()).unwrap_or(u32::MAX),
            session_ms: u32::try_from(settings.session.as_millis()).unwrap_or(u32::MAX),
        }
    }
}
