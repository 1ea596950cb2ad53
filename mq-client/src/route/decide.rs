//! The result of one round of answers: the topic's route, that there is no such topic, or that this is
//! unknown. Pure. `mq_common::declared` decides which of several declarations is valid.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mq_common::ErrorCode;
use mq_common::api::admin::{Topic, TopicDescription};
use mq_common::declared::{Statement, true_one};
use mq_common::ids::{ShardName, TopicName};
use rpc_core::CallError;

use super::TopicRoute;
use crate::error::{RouteError, words};

/// The tombstones of a name: for each authority that declared a topic, the latest one known to be deleted.
pub(super) type Buried = BTreeMap<ShardName, Topic>;

/// A shard's answer.
pub(super) type Answer = (ShardName, Result<TopicDescription, CallError<mq_common::Error>>);

/// The valid route, from the brokers' answers and what was known before.
pub(super) fn decide(
    name: &TopicName,
    known: Option<Arc<TopicRoute>>,
    buried: &mut Buried,
    answers: Vec<Answer>,
) -> Result<Arc<TopicRoute>, RouteError> {
    let mut said = Vec::new();
    let mut silent = Vec::new();
    let mut denied = BTreeSet::new();
    for (shard, answer) in answers {
        match answer {
            Ok(description) => said.push((shard, description.topic)),
            Err(CallError::App(error)) if error.code == ErrorCode::UnknownTopic => {
                denied.insert(shard);
            }
            Err(error) => silent.push(format!("`{shard}`: {}", words(&error))),
        }
    }
    let heard = !said.is_empty();
    // What was known before counts as the statement of its authority.
    let before = known.iter().map(|known| known.topic()).chain(buried.values());
    said.extend(
        before
            .filter_map(|topic| Some((topic.authority()?.clone(), topic.clone())))
            .collect::<Vec<_>>(),
    );
    let unknown = || RouteError::UnknownTopic { topic: name.clone() };
    let unreachable = || RouteError::Unreachable {
        topic: name.clone(),
        reason: silent.join("; "),
    };
    let best = true_topic(&said).cloned();
    bury(buried, &said);
    match (best, known) {
        // It may have been recreated at a broker that is silent now.
        (Some(topic), _) if topic.deleted && !heard && !silent.is_empty() => Err(unreachable()),
        (Some(topic), _) if topic.deleted => Err(unknown()),
        // All its brokers report that there is no such topic.
        (Some(_), Some(known)) if !heard && known.shards().all(|shard| denied.contains(shard)) => {
            Err(unknown())
        }
        (Some(topic), Some(known)) if *known.topic() == topic => Ok(known),
        (Some(topic), _) => Ok(Arc::new(TopicRoute::new(topic))),
        (None, _) if silent.is_empty() && !denied.is_empty() => Err(unknown()),
        (None, _) => Err(unreachable()),
    }
}

/// The valid declaration of one name out of those that the shards reported.
pub(crate) fn true_topic(said: &[(ShardName, Topic)]) -> Option<&Topic> {
    let said: Vec<_> = said
        .iter()
        .filter_map(|(from, topic)| Some((Statement::new(from, topic)?, topic)))
        .collect();
    let statements: Vec<_> = said.iter().map(|(statement, _)| *statement).collect();
    true_one(&statements).map(|index| said[index].1)
}

/// Remembers which topics of a name are deleted.
fn bury(buried: &mut Buried, said: &[(ShardName, Topic)]) {
    let statements: Vec<_> = said
        .iter()
        .filter_map(|(from, topic)| Some((Statement::new(from, topic)?, topic)))
        .collect();
    for (one, topic) in &statements {
        let gone = statements.iter().any(|(other, _)| one.is_given_up_by(other));
        let known = buried.get(one.authority);
        if gone && known.is_none_or(|known| (known.id, known.version) < one.age()) {
            let tombstone = Topic {
                deleted: true,
                ..Topic::clone(topic)
            };
            buried.insert(one.authority.clone(), tombstone);
        }
    }
}

#[cfg(test)]
mod tests {
    use mq_common::api::admin::QueueHome;
    use mq_common::ids::{Durability, QueueNumber, TopicId};
    use rpc_core::{Code, Executed, RpcError};

