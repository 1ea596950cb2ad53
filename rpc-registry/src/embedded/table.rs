//! The announcements made to a server, with their members and expiry times. Pure: time is an argument.
//!
//! The one invariant: an announcement replaces all earlier ones of its member, and an old one never undoes a
//! newer one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rpc_core::registry::{Instance, InstanceId, ServiceKey};

use super::api::Refusal;
use crate::cache::ById;

/// Most instances of one member. A broker has six.
const MEMBER_INSTANCES_MAX: usize = 1000;
/// Most instances in all: some megabytes.
const INSTANCES_MAX: usize = 20_000;

/// What one member serves.
pub(super) type Served = BTreeMap<(ServiceKey, InstanceId), Arc<Instance>>;

#[derive(Debug)]
struct Member {
    round: u64,
    /// `None`: the server's own process, which lives as long as the table.
    ends: Option<Instant>,
    served: Served,
}

#[derive(Debug)]
pub(super) struct Table {
    lease: Duration,
    warm_from: Instant,
    members: BTreeMap<String, Member>,
    instances: usize,
}

impl Table {
    /// An empty table at the start of a server.
    pub(super) fn new(lease: Duration, now: Instant) -> Self {
        Self {
            lease,
            warm_from: now + lease,
            members: BTreeMap::new(),
            instances: 0,
        }
    }

    /// How long an announcement is valid.
    pub(super) const fn lease(&self) -> Duration {
        self.lease
    }

    /// Whether some living members may not have announced themselves yet: they do so within one lease of the
    /// server's start.
    pub(super) fn is_warming(&self, now: Instant) -> bool {
        now < self.warm_from
    }

    /// Replaces what `member` announced before by `served`. Returns true if that changed anything visible.
    pub(super) fn announce(
        &mut self,
        member: &str,
        round: u64,
        served: Served,
        now: Instant,
    ) -> Result<bool, Refusal> {
        self.replace(member, round, served, Some(now + self.lease))
    }

    /// The same for the server's own process, which needs no lease.
    pub(super) fn announce_own(&mut self, member: &str, round: u64, served: Served) -> Result<bool, Refusal> {
        self.replace(member, round, served, None)
    }

    fn replace(
        &mut self,
        name: &str,
        round: u64,
        served: Served,
        ends: Option<Instant>,
    ) -> Result<bool, Refusal> {
        let before = self.members.get(name);
        if before.is_some_and(|member| round < member.round) {
            return Ok(false);
        }
        let before = before.map_or(0, |member| member.served.len());
        if served.len() > MEMBER_INSTANCES_MAX {
            return Err(Refusal::TooMany {
                instances: served.len(),
                limit: MEMBER_INSTANCES_MAX,
            });
        }
        let instances = self.instances - before + served.len();
        // Members count, too, or there could be unlimited members without instances.
        if instances > INSTANCES_MAX || self.members.len() > INSTANCES_MAX {
            return Err(Refusal::Full { limit: INSTANCES_MAX });
        }
        self.instances = instances;
        // Also kept when it serves nothing: a late earlier announcement must find the later round.
        let member = Member { round, ends, served };
        let old = self.members.insert(name.to_owned(), member);
        let old = old.map(|member| member.served).unwrap_or_default();
        Ok(self.members.get(name).is_some_and(|member| member.served != old))
    }

