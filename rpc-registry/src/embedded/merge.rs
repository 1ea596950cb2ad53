//! Merges the answers of several servers into one list. Pure: time is an argument.
//!
//! A server's answer counts until one lease after it was last heard from. An instance leaves the list only
//! when no answer that counts contains it and at least one of them is complete: a warming server adds and
//! never removes, and if no answer is left, the last list stays.

use std::time::{Duration, Instant};

use rpc_core::registry::Freshness;

use crate::cache::ById;

#[derive(Debug, Default)]
struct Answer {
    instances: ById,
    warming: bool,
    /// It counts until then; `None` before the first.
    until: Option<Instant>,
    /// Whether the last attempt to ask again failed.
    failing: bool,
}

#[derive(Debug)]
pub(super) struct Merge {
    lease: Duration,
    answers: Vec<Answer>,
    merged: ById,
}

impl Merge {
    /// Nothing is known yet from any of `servers`, whose answers count for `lease`.
    pub(super) fn new(servers: usize, lease: Duration) -> Self {
        Self {
            lease,
            answers: std::iter::repeat_with(Answer::default).take(servers).collect(),
            merged: ById::new(),
        }
    }

    /// Server number `server` has answered.
    pub(super) fn heard(&mut self, server: usize, instances: ById, warming: bool, now: Instant) {
        if let Some(answer) = self.answers.get_mut(server) {
            *answer = Answer {
                instances,
                warming,
                until: Some(now + self.lease),
                failing: false,
            };
        }
    }

    /// Server number `server` did not answer.
    pub(super) fn failed(&mut self, server: usize) {
        if let Some(answer) = self.answers.get_mut(server) {
            answer.failing = true;
        }
    }

    /// The merged list now, and how far it can be trusted.
    pub(super) fn picture(&mut self, now: Instant) -> (&ById, Freshness) {
        let counting = || {
            let counts = |answer: &&Answer| answer.until.is_some_and(|until| now < until);
            self.answers.iter().filter(counts)
        };
        let is_complete = counting().any(|answer| !answer.warming);
        let is_reached = counting().any(|answer| !answer.failing);
        let mut merged = if is_complete {
            ById::new()
        } else {
            std::mem::take(&mut self.merged)
        };
        for answer in counting() {
            merged.extend(
                answer
                    .instances
                    .iter()
                    .map(|(id, instance)| (id.clone(), instance.clone())),
            );
        }
        let was_heard = self.answers.iter().any(|answer| answer.until.is_some());
        self.merged = merged;
        let freshness = match (is_reached, is_complete) {
            (true, true) => Freshness::Fresh,
            // Empty so far, and members may be about to announce themselves: nothing is known.
            (true, false) if self.merged.is_empty() => Freshness::Unknown,
            (true, false) => Freshness::Fresh,
            (false, _) if was_heard && !self.is_unknown() => Freshness::Stale,
            (false, _) => Freshness::Unknown,
        };
        (&self.merged, freshness)
    }

