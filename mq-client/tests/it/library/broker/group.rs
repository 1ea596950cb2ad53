//! Its groups: queue q belongs to member q mod m, and moves when its owner has given it back.

use mq_common::api::group::{
    AckRequest, AckResponse, Assigned, Group, GroupDescription, GroupMode, HeartbeatRequest,
    HeartbeatResponse,
};
use mq_common::api::{Page, PageRequest};
use mq_common::ids::{GroupName, OwnerEpoch, Term, Timestamp, TopicName};
use mq_common::{Error, ErrorCode};

use super::Services;

/// When its groups were made.
pub(crate) const SINCE_MS: u64 = 1_000_000;

impl Group for Services {
    async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Error> {
        let mut state = self.0.lock();
        state.well()?;
        let state = &mut *state;
        let topic = state
            .topics
            .get(&request.topic)
            .ok_or_else(|| Error::new(ErrorCode::UnknownTopic, "none"))?;
        if request.group.as_str() == "refused" {
            return Err(Error::new(
                ErrorCode::SubscriptionMismatch,
                "the group has another topic",
            ));
        }
        if !request.leaving {
            state.starts.push(request.start);
        }
        if request.start.is_none() && !state.groups.contains_key(&request.group) {
            return Err(Error::new(ErrorCode::UnknownGroup, "not here"));
        }
        let group = state.groups.entry(request.group.clone()).or_default();
        let here = topic
            .queues
            .iter()
            .filter(|home| home.shard == self.0.name)
            .map(|home| home.queue);
        if request.leaving {
            group.alive.remove(&request.member);
            group.owners.retain(|_, (owner, _)| *owner != request.member);
        } else {
            group.alive.insert(request.member.clone());
        }
        let members: Vec<_> = group.alive.iter().cloned().collect();
        let mut revoking = Vec::new();
        for queue in here {
            let Some(target) = members.get(queue.0 as usize % members.len().max(1)) else {
                continue;
            };
            match group.owners.get(&queue) {
                Some((owner, epoch)) if owner == &request.member && owner != target => {
                    if request.owned.contains(&(queue, *epoch)) {
                        revoking.push(queue);
                    } else {
                        group.owners.remove(&queue);
                    }
                }
                Some(_) => {}
                None if *target == request.member => {
                    group.grants += 1;
                    let epoch = OwnerEpoch {
                        term: Term(1),
                        counter: group.grants,
                    };
                    group.owners.insert(queue, (request.member.clone(), epoch));
                }
                None => {}
            }
        }
        let mine = group
            .owners
            .iter()
            .filter(|(_, (owner, _))| *owner == request.member);
        let assigned = mine.map(|(&queue, &(_, epoch))| Assigned {
            queue,
            epoch,
            cursor: group.cursors.get(&queue).copied().unwrap_or_default(),
        });
        let response = HeartbeatResponse {
            assigned: assigned.collect(),
            revoking,
            members: u32::try_from(members.len()).unwrap(),
            since: Timestamp(SINCE_MS),
            heartbeat_ms: if state.seldom { 60_000 } else { 50 },
            session_ms: 5000,
        };
        self.0.changed.notify_waiters();
        Ok(response)
    }

    async fn ack(&self, request: AckRequest) -> Result<AckResponse, Error> {
        let mut state = self.0.lock();
        let mut outcomes = Vec::new();
        let refused = state.ack_codes.pop_front();
        let group = state.groups.entry(request.group).or_default();
        for ack in request.acks {
            if let Some(code) = refused {
                outcomes.push(Err(Error::new(code, "told to refuse")));
                continue;
            }
            let owner = group.owners.get(&ack.queue);
            if owner != Some(&(request.member.clone(), ack.epoch)) {
                outcomes.push(Err(Error::new(ErrorCode::Fenced, "not the owner")));
                continue;
            }
            let cursor = group.cursors.entry(ack.queue).or_default();
            *cursor = (*cursor).max(ack.next);
            outcomes.push(Ok(()));
        }
        self.0.changed.notify_waiters();
        Ok(AckResponse { outcomes })
    }

    /// Two groups a page.
    async fn list(&self, page: PageRequest<GroupName>) -> Result<Page<GroupDescription, GroupName>, Error> {
        let state = self.0.lock();
        let behind = state
            .groups
            .iter()
            .filter(|(name, _)| Some(*name) > page.after.as_ref());
        let described = behind.map(|(name, members)| GroupDescription {
            group: name.clone(),
            mode: GroupMode::Stream,
            topic: TopicName::new("t").unwrap(),
            members: members.alive.iter().cloned().collect(),
            queues: Vec::new(),
        });
        Ok(Page::cut(described, Some(2), |one| one.group.clone(), |_| 0))
    }

    async fn describe(&self, _: GroupName) -> Result<Vec<GroupDescription>, Error> {
        self.0.lock().well()?;
        Err(Error::new(ErrorCode::UnknownGroup, "none"))
    }
}
