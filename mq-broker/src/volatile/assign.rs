//! Assigns the queues of a `stream` group to its members, on one broker, without asking the others. Pure.
//!
//! All queues of the topic are numbered consecutively: shard by shard in the order of the declared list, by
//! number within a shard. The target of the queue at place p is member `p mod m` of the m sorted members, and
//! a member's *share* here is how many of this broker's queues have it as target. Two things follow. On every
//! broker shares differ by at most one; and because the numbering continues from broker to broker, so do the
//! sums over all brokers, although each decides alone. A queue moves only when its owner is gone or holds
//! more than its share, so a change moves as few queues as possible.

/// The holder of a queue. Members are indexes into the sorted list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// No member: it can be granted.
    Free,
    /// A member.
    Owned(usize),
    /// A member that was asked to give it back.
    Revoking,
}

/// What to do. Indexes of queues are those of the list that was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Queues to ask back.
    pub revoke: Vec<usize>,
    /// Queues to grant, and to which member.
    pub grant: Vec<(usize, usize)>,
}

/// Plans for the queues of one broker, in order of their numbers; `first_place` is the place of the first of
/// them among all the topic's queues.
#[must_use]
pub fn plan(first_place: usize, queues: &[Holding], members: usize) -> Plan {
    let mut plan = Plan::default();
    if members == 0 {
        return plan;
    }
    let target = |queue: usize| (first_place + queue) % members;
    let mut room = vec![0_usize; members];
    for queue in 0..queues.len() {
        room[target(queue)] += 1;
    }
    let mut excess = vec![0_usize; members];
    for holding in queues {
        if let Holding::Owned(member) = *holding {
            if room[member] > 0 {
                room[member] -= 1;
            } else {
                excess[member] += 1;
            }
        }
    }
    // First give up queues whose target is another member, from the last queue on.
    for foreign in [true, false] {
        for (queue, holding) in queues.iter().enumerate().rev() {
            if let Holding::Owned(member) = *holding
                && excess[member] > 0
                && (target(queue) != member) == foreign
            {
                excess[member] -= 1;
                plan.revoke.push(queue);
            }
        }
    }
    plan.revoke.sort_unstable();
    let mut left = Vec::new();
    for (queue, holding) in queues.iter().enumerate() {
        if *holding == Holding::Free {
            let member = target(queue);
            if room[member] > 0 {
                room[member] -= 1;
                plan.grant.push((queue, member));
            } else {
                left.push(queue);
            }
        }
    }
    // The target already holds its share: any member below its share will do, so take the first one.
    let mut member = 0;
    for queue in left {
        while room[member] == 0 {
            member += 1;
        }
        room[member] -= 1;
        plan.grant.push((queue, member));
    }
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Plans until nothing changes, with every revoked queue given back at once; answers with owners and
    /// moves.
    fn settle(first_place: usize, queues: &mut [Holding], members: usize) -> usize {
        let mut moves = 0;
        for _ in 0..3 {
            let plan = plan(first_place, queues, members);
            for queue in plan.revoke {
                queues[queue] = Holding::Free;
                moves += 1;
            }
            for (queue, member) in plan.grant {
                assert_eq!(queues[queue], Holding::Free, "a granted queue has no owner");
                queues[queue] = Holding::Owned(member);
            }
        }
        moves
    }

    fn held(queues: &[Holding], members: usize) -> Vec<usize> {
        (0..members)
            .map(|member| {
                queues
                    .iter()
                    .filter(|holding| **holding == Holding::Owned(member))
                    .count()
            })
            .collect()
    }

    #[test]
    fn fresh_group_gets_each_queue_at_its_target() {
        let plan = plan(0, &[Holding::Free; 5], 2);
        assert_eq!(plan.grant, [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]);
        assert!(plan.revoke.is_empty());
    }

    #[test]
    fn without_members_nothing_is_granted() {
        assert_eq!(plan(3, &[Holding::Free; 5], 0), Plan::default());
    }

    #[test]
    fn third_member_gets_a_queue_of_four() {
        let mut queues = [
            Holding::Owned(0),
            Holding::Owned(1),
            Holding::Owned(0),
            Holding::Owned(1),
        ];
        assert_eq!(settle(0, &mut queues, 3), 1, "one queue moves, not more");
        assert_eq!(held(&queues, 3), [2, 1, 1]);
    }

    #[test]
    fn queue_asked_back_is_not_granted_before_it_is_free() {
        let plan = plan(0, &[Holding::Owned(0), Holding::Revoking], 2);
        assert_eq!(plan, Plan::default());
    }

    #[test]
    fn brokers_with_one_queue_each_spread_over_all_members() {
        let mut total = [0; 4];
        for broker in 0..4 {
            // One member had it before the others came.
            let mut queues = [Holding::Owned(0)];
            settle(broker, &mut queues, 4);
            for (member, count) in held(&queues, 4).into_iter().enumerate() {
                total[member] += count;
            }
        }
        assert_eq!(total, [1, 1, 1, 1]);
    }

    proptest! {
        #[test]
        fn shares_are_even_and_moves_are_few(
            shards in proptest::collection::vec(proptest::collection::vec(0..12_usize, 0..40), 1..5),
            members in 1..10_usize,
        ) {
            let mut total = vec![0; members];
            let mut first_place = 0;
            for owners in &shards {
                let mut queues: Vec<Holding> = owners
                    .iter()
                    .map(|owner| if *owner < members { Holding::Owned(*owner) } else { Holding::Free })
                    .collect();
                let before = queues.clone();
                let moved = settle(first_place, &mut queues, members);
                let counts = held(&queues, members);
                prop_assert_eq!(counts.iter().sum::<usize>(), queues.len(), "each queue has one owner");
                let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                prop_assert!(most - least <= 1, "balanced on the broker: {:?}", counts);
                // No assignment with these shares moves less: only what is held beyond the share moved.
                let excess: usize = held(&before, members)
                    .iter()
                    .zip(&counts)
                    .map(|(before, share)| before.saturating_sub(*share))
                    .sum();
                prop_assert_eq!(moved, excess);
                prop_assert_eq!(plan(first_place, &queues, members), Plan::default(), "stable");
                for (member, count) in counts.into_iter().enumerate() {
                    total[member] += count;
                }
                first_place += owners.len();
            }
            prop_assert!(total.iter().max().unwrap() - total.iter().min().unwrap() <= 1, "balanced over all brokers");
        }
    }
}
