//! The list of one service, from etcd's full lists and events, across failures. Pure: no clock, no etcd.
//!
//! The one invariant: a change counts once and in etcd's order, whether it arrives in an event or in a full
//! list. There is one grace period: after etcd lost its data (its revision went back), or was out of reach
//! for so long that leases of living processes may have expired, missing instances stay for one lease time,
//! in which the living ones register again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rpc_core::registry::{Freshness, Instance, InstanceId};

use crate::cache::ById;

/// One instance as found under a key, or `None` if the value is not an instance.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) id: InstanceId,
    pub(super) mod_revision: i64,
    pub(super) instance: Option<Instance>,
}

#[derive(Debug)]
struct Held {
    instance: Arc<Instance>,
    /// It went missing during a grace period: it stays until then.
    missing_until: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Everything up to this revision is in the list.
    revision: i64,
    held: BTreeMap<InstanceId, Held>,
    merciful_until: Option<Instant>,
}

impl Listing {
    /// The revision from which a watch has to start so that nothing is missed.
    pub(super) const fn next_revision(&self) -> i64 {
        self.revision + 1
    }

    /// Whether an etcd at `revision` has lost data that we have seen.
    pub(super) const fn is_ahead_of(&self, revision: i64) -> bool {
        revision < self.revision
    }

    /// Takes a full list, at `revision`. If that is below a revision seen before, etcd has lost its data, and
    /// missing instances stay for the grace period `grace`.
    pub(super) fn replace(&mut self, found: Vec<Found>, revision: i64, now: Instant, grace: Duration) {
        let mut before = std::mem::take(&mut self.held);
        if self.is_ahead_of(revision) {
            self.keep_missing_until(now + grace);
        }
        for Found { id, instance, .. } in found {
            let Some(instance) = instance else { continue };
            before.remove(&id);
            self.hold(id, instance);
        }
        let kept_until = self.kept_until(now);
        for (id, mut held) in before {
            held.missing_until = held.missing_until.or(kept_until);
            if held.missing_until.is_some() {
                self.held.insert(id, held);
            }
        }
        self.revision = revision;
        self.expire(now);
    }

    /// Instances that go missing before `until` stay until then.
    pub(super) fn keep_missing_until(&mut self, until: Instant) {
        self.merciful_until = Some(until);
    }

    fn kept_until(&self, now: Instant) -> Option<Instant> {
        self.merciful_until.filter(|until| now < *until)
    }

    /// Applies a change seen by the watch; `deleted` if the key has been deleted.
    pub(super) fn apply(&mut self, found: Found, deleted: bool, now: Instant) {
        if found.mod_revision <= self.revision {
            return;
        }
        match found.instance {
            Some(instance) if !deleted => self.hold(found.id, instance),
            _ => match (self.kept_until(now), self.held.get_mut(&found.id)) {
                (Some(until), Some(held)) => held.missing_until = held.missing_until.or(Some(until)),
                _ => drop(self.held.remove(&found.id)),
            },
        }
    }

    /// All events up to `revision` have been applied. Several events may carry the same revision, so this is
    /// called after the last one of a message.
    pub(super) fn reached(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    fn hold(&mut self, id: InstanceId, instance: Instance) {
        let held = Held {
            instance: Arc::new(instance),
            missing_until: None,
        };
        self.held.insert(id, held);
    }

    /// Removes the instances whose grace period has ended.
    pub(super) fn expire(&mut self, now: Instant) {
        self.held
            .retain(|_, held| held.missing_until.is_none_or(|until| now < until));
    }

    /// When [`Listing::expire`] has something to do next.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.held.values().filter_map(|held| held.missing_until).min()
    }

