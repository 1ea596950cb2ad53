//! Members, owners and epochs of a `stream` group.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use mq_common::api::group::{Ack, GroupMode, HeartbeatRequest, HeartbeatResponse, StartAt};
use mq_common::ids::{GroupName, MemberId, Offset, OwnerEpoch, QueueNumber, Term, Timestamp, TopicName};
use mq_common::{Error, ErrorCode};
use proptest::prelude::*;

use crate::ids::{GroupKey, QueueKey};
use crate::volatile::{Members, Refused, Settings, Subscription};

const SECOND: Duration = Duration::from_secs(1);

fn group() -> GroupName {
    GroupName::new("g").unwrap()
}

fn topic() -> TopicName {
    TopicName::new("t").unwrap()
}

fn member(name: &str) -> MemberId {
    MemberId(name.to_owned())
}

fn subscription(queues: u32) -> Subscription {
    Subscription {
        key: GroupKey(0),
        name: group(),
        topic: topic(),
        mode: GroupMode::Stream,
        since: Timestamp(1),
        first_place: 0,
        queues: (0..queues)
            .map(|queue| (QueueNumber(queue), QueueKey(queue + 100), Offset(0)))
            .collect(),
    }
}

/// A broker and clients that keep to the protocol.
struct Bench {
    members: Members,
    now: Instant,
    owned: BTreeMap<String, Vec<(QueueNumber, OwnerEpoch)>>,
}

impl Bench {
    fn new(queues: u32) -> Self {
        let mut members = Members::new(Term(5), Settings::default());
        members.put(subscription(queues));
        Self {
            members,
            now: Instant::now(),
            owned: BTreeMap::new(),
        }
    }

    fn request(name: &str, owned: Vec<(QueueNumber, OwnerEpoch)>) -> HeartbeatRequest {
        HeartbeatRequest {
            group: group(),
            member: member(name),
            topic: topic(),
            mode: GroupMode::Stream,
            start: Some(StartAt::Earliest),
            owned,
            leaving: false,
        }
    }

    /// One heartbeat; the client works on all it is assigned, and stops at once with what is asked back.
    fn beat(&mut self, name: &str) -> HeartbeatResponse {
        let owned = self.owned.get(name).cloned().unwrap_or_default();
        let answer = self
            .members
            .heartbeat(self.now, &Self::request(name, owned))
            .unwrap();
        let works_on = answer
            .assigned
            .iter()
            .filter(|assigned| !answer.revoking.contains(&assigned.queue))
            .map(|assigned| (assigned.queue, assigned.epoch))
            .collect();
        self.owned.insert(name.to_owned(), works_on);
        answer
    }

    fn leave(&mut self, name: &str) -> HeartbeatResponse {
        let mut request = Self::request(name, vec![]);
        request.leaving = true;
        self.owned.remove(name);
        self.members.heartbeat(self.now, &request).unwrap()
    }

    fn owner(&self, queue: u32) -> Option<&str> {
        self.members
            .owner_of(self.now, &group(), QueueNumber(queue))
            .map(|member| member.0.as_str())
    }

    fn check(&self, name: &str, queue: u32, epoch: OwnerEpoch) -> Result<(), Refused> {
        self.members.check(
            self.now,
            &group(),
            &member(name),
            (&topic(), QueueNumber(queue)),
            epoch,
        )
    }

    fn ack(&self, name: &str, queue: u32, epoch: OwnerEpoch, next: u64) -> Result<Offset, Refused> {
        let ack = Ack {
            queue: QueueNumber(queue),
            epoch,
            next: Offset(next),
        };
        let logged = self
            .members
            .ack(self.now, &group(), &topic(), &member(name), &ack)?;
        assert_eq!((logged.group, logged.queue), (GroupKey(0), QueueKey(queue + 100)));
        Ok(logged.next)
    }
}

fn queues(answer: &HeartbeatResponse) -> Vec<u32> {
    answer.assigned.iter().map(|assigned| assigned.queue.0).collect()
}

