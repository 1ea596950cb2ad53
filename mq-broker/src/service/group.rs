//! Consumer groups: membership is volatile, cursors are in the log.

use std::sync::Arc;
use std::time::Instant;

use mq_common::api::group::{
    self as api, AckRequest, AckResponse, GroupDescription, GroupMode, GroupQueue, HeartbeatRequest,
    HeartbeatResponse, StartAt,
};
use mq_common::api::{Page, PageRequest};
use mq_common::ids::{GroupName, Offset};
use mq_common::{Error, ErrorCode};

use super::offset_at_time::offset_at;
use super::{Services, unexpected};
use crate::core::{Core, Holder};
use crate::ids::QueueKey;
use crate::log::{self, Want};
use crate::state::command::CreateGroup;
use crate::state::{self, Command, Outcome, Topic};
use crate::volatile::{Members, Refused};

/// Acks of one call.
const ACKS_MAX: usize = 20_000;

/// The service `hc.mq.Group`.
#[derive(Debug, Clone)]
pub struct Group(pub Arc<Services>);

impl api::Group for Group {
    async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Error> {
        self.0.count(self.beat(request).await)
    }

    async fn ack(&self, request: AckRequest) -> Result<AckResponse, Error> {
        self.0.count(self.progress(request).await)
    }

    async fn list(&self, page: PageRequest<GroupName>) -> Result<Page<GroupDescription, GroupName>, Error> {
        let list = self.0.core.visit(move |holder, core| {
            let volatile = core.published().volatile();
            let behind = holder.state().groups_after(page.after.as_ref());
            Page::cut(
                behind.map(|group| describe(holder, core, &volatile.members, group)),
                page.max,
                |described| described.group.clone(),
                |described| described.queues.len() + described.members.len(),
            )
        });
        list.await.map_err(|refused| self.0.refused(&refused))
    }

    async fn describe(&self, group: GroupName) -> Result<Vec<GroupDescription>, Error> {
        let name = group.clone();
        let found = self.0.core.visit(move |holder, core| {
            let (_, group) = holder.state().group_by_name(&name)?;
            Some(describe(
                holder,
                core,
                &core.published().volatile().members,
                group,
            ))
        });
        let found = found.await.map_err(|refused| self.0.refused(&refused))?;
        let unknown = || {
            Error::new(
                ErrorCode::UnknownGroup,
                format!("there is no group `{group}` at this broker; `mq group list` shows the groups"),
            )
        };
        found.map(|described| vec![described]).ok_or_else(unknown)
    }
}

impl Group {
    async fn beat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Error> {
        self.0.check_alive()?;
        let start = request.start.filter(|_| !request.leaving);
        match (self.volatile_beat(&request), start) {
            (Err(Refused::UnknownGroup(_)), Some(start)) => {
                self.create(&request, start).await?;
                self.volatile_beat(&request).map_err(|refused| (&refused).into())
            }
            (answer, _) => answer.map_err(|refused| (&refused).into()),
        }
    }

    fn volatile_beat(&self, request: &HeartbeatRequest) -> Result<HeartbeatResponse, Refused> {
        let mut volatile = self.0.core.published().volatile();
        volatile.members.heartbeat(Instant::now(), request)
    }

    /// The first member creates the group. If two join at once, the second finds it created.
    async fn create(&self, request: &HeartbeatRequest, start: StartAt) -> Result<(), Error> {
        if request.mode != GroupMode::Stream {
            let message = format!(
                "this broker knows no groups of mode {:?}; ask for `stream`",
                request.mode
            );
            return Err(Error::new(ErrorCode::InvalidArgument, message));
        }
        let topic = self.0.topic(&request.topic)?;
        let command = Command::CreateGroup(CreateGroup {
            name: request.group.clone(),
            topic: request.topic.clone(),
            mode: request.mode,
            cursors: self.cursors(&topic, start).await?,
        });
        let command = log::Command::new(command.encode(), Vec::new());
        let answer = self.0.core.propose_one(command, Want::Synced).await;
        match self.0.outcome(answer)? {
            (Outcome::Group(_), ..) => Ok(()),
            (outcome, ..) => Err(unexpected(&outcome)),
        }
    }

    async fn cursors(&self, topic: &Topic, start: StartAt) -> Result<Vec<(QueueKey, Offset)>, Error> {
        let mut cursors = Vec::with_capacity(topic.here.len());
        for (_, key) in &topic.here {
            let ends = self.0.core.published().visible.range(*key).unwrap_or_default();
            let offset = match start {
                StartAt::Earliest => ends.start,
                StartAt::Latest => ends.end,
                StartAt::Offset(offset) => offset.clamp(ends.start, ends.end),
                StartAt::Time(time) => offset_at(&self.0, *key, time).await?,
            };
            cursors.push((*key, offset));
        }
        Ok(cursors)
    }

    async fn progress(&self, request: AckRequest) -> Result<AckResponse, Error> {
        self.0.check_alive()?;
        let AckRequest {
            group,
            member,
            topic,
            acks,
        } = request;
        if acks.len() > ACKS_MAX {
            return Err(Error::new(
                ErrorCode::TooLarge,
                format!(
                    "{} acks in one call, {ACKS_MAX} are allowed; split it",
                    acks.len()
                ),
            ));
        }
        let now = Instant::now();
        let mut checked = Vec::with_capacity(acks.len());
        let mut outcomes: Vec<Result<(), Error>> = {
            let volatile = self.0.core.published().volatile();
            let check = |ack| {
                let ack = volatile.members.ack(now, &group, &topic, &member, ack)?;
                checked.push(ack);
                Ok(())
            };
            let outcomes = acks.iter().map(check);
            outcomes
                .map(|outcome| outcome.map_err(|refused: Refused| (&refused).into()))
                .collect()
        };
        if !checked.is_empty() {
            let answer = self.0.acks.add(checked).await;
            if let Err(error) = self.0.outcome(answer) {
                for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                    *outcome = Err(error.clone());
                }
            }
        }
        Ok(AckResponse { outcomes })
    }
}

fn describe(holder: &Holder, core: &Core, members: &Members, group: &state::Group) -> GroupDescription {
    let now = Instant::now();
    let queues = group.cursors.iter().filter_map(|(key, cursor)| {
        let queue = holder.state().queue(*key)?;
        Some(GroupQueue {
            queue: queue.number,
            cursor: *cursor,
            end: core.published().visible.range(*key).unwrap_or_default().end,
            owner: members.owner_of(now, &group.name, queue.number).cloned(),
            expired_unread: group.lost(*key),
        })
    });
    GroupDescription {
        group: group.name.clone(),
        mode: group.mode,
        topic: group.topic.clone(),
        members: members.members_of(now, &group.name),
        queues: queues.collect(),
    }
}