    /// The list to publish, and how far it can be trusted.
    pub(super) fn picture(&self) -> (ById, Freshness) {
        let instances = self
            .held
            .iter()
            .map(|(id, held)| (id.clone(), Arc::clone(&held.instance)));
        let freshness = match self.next_expiry() {
            None => Freshness::Fresh,
            Some(_) => Freshness::Stale,
        };
        (instances.collect(), freshness)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn found(id: &str, mod_revision: i64) -> Found {
        let mut instance: Instance = serde_json::from_str(r#"{"address": "h:1"}"#).unwrap();
        instance.id = InstanceId(id.into());
        Found {
            id: instance.id.clone(),
            mod_revision,
            instance: Some(instance),
        }
    }

    fn ids(listing: &Listing) -> String {
        listing.picture().0.into_keys().map(|id| id.0).collect()
    }

    #[test]
    fn events_before_the_picture_are_not_applied_again() {
        let now = Instant::now();
        let mut listing = Listing::default();
        listing.replace(vec![found("a", 3), found("b", 7)], 9, now, GRACE);
        assert_eq!(listing.next_revision(), 10);
        listing.apply(found("a", 8), true, now);
        assert_eq!(
            ids(&listing),
            "ab",
            "revision 8 is in the picture of revision 9 already"
        );
        listing.apply(found("a", 10), true, now);
        listing.apply(found("c", 10), false, now);
        listing.reached(10);
        assert_eq!(ids(&listing), "bc", "two events of one transaction");
        assert_eq!(listing.next_revision(), 11);
    }

    #[test]
    fn event_before_the_same_event_in_a_picture() {
        let now = Instant::now();
        let mut listing = Listing::default();
        listing.replace(vec![], 5, now, GRACE);
        listing.apply(found("a", 6), false, now);
        listing.reached(6);
        listing.replace(vec![], 7, now, GRACE);
        assert_eq!(ids(&listing), "", "the picture is newer and does not have it");
        assert_eq!(listing.picture().1, Freshness::Fresh);
    }

    #[test]
    fn undecodable_value_is_nobody() {
        let now = Instant::now();
        let mut listing = Listing::default();
        let garbage = |revision| Found {
            instance: None,
            ..found("a", revision)
        };
        listing.replace(vec![garbage(3), found("b", 4)], 9, now, GRACE);
        assert_eq!(ids(&listing), "b");
        listing.apply(
            Found {
                id: InstanceId("b".into()),
                ..garbage(10)
            },
            false,
            now,
        );
        assert_eq!(ids(&listing), "");
    }

    #[test]
    fn wiped_etcd_does_not_empty_the_list_at_once() {
        let now = Instant::now();
        let mut listing = Listing::default();
        listing.replace(
            vec![found("a", 30), found("b", 31), found("c", 32)],
            40,
            now,
            GRACE,
        );
        assert!(listing.is_ahead_of(1));
        listing.replace(vec![found("a", 1)], 1, now, GRACE);
        assert_eq!(ids(&listing), "abc");
        assert_eq!(listing.picture().1, Freshness::Stale);
        assert_eq!(listing.next_revision(), 2);

        listing.apply(found("b", 2), false, now);
        listing.reached(2);
        listing.replace(
            vec![found("a", 1), found("b", 2)],
            2,
            now + Duration::from_secs(4),
            GRACE,
        );
        assert_eq!(ids(&listing), "abc", "another list does not end the grace period");
        assert_eq!(listing.next_expiry(), Some(now + GRACE));

        listing.expire(now + GRACE);
        assert_eq!(ids(&listing), "ab");
        assert_eq!(listing.picture().1, Freshness::Fresh);
    }

    #[test]
    fn who_goes_missing_after_an_outage_stays_for_a_while() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut listing = Listing::default();
        listing.replace(vec![found("a", 3), found("b", 4), found("c", 5)], 9, now, GRACE);
        listing.keep_missing_until(now + GRACE);
        listing.replace(vec![found("b", 4), found("c", 5)], 12, now, GRACE);
        listing.apply(found("b", 13), true, now + second);
        listing.reached(13);
        assert_eq!(ids(&listing), "abc");
        assert_eq!(listing.picture().1, Freshness::Stale);
        listing.apply(found("a", 14), false, now + second);
        listing.expire(now + GRACE);
        assert_eq!(ids(&listing), "ac", "`a` has come back, `b` has not");
        assert_eq!(listing.picture().1, Freshness::Fresh);
        listing.apply(found("c", 15), true, now + GRACE);
        assert_eq!(ids(&listing), "a", "the grace period has ended");
    }
}