#[test]
fn first_member_gets_everything_at_once() {
    let mut bench = Bench::new(4);
    let answer = bench.beat("a");
    assert_eq!(queues(&answer), [0, 1, 2, 3]);
    assert_eq!(
        (answer.members, answer.heartbeat_ms, answer.session_ms),
        (1, 3000, 12_000)
    );
    assert_eq!(answer.assigned[0].epoch.term, Term(5));
}

#[test]
fn second_member_gets_its_share_only_after_the_first_gave_it_back() {
    let mut bench = Bench::new(4);
    bench.beat("a");
    let joined = bench.beat("b");
    assert!(queues(&joined).is_empty(), "the queues are still being worked on");
    assert_eq!(joined.heartbeat_ms, 500, "ask again soon");
    let told = bench.beat("a");
    assert_eq!(
        queues(&told),
        [0, 1, 2, 3],
        "until it stops it is still the owner"
    );
    assert_eq!(told.revoking, [QueueNumber(1), QueueNumber(3)]);
    assert!(queues(&bench.beat("b")).is_empty());
    let stopped = bench.beat("a");
    assert_eq!(queues(&stopped), [0, 2]);
    let answer = bench.beat("b");
    assert_eq!(queues(&answer), [1, 3]);
    assert_eq!(answer.heartbeat_ms, 3000);
}

#[test]
fn member_that_still_works_on_a_queue_keeps_it_for_thirty_seconds_at_most() {
    let mut bench = Bench::new(2);
    let epoch = bench.beat("a").assigned[1].epoch;
    let all: Vec<_> = bench.owned["a"].clone();
    bench.beat("b");
    for _ in 0..9 {
        bench.now += 3 * SECOND;
        // It never lets go of what it was asked for.
        bench
            .members
            .heartbeat(bench.now, &Bench::request("a", all.clone()))
            .unwrap();
        bench.beat("b");
    }
    assert_eq!(bench.owner(1), Some("a"));
    bench.check("a", 1, epoch).unwrap();
    bench.now += 3 * SECOND;
    // Fenced by the clock alone, even before anybody's heartbeat.
    assert!(matches!(bench.check("a", 1, epoch), Err(Refused::Fenced { .. })));
    bench.beat("b");
    assert_eq!(bench.owner(1), Some("b"));
    assert!(matches!(bench.ack("a", 1, epoch, 0), Err(Refused::Fenced { .. })));
}

#[test]
fn answer_that_never_arrived_does_not_strand_its_queues() {
    let mut bench = Bench::new(2);
    // The grant is lost on the way: the member does not know that it owns anything.
    bench
        .members
        .heartbeat(bench.now, &Bench::request("a", vec![]))
        .unwrap();
    assert_eq!(queues(&bench.beat("a")), [0, 1], "the next answer says it again");
}

#[test]
fn dead_members_queues_go_to_the_living_after_its_session() {
    let mut bench = Bench::new(2);
    bench.beat("a");
    bench.beat("b");
    bench.beat("a");
    bench.beat("a");
    let epoch = bench.beat("b").assigned[0].epoch;
    assert_eq!((bench.owner(0), bench.owner(1)), (Some("a"), Some("b")));
    for _ in 0..4 {
        bench.check("b", 1, epoch).unwrap();
        bench.now += 3 * SECOND;
        bench.beat("a");
    }
    assert_eq!(bench.owner(1), Some("a"));
    let refused = bench.check("b", 1, epoch).unwrap_err();
    assert!(matches!(refused, Refused::NotMember { .. }), "{refused}");
    assert_eq!(bench.members.members_of(bench.now, &group()), [member("a")]);
}

#[test]
fn killed_last_member_owns_nothing_after_its_session() {
    let mut bench = Bench::new(1);
    bench.beat("a");
    bench.now += Settings::default().session - Duration::from_millis(1);
    assert_eq!(bench.owner(0), Some("a"));
    bench.now += Duration::from_millis(1);
    assert_eq!(bench.owner(0), None, "nobody comes whose heartbeat would free it");
    assert_eq!(bench.members.members_of(bench.now, &group()), []);
}