    /// Whether only empty answers of warming servers have been received so far.
    fn is_unknown(&self) -> bool {
        let heard = self.answers.iter().filter(|answer| answer.until.is_some());
        self.merged.is_empty() && heard.into_iter().all(|answer| answer.warming)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc_core::registry::{Instance, InstanceId};
    use std::sync::Arc;

    const LEASE: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn by_id(ids: &str) -> ById {
        let one = |id: char| {
            let mut instance: Instance = serde_json::from_str(r#"{"address": "h:1"}"#).unwrap();
            instance.id = InstanceId(id.into());
            (instance.id.clone(), Arc::new(instance))
        };
        ids.chars().map(one).collect()
    }

    fn shown(merge: &mut Merge, now: Instant) -> (String, Freshness) {
        let (instances, freshness) = merge.picture(now);
        (instances.keys().map(|id| id.0.as_str()).collect(), freshness)
    }

    fn is(ids: &str, freshness: Freshness) -> (String, Freshness) {
        (ids.to_owned(), freshness)
    }

    #[test]
    fn answers_are_united_and_one_suffices() {
        let now = Instant::now();
        let mut merge = Merge::new(3, LEASE);
        assert_eq!(shown(&mut merge, now), is("", Freshness::Unknown));
        merge.failed(0);
        assert_eq!(shown(&mut merge, now), is("", Freshness::Unknown));
        merge.heard(1, by_id("ab"), false, now);
        assert_eq!(shown(&mut merge, now), is("ab", Freshness::Fresh));
        merge.heard(2, by_id("bc"), false, now);
        assert_eq!(shown(&mut merge, now), is("abc", Freshness::Fresh));
        merge.heard(1, by_id(""), false, now);
        assert_eq!(
            shown(&mut merge, now),
            is("bc", Freshness::Fresh),
            "none lists `a` any longer"
        );
    }

    #[test]
    fn silent_server_counts_for_one_lease() {
        let now = Instant::now();
        let mut merge = Merge::new(2, LEASE);
        merge.heard(0, by_id("a"), false, now);
        merge.heard(1, by_id("b"), false, now + 5 * SECOND);
        merge.failed(0);
        assert_eq!(shown(&mut merge, now + 9 * SECOND), is("ab", Freshness::Fresh));
        assert_eq!(shown(&mut merge, now + LEASE), is("b", Freshness::Fresh));
    }

    #[test]
    fn last_picture_stays_when_all_are_silent() {
        let now = Instant::now();
        let mut merge = Merge::new(2, LEASE);
        merge.heard(0, by_id("a"), false, now);
        merge.heard(1, by_id("b"), false, now);
        merge.failed(0);
        merge.failed(1);
        assert_eq!(shown(&mut merge, now + SECOND), is("ab", Freshness::Stale));
        assert_eq!(shown(&mut merge, now + 100 * LEASE), is("ab", Freshness::Stale));
    }

    #[test]
    fn warming_server_adds_and_never_removes() {
        let now = Instant::now();
        let mut merge = Merge::new(1, LEASE);
        merge.heard(0, by_id("ab"), false, now);
        assert_eq!(shown(&mut merge, now), is("ab", Freshness::Fresh));
        // It was restarted.
        merge.heard(0, by_id(""), true, now + SECOND);
        assert_eq!(shown(&mut merge, now + SECOND), is("ab", Freshness::Fresh));
        merge.heard(0, by_id("bc"), true, now + 2 * SECOND);
        assert_eq!(shown(&mut merge, now + 2 * SECOND), is("abc", Freshness::Fresh));
        merge.heard(0, by_id("bc"), false, now + 11 * SECOND);
        assert_eq!(shown(&mut merge, now + 11 * SECOND), is("bc", Freshness::Fresh));
    }

    #[test]
    fn warming_server_beside_a_complete_one_does_not_hold_back() {
        let now = Instant::now();
        let mut merge = Merge::new(2, LEASE);
        merge.heard(0, by_id("ab"), false, now);
        assert_eq!(shown(&mut merge, now), is("ab", Freshness::Fresh));
        merge.heard(1, by_id("c"), true, now);
        merge.heard(0, by_id("a"), false, now);
        assert_eq!(shown(&mut merge, now), is("ac", Freshness::Fresh));
    }

    #[test]
    fn empty_answer_of_a_warming_server_says_nothing() {
        let now = Instant::now();
        let mut merge = Merge::new(1, LEASE);
        merge.heard(0, by_id(""), true, now);
        assert_eq!(shown(&mut merge, now), is("", Freshness::Unknown));
        merge.failed(0);
        assert_eq!(shown(&mut merge, now), is("", Freshness::Unknown));
        merge.heard(0, by_id(""), false, now);
        assert_eq!(shown(&mut merge, now), is("", Freshness::Fresh));
    }
}