    use super::*;

    fn topic(id: u64, version: u64, deleted: bool) -> Topic {
        declared_by("a", id, version, deleted)
    }

    fn declared_by(authority: &str, id: u64, version: u64, deleted: bool) -> Topic {
        Topic {
            name: TopicName::new("orders").unwrap(),
            id: TopicId(id),
            version,
            durability: Durability::Fsynced,
            queues: vec![QueueHome {
                queue: QueueNumber(0),
                shard: ShardName::new(authority).unwrap(),
            }],
            deleted,
            settings: mq_common::api::TopicSettings::default(),
        }
    }

    fn answer(topic: &Topic) -> Answer {
        said_by("a", topic)
    }

    fn said_by(shard: &str, topic: &Topic) -> Answer {
        let description = TopicDescription {
            topic: topic.clone(),
            queues: Vec::new(),
        };
        (ShardName::new(shard).unwrap(), Ok(description))
    }

    fn silence() -> Answer {
        let error = RpcError::new(Code::Unavailable, Executed::No, "away");
        (ShardName::new("b").unwrap(), Err(CallError::Rpc(error)))
    }

    /// The results of consecutive rounds.
    fn rounds(rounds: Vec<Vec<Answer>>) -> Vec<Option<(u64, u64)>> {
        let name = TopicName::new("orders").unwrap();
        let mut known = None;
        let mut buried = Buried::new();
        let mut found = Vec::new();
        for answers in rounds {
            known = decide(&name, known.take(), &mut buried, answers).ok();
            found.push(
                known
                    .as_ref()
                    .map(|route: &Arc<TopicRoute>| (route.topic().id.0, route.topic().version)),
            );
        }
        found
    }

    #[test]
    fn highest_id_and_version_of_all_answers_counts() {
        let (one, two, again) = (topic(7, 1, false), topic(7, 2, false), topic(9, 1, false));
        assert_eq!(
            rounds(vec![
                vec![answer(&two), answer(&one)],
                vec![answer(&one), silence()],
                vec![answer(&one), answer(&again), answer(&two)],
                vec![answer(&two)],
            ]),
            [Some((7, 2)), Some((7, 2)), Some((9, 1)), Some((9, 1))]
        );
    }

    #[test]
    fn deleted_topic_stays_deleted_when_only_a_broker_that_was_away_answers() {
        let (live, tombstone) = (topic(7, 1, false), topic(7, 2, true));
        let again = topic(9, 3, false);
        assert_eq!(
            rounds(vec![
                vec![answer(&live)],
                vec![answer(&live), answer(&tombstone)],
                vec![answer(&live), silence()],
                vec![silence()],
                vec![answer(&live), silence()],
                vec![answer(&again)],
            ]),
            [Some((7, 1)), None, None, None, None, Some((9, 3))]
        );
    }

    #[test]
    fn tombstone_of_one_of_two_authorities_does_not_hide_the_other_ones_topic() {
        let ours = declared_by("a", 7, 1, false);
        let (theirs, grave) = (declared_by("c", 9, 1, false), declared_by("c", 9, 2, true));
        assert_eq!(
            rounds(vec![
                vec![said_by("a", &ours), said_by("c", &grave)],
                vec![said_by("a", &ours), said_by("c", &theirs)],
                vec![said_by("c", &grave), silence()],
                vec![said_by("a", &ours)],
            ]),
            [Some((7, 1)), Some((7, 1)), Some((7, 1)), Some((7, 1))],
            "what was seen deleted stays deleted, and the other lives on"
        );
    }

    #[test]
    fn topic_that_its_authority_gave_up_stays_gone_when_only_a_stale_broker_answers() {
        let old = declared_by("a", 7, 1, false);
        let (new, grave) = (declared_by("c", 9, 1, false), declared_by("c", 9, 2, true));
        assert_eq!(
            rounds(vec![
                vec![said_by("b", &old)],
                vec![said_by("b", &old), said_by("a", &new)],
                vec![said_by("c", &grave)],
                vec![said_by("b", &old), silence()],
            ]),
            [Some((7, 1)), Some((9, 1)), None, None]
        );
    }
}