#[test]
fn zombie_that_wakes_up_is_fenced() {
    let mut bench = Bench::new(1);
    let old = bench.beat("a").assigned[0].epoch;
    bench.now += 12 * SECOND;
    let new = bench.beat("b").assigned[0].epoch;
    assert!(new > old);
    // It joins again, but its old epoch stays dead.
    bench.beat("a");
    assert!(matches!(bench.check("a", 0, old), Err(Refused::Fenced { .. })));
    let error = Error::from(&bench.ack("a", 0, old, 0).unwrap_err());
    assert_eq!(error.code, ErrorCode::Fenced);
}

#[test]
fn leaving_frees_queues_at_once() {
    let mut bench = Bench::new(2);
    bench.beat("a");
    bench.beat("b");
    let answer = bench.leave("a");
    assert!(queues(&answer).is_empty());
    assert_eq!(answer.members, 1);
    assert_eq!(queues(&bench.beat("b")), [0, 1]);
    bench.leave("nobody");
}

#[test]
fn member_with_another_topic_is_refused_with_both_shown() {
    let mut bench = Bench::new(2);
    let mut request = Bench::request("a", vec![]);
    request.topic = TopicName::new("other").unwrap();
    let refused = bench.members.heartbeat(bench.now, &request).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("`t`") && text.contains("`other`"), "{text}");
    assert_eq!(Error::from(&refused).code, ErrorCode::SubscriptionMismatch);
    assert!(bench.members.members_of(bench.now, &group()).is_empty());
}

#[test]
fn unknown_group_asks_the_caller_to_make_it() {
    let mut bench = Bench::new(1);
    bench.members.delete(GroupKey(0));
    let refused = bench
        .members
        .heartbeat(bench.now, &Bench::request("a", vec![]))
        .unwrap_err();
    assert_eq!(refused, Refused::UnknownGroup(group()));
}

#[test]
fn absurd_member_ids_and_too_many_members_are_refused() {
    let mut bench = Bench::new(1);
    for name in [String::new(), "x".repeat(128)] {
        let refused = bench
            .members
            .heartbeat(bench.now, &Bench::request(&name, vec![]))
            .unwrap_err();
        assert!(matches!(refused, Refused::InvalidMember(_)), "{refused}");
    }
    bench.members = Members::new(
        Term(1),
        Settings {
            members_max: 1,
            ..Settings::default()
        },
    );
    bench.members.put(subscription(1));
    bench.beat("a");
    let refused = bench
        .members
        .heartbeat(bench.now, &Bench::request("b", vec![]))
        .unwrap_err();
    assert!(matches!(refused, Refused::Full { members: 1, .. }), "{refused}");
    bench.beat("a");
}

#[test]
fn fetch_from_another_topic_is_refused_in_the_groups_name() {
    let mut bench = Bench::new(1);
    let epoch = bench.beat("a").assigned[0].epoch;
    let other = TopicName::new("other").unwrap();
    let asked = (&other, QueueNumber(0));
    let refused = bench
        .members
        .check(bench.now, &group(), &member("a"), asked, epoch)
        .unwrap_err();
    assert_eq!(Error::from(&refused).code, ErrorCode::SubscriptionMismatch);
    bench.check("a", 0, epoch).unwrap();
}

#[test]
fn ack_counts_up_to_what_was_delivered_under_its_epoch() {
    let mut bench = Bench::new(1);
    let epoch = bench.beat("a").assigned[0].epoch;
    assert_eq!(bench.ack("a", 0, epoch, 0), Ok(Offset(0)));
    let refused = bench.ack("a", 0, epoch, 1).unwrap_err();
    assert!(matches!(refused, Refused::BeyondDelivered { .. }), "{refused}");
    let later = OwnerEpoch {
        counter: epoch.counter + 1,
        ..epoch
    };
    bench
        .members
        .delivered(&group(), QueueNumber(0), later, Offset(50));
    bench.ack("a", 0, epoch, 1).unwrap_err();
    bench
        .members
        .delivered(&group(), QueueNumber(0), epoch, Offset(10));
    bench
        .members
        .delivered(&group(), QueueNumber(0), epoch, Offset(5));
    assert_eq!(bench.ack("a", 0, epoch, 10), Ok(Offset(10)));
    let error = Error::from(&bench.ack("a", 0, epoch, 11).unwrap_err());
    assert_eq!(
        (error.code, error.range),
        (ErrorCode::OffsetOutOfRange, Some((0, 10)))
    );
}