    /// Removes the members whose lease has ended. Returns true if that changed anything visible.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let mut changed = false;
        self.members.retain(|_, member| {
            let ended = member.ends.is_some_and(|ends| ends <= now);
            if ended {
                changed |= !member.served.is_empty();
                self.instances -= member.served.len();
            }
            !ended
        });
        changed
    }

    /// The time of the next change that happens by itself: a lease ends, or the table is warm.
    pub(super) fn next_change(&self, now: Instant) -> Option<Instant> {
        let ends = self.members.values().filter_map(|member| member.ends);
        ends.chain(self.is_warming(now).then_some(self.warm_from)).min()
    }

    /// The instances of `key`.
    pub(super) fn serving(&self, key: &ServiceKey) -> ById {
        let first = (key.clone(), InstanceId(String::new()));
        let all = self.members.values().flat_map(|member| {
            let from = member.served.range(first.clone()..);
            from.take_while(|((served, _), _)| served == key)
        });
        all.map(|((_, id), instance)| (id.clone(), Arc::clone(instance)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn key(service: &str) -> ServiceKey {
        ServiceKey {
            group: "default".into(),
            service: service.into(),
            version: "1.0".into(),
        }
    }

    /// `"ab"`: instances a and b of service `s`.
    fn served(ids: &str) -> Served {
        let one = |id: char| {
            let mut instance: Instance = serde_json::from_str(r#"{"address": "h:1"}"#).unwrap();
            instance.id = InstanceId(id.into());
            ((key("s"), instance.id.clone()), Arc::new(instance))
        };
        ids.chars().map(one).collect()
    }

    fn ids(table: &Table) -> String {
        table.serving(&key("s")).into_keys().map(|id| id.0).collect()
    }

    #[test]
    fn announcement_replaces_all_its_member_said() {
        let now = Instant::now();
        let mut table = Table::new(LEASE, now);
        assert_eq!(table.announce("m", 1, served("ab"), now), Ok(true));
        assert_eq!(table.announce("n", 1, served("c"), now), Ok(true));
        assert_eq!(table.announce("m", 2, served("ab"), now), Ok(false), "renewed");
        assert_eq!(ids(&table), "abc");
        assert_eq!(table.announce("m", 3, served("b"), now), Ok(true));
        assert_eq!(ids(&table), "bc");
        assert!(table.serving(&key("t")).is_empty());
    }

    #[test]
    fn late_announcement_does_not_undo_a_farewell() {
        let now = Instant::now();
        let mut table = Table::new(LEASE, now);
        assert_eq!(table.announce("m", 2, served("a"), now), Ok(true));
        assert_eq!(table.announce("m", 3, served(""), now), Ok(true));
        assert_eq!(table.announce("m", 2, served("a"), now + SECOND), Ok(false));
        assert_eq!(ids(&table), "");
    }

    #[test]
    fn lease_ends_unless_it_is_renewed() {
        let now = Instant::now();
        let mut table = Table::new(LEASE, now);
        table.announce("m", 1, served("a"), now).unwrap();
        table.announce("n", 1, served("b"), now + SECOND).unwrap();
        table.announce_own("me", 1, served("c")).unwrap();
        table.announce("m", 2, served("a"), now + 5 * SECOND).unwrap();
        assert!(!table.expire(now + LEASE));
        assert_eq!(table.next_change(now + LEASE), Some(now + 11 * SECOND));
        assert!(table.expire(now + 11 * SECOND));
        assert_eq!(ids(&table), "ac");
        assert!(table.expire(now + 15 * SECOND));
        assert_eq!(ids(&table), "c");
        assert_eq!(table.next_change(now + 15 * SECOND), None);
        assert_eq!(table.instances, 1);
    }

    #[test]
    fn table_warms_for_one_lease() {
        let now = Instant::now();
        let table = Table::new(LEASE, now);
        assert!(table.is_warming(now + 9 * SECOND));
        assert_eq!(table.next_change(now), Some(now + LEASE));
        assert!(!table.is_warming(now + LEASE));
    }

    #[test]
    fn limits_are_kept() {
        let now = Instant::now();
        let mut table = Table::new(LEASE, now);
        let many = |count: usize| -> Served {
            let (_, instance) = served("a").into_iter().next().unwrap();
            let one = |number| ((key("s"), InstanceId(format!("{number}"))), Arc::clone(&instance));
            (0..count).map(one).collect()
        };
        let refused = table.announce("m", 1, many(MEMBER_INSTANCES_MAX + 1), now);
        assert!(matches!(refused, Err(Refusal::TooMany { .. })), "{refused:?}");
        for member in 0..INSTANCES_MAX / MEMBER_INSTANCES_MAX {
            table
                .announce(&format!("m{member}"), 1, many(MEMBER_INSTANCES_MAX), now)
                .unwrap();
        }
        let refused = table.announce("one more", 1, served("a"), now);
        assert!(matches!(refused, Err(Refusal::Full { .. })), "{refused:?}");
        assert_eq!(
            table.announce("m0", 2, served("a"), now),
            Ok(true),
            "less is always taken"
        );
        assert_eq!(table.announce("one more", 1, served("a"), now), Ok(true));
    }
}
