//! Decides which of several declarations of a topic's name is valid. Brokers and clients both use it, so that
//! they cannot disagree. Pure.
//!
//! 1. Of two declarations the one with the higher `(id, version)` is valid.
//! 2. The one invariant: a live topic is dropped only on the word of its own authority. That is a tombstone
//!    of the very topic (only its authority numbers versions), a later topic that the same authority declared
//!    (it refuses a second one while the first lives), or a later topic that the authority shows as its own
//!    knowledge of the name. The tombstone of *another* topic of the name says nothing about this one.

use crate::api::admin::Topic;
use crate::ids::{ShardName, TopicId};

/// What one shard reports about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'a> {
    /// The shard that reports it.
    pub from: &'a ShardName,
    /// The topic's id.
    pub id: TopicId,
    /// Its version.
    pub version: u64,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// The topic's authority.
    pub authority: &'a ShardName,
}

impl<'a> Statement<'a> {
    /// The statement that `from` reports `topic`; `None` for a topic without queues, which cannot be
    /// declared.
    #[must_use]
    pub fn new(from: &'a ShardName, topic: &'a Topic) -> Option<Self> {
        Some(Self {
            from,
            id: topic.id,
            version: topic.version,
            deleted: topic.deleted,
            authority: topic.authority()?,
        })
    }

    /// Declarations of one name, ordered by precedence.
    #[must_use]
    pub const fn age(&self) -> (TopicId, u64) {
        (self.id, self.version)
    }

    /// Whether `said` shows that this topic no longer exists.
    #[must_use]
    pub fn is_given_up_by(&self, said: &Self) -> bool {
        let by_its_authority = said.from == self.authority || said.authority == self.authority;
        (said.id == self.id && said.deleted) || (said.id > self.id && by_its_authority)
    }
}

/// The index of the valid one: the highest live declaration that was not given up, else the highest
/// tombstone. `None` only if there are no statements.
#[must_use]
pub fn true_one(said: &[Statement<'_>]) -> Option<usize> {
    let lives = |one: &Statement<'_>| !one.deleted && !said.iter().any(|other| one.is_given_up_by(other));
    let highest = |wanted: &dyn Fn(&Statement<'_>) -> bool| {
        let wanted = said.iter().enumerate().filter(|(_, one)| wanted(one));
        wanted.max_by_key(|(_, one)| one.age()).map(|(index, _)| index)
    };
    highest(&lives).or_else(|| highest(&|one| one.deleted))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `(who says it, id, version, deleted, authority)`.
    type Said = (usize, u64, u64, bool, usize);

    fn shards() -> Vec<ShardName> {
        ["a", "b", "c", "d"]
            .map(|name| ShardName::new(name).unwrap())
            .into()
    }

    fn statements<'a>(shards: &'a [ShardName], said: &[Said]) -> Vec<Statement<'a>> {
        let statement = |&(from, id, version, deleted, authority): &Said| Statement {
            from: &shards[from],
            id: TopicId(id),
            version,
            deleted,
            authority: &shards[authority],
        };
        said.iter().map(statement).collect()
    }

    /// `(id, version, deleted)` of the true one.
    fn truth(said: &[Said]) -> Option<(u64, u64, bool)> {
        let shards = shards();
        let said = statements(&shards, said);
        true_one(&said).map(|index| (said[index].id.0, said[index].version, said[index].deleted))
    }

    const A: usize = 0;
    const B: usize = 1;
    const C: usize = 2;

    #[test]
    fn highest_id_and_version_is_true() {
        assert_eq!(truth(&[]), None);
        assert_eq!(
            truth(&[(A, 7, 1, false, A), (B, 7, 2, false, A)]),
            Some((7, 2, false))
        );
        assert_eq!(
            truth(&[(B, 9, 1, false, B), (A, 7, 5, false, A)]),
            Some((9, 1, false))
        );
    }

    #[test]
    fn tombstone_of_a_topic_buries_that_topic_whoever_shows_it() {
        assert_eq!(
            truth(&[(B, 7, 1, false, A), (C, 7, 2, true, A)]),
            Some((7, 2, true))
        );
    }

    #[test]
    fn tombstone_of_one_of_two_authorities_leaves_the_other_topic_alive() {
        assert_eq!(
            truth(&[(A, 7, 1, false, A), (C, 9, 2, true, C)]),
            Some((7, 1, false))
        );
        assert_eq!(
            truth(&[(A, 7, 2, true, A), (C, 9, 1, false, C)]),
            Some((9, 1, false))
        );
        assert_eq!(
            truth(&[(A, 7, 2, true, A), (C, 9, 2, true, C)]),
            Some((9, 2, true))
        );
    }

    #[test]
    fn later_topic_of_the_same_authority_buries_the_earlier_one() {
        assert_eq!(
            truth(&[(B, 7, 1, false, A), (C, 9, 2, true, A)]),
            Some((9, 2, true))
        );
    }

    #[test]
    fn authority_that_shows_a_later_topic_gave_its_own_up() {
        assert_eq!(
            truth(&[(B, 7, 1, false, A), (A, 9, 2, true, C)]),
            Some((9, 2, true))
        );
        assert_eq!(
            truth(&[(B, 7, 1, false, A), (A, 9, 1, false, C)]),
            Some((9, 1, false))
        );
    }

    fn said() -> impl Strategy<Value = Said> {
        (0..4_usize, 1..6_u64, 1..4_u64, any::<bool>(), 0..4_usize)
    }

    proptest! {
        #[test]
        fn order_and_repetition_of_what_is_said_do_not_matter(
            said in proptest::collection::vec(said(), 0..8).prop_shuffle(),
        ) {
            // One topic has one authority, and one version of it one form.
            let said: Vec<Said> = said
                .into_iter()
                .map(|(from, id, version, _, _)| {
                    let authority = usize::try_from(id % 4).unwrap();
                    (from, id, version, version == 3, authority)
                })
                .collect();
            let mut other = said.clone();
            other.reverse();
            other.extend(said.first().copied());
            prop_assert_eq!(truth(&said), truth(&other));
        }

        #[test]
        fn live_topic_goes_only_on_the_word_of_its_authority(
            said in proptest::collection::vec(said(), 1..8),
        ) {
            let shards = shards();
            let said = statements(&shards, &said);
            let Some(index) = true_one(&said) else { return Ok(()) };
            for live in said.iter().filter(|one| !one.deleted && (said[index].deleted || one.age() > said[index].age())) {
                let word = said.iter().any(|other| {
                    (other.id == live.id && other.deleted)
                        || (other.id > live.id && [other.from, other.authority].contains(&live.authority))
                });
                prop_assert!(word, "{live:?} was dropped for {:?}", said[index]);
            }
        }
    }
}