#[test]
fn new_owner_starts_at_the_cursor() {
    let mut bench = Bench::new(1);
    let epoch = bench.beat("a").assigned[0].epoch;
    bench
        .members
        .delivered(&group(), QueueNumber(0), epoch, Offset(10));
    bench.members.progress(GroupKey(0), QueueKey(100), Offset(7));
    bench.leave("a");
    let assigned = bench.beat("b").assigned[0];
    assert_eq!(assigned.cursor, Offset(7));
    bench.ack("b", 0, assigned.epoch, 8).unwrap_err();
}

#[test]
fn queues_added_to_the_topic_are_shared_too() {
    let mut bench = Bench::new(1);
    let before = bench.beat("a");
    bench.members.put(subscription(3));
    let after = bench.beat("a");
    assert_eq!(queues(&after), [0, 1, 2]);
    assert_eq!(
        after.assigned[0], before.assigned[0],
        "what it had stays as it was"
    );
}

#[test]
fn epochs_of_a_later_life_of_the_broker_are_higher() {
    let mut bench = Bench::new(1);
    let old = bench.beat("a").assigned[0].epoch;
    bench.members = Members::new(Term(6), Settings::default());
    bench.members.put(subscription(1));
    let refused = bench.check("a", 0, old).unwrap_err();
    assert!(
        matches!(refused, Refused::NotMember { .. }),
        "join again: {refused}"
    );
    assert!(bench.beat("a").assigned[0].epoch > old);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn queues_have_one_owner_epochs_rise_and_peace_brings_balance(seed in any::<u64>(), count in 1..20_u32) {
        let mut rng = Rng::with_seed(seed);
        let mut bench = Bench::new(count);
        let names = ["a", "b", "c", "d"];
        let mut highest: BTreeMap<u32, (OwnerEpoch, String)> = BTreeMap::new();
        let mut peace = 0;
        for step in 0..300 {
            let quiet = step >= 200;
            if quiet {
                // From here on all but "d" keep to their heartbeats.
                peace += 1;
                bench.now += Duration::from_millis(200);
                let name = names[peace % 3];
                check_answer(&bench.beat(name), name, &mut highest)?;
                continue;
            }
            bench.now += Duration::from_millis(rng.u64(0..4000));
            let name = names[rng.usize(0..4)];
            match rng.u32(0..10) {
                0 => drop(bench.leave(name)),
                // The process died and starts anew: it knows nothing.
                1 => drop(bench.owned.remove(name)),
                _ => check_answer(&bench.beat(name), name, &mut highest)?,
            }
        }
        let held: Vec<usize> = names
            .iter()
            .map(|name| (0..count).filter(|queue| bench.owner(*queue) == Some(*name)).count())
            .collect();
        prop_assert_eq!(held.iter().sum::<usize>(), count as usize, "every queue has an owner: {:?}", held);
        let living = &held[..3];
        prop_assert!(living.iter().max().unwrap() - living.iter().min().unwrap() <= 1, "{:?}", held);
    }
}

/// What one member is told, against what any member was told before.
fn check_answer(
    answer: &HeartbeatResponse,
    name: &str,
    highest: &mut BTreeMap<u32, (OwnerEpoch, String)>,
) -> Result<(), TestCaseError> {
    for assigned in &answer.assigned {
        let known = highest
            .entry(assigned.queue.0)
            .or_insert_with(|| (assigned.epoch, name.to_owned()));
        prop_assert!(assigned.epoch >= known.0, "an epoch went back");
        if assigned.epoch == known.0 {
            prop_assert_eq!(&known.1, name, "one epoch, one owner");
        }
        *known = (assigned.epoch, name.to_owned());
    }
    Ok(())
}
