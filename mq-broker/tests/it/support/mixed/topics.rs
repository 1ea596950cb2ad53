//! Topics that come, are filled and altered, and go with their messages; their names come again.

use fastrand::Rng;
use mq_common::ErrorCode;
use mq_common::api::TopicSettings;
use mq_common::api::admin::{AlterTopicRequest, DeleteTopicRequest, QueueHome};
use mq_common::ids::{Durability, QueueNumber};

use super::consumers;
use super::ledger::{Known, Topic, Version, now};
use super::load::{Answer, Load, expect};
use super::value::Made;
use crate::support::topic;

/// Names of one maker.
const NAMES: u32 = 6;
/// Topics of one maker at a time.
const ALIVE: usize = 3;

/// Makes a topic; `false` = the broker is gone.
pub(super) async fn create(
    load: &Load,
    name: &str,
    queues: u32,
    durability: Durability,
    settings: TopicSettings,
) -> bool {
    let number = load.with(|ledger| {
        let is_new = ledger.topics.iter().all(|topic| topic.name != name);
        ledger.topics.push(Topic {
            name: name.to_owned(),
            durability,
            asked: now(),
            id: Known::Unknown,
            versions: vec![Version {
                asked: now(),
                known: Known::Unknown,
                number: u64::from(is_new),
                queues,
                settings,
            }],
            deletion: None,
        });
        ledger.topics.len() - 1
    });
    let name = topic(name);
    let call = load
        .client
        .try_create_topic(&name, queues, durability, Some(settings));
    let (answer, goes_on) = match load.answer(call).await {
        Answer::Done(made) => (Known::There(now(), made), true),
        Answer::Refused(error) => panic!("`{name}` is not made: {error}"),
        Answer::NotSent => (Known::Nothing, false),
        Answer::Unknown => (Known::Unknown, false),
    };
    load.with(|ledger| {
        let topic = &mut ledger.topics[number];
        match answer {
            Known::There(at, made) => {
                topic.id = Known::There(at, made.id);
                topic.versions[0].known = Known::There(at, ());
                topic.versions[0].number = made.version;
            }
            Known::Nothing => topic.id = Known::Nothing,
            Known::Unknown => {}
        }
    });
    goes_on
}

/// Makes topics, fills, alters and deletes them.
pub(super) async fn come_and_go(load: Load, mut random: Rng, maker: &str) {
    while load.goes_on() {
        let mine: Vec<usize> = load.with(|ledger| {
            let alive = ledger.topics.iter().enumerate();
            let mine =
                alive.filter(|(_, topic)| topic.is_alive() && topic.name.starts_with(&format!("{maker}-")));
            mine.map(|(number, _)| number).collect()
        });
        let goes_on = match (random.u8(..10), random.choice(&mine).copied()) {
            (0..3, _) | (_, None) if mine.len() < ALIVE => make(&load, &mut random, maker).await,
            (0..8, Some(number)) => fill(&load, &mut random, number).await,
            (8, Some(number)) => alter(&load, &mut random, number).await,
            (_, Some(number)) => delete(&load, number).await,
            (_, None) => true,
        };
        if !goes_on {
            return;
        }
        load.pause(&mut random, 0..10).await;
    }
}

fn settings(random: &mut Rng) -> TopicSettings {
    let kept = TopicSettings::default();
    let all = [
        kept,
        TopicSettings {
            retention_bytes: Some(100_000),
            ..kept
        },
        TopicSettings {
            retention_ms: Some(500),
            ..kept
        },
        TopicSettings {
            retention_ms: Some(100),
            retention_bytes: Some(50_000),
            hold_ms: Some(1_000),
            ..kept
        },
        TopicSettings {
            consumed: true,
            ..kept
        },
        TopicSettings {
            compact: true,
            ..kept
        },
        TopicSettings {
            compact: true,
            retention_bytes: Some(100_000),
            ..kept
        },
    ];
    all[random.usize(..all.len())]
}

/// A new topic, perhaps of a name that was used before, and perhaps with a group.
async fn make(load: &Load, random: &mut Rng, maker: &str) -> bool {
    let name = format!("{maker}-{}", random.u32(..NAMES));
    let is_free = load.with(|ledger| {
        let named = ledger.topics.iter().filter(|topic| topic.name == name);
        named.clone().all(|topic| {
            let is_deleted = topic.deletion.is_some_and(|(_, answered)| answered.is_some());
            is_deleted || topic.id == Known::Nothing
        })
    });
    if !is_free {
        return true;
    }
    let durability = [Durability::Memory, Durability::Fsynced][random.usize(..2)];
    let queues = random.u32(1..3);
    if !create(load, &name, queues, durability, settings(random)).await {
        return false;
    }
    if random.bool() {
        return true;
    }
    let number = load.with(|ledger| ledger.topics.len());
    consumers::join(load, &format!("of-{name}-{number}"), &name).await
}

async fn fill(load: &Load, random: &mut Rng, number: usize) -> bool {
    let queues = load.with(|ledger| ledger.topics[number].queues());
    for _ in 0..random.usize(1..8) {
        let made = (0..random.usize(1..4)).map(|_| {
            let bytes = random.usize(100..20_000);
            Made::any(random, bytes)
        });
        let made: Vec<Made> = made.collect();
        if !load.send((number, random.u32(..queues)), &made, None).await {
            return false;
        }
    }
    true
}

/// Other settings, and perhaps one more queue.
async fn alter(load: &Load, random: &mut Rng, number: usize) -> bool {
    let name = load.with(|ledger| topic(&ledger.topics[number].name));
    let described = load
        .answer(load.client.admin.describe_topic(name).into_future())
        .await;
    let mut wanted = match described {
        Answer::Done(described) => described.topic,
        Answer::Refused(error) => panic!("a topic that is there: {error}"),
        Answer::NotSent | Answer::Unknown => return false,
    };
    wanted.settings = settings(random);
    let count = u32::try_from(wanted.queues.len()).unwrap();
    if count < 4 && random.bool() {
        let shard = wanted.queues[0].shard.clone();
        let queue = QueueNumber(count);
        wanted.queues.push(QueueHome { queue, shard });
    }
    let at = load.with(|ledger| {
        let versions = &mut ledger.topics[number].versions;
        versions.push(Version {
            asked: now(),
            known: Known::Unknown,
            number: wanted.version + 1,
            queues: u32::try_from(wanted.queues.len()).unwrap(),
            settings: wanted.settings,
        });
        versions.len() - 1
    });
    let request = AlterTopicRequest { topic: wanted };
    let answer = load
        .answer(load.client.admin.alter_topic(request).into_future())
        .await;
    let (known, goes_on) = match &answer {
        Answer::Done(altered) => (Known::There(now(), altered.version), true),
        Answer::Refused(error) => panic!("nobody else alters it: {error}"),
        Answer::NotSent => (Known::Nothing, false),
        Answer::Unknown => (Known::Unknown, false),
    };
    load.with(|ledger| {
        let version = &mut ledger.topics[number].versions[at];
        match known {
            // Nothing was to be changed: it is the version of before.
            Known::There(at, number) => {
                version.known = Known::There(at, ());
                version.number = number;
            }
            Known::Nothing => version.known = Known::Nothing,
            Known::Unknown => {}
        }
    });
    goes_on
}

async fn delete(load: &Load, number: usize) -> bool {
    let name = load.with(|ledger| {
        let topic = &mut ledger.topics[number];
        topic.deletion = Some((now(), None));
        topic.name.clone()
    });
    let request = DeleteTopicRequest {
        name: topic(&name),
        identity: None,
        drop_transactions: false,
    };
    let answer = load
        .answer(load.client.admin.delete_topic(request).into_future())
        .await;
    let deletion = |deletion| load.with(|ledger| ledger.topics[number].deletion = deletion);
    match answer {
        Answer::Done(_) => {
            let asked = load.with(|ledger| ledger.topics[number].deletion);
            deletion(asked.map(|(asked, _)| (asked, Some(now()))));
            true
        }
        Answer::Refused(error) => {
            expect(&error, &[ErrorCode::OpenTransactions]);
            deletion(None);
            true
        }
        Answer::NotSent => {
            deletion(None);
            false
        }
        Answer::Unknown => false,
    }
}

/// Deletes all topics that came and went.
pub(crate) async fn delete_all(load: &Load) {
    let others: Vec<usize> = load.with(|ledger| {
        let topics = ledger.topics.iter().enumerate();
        let others = topics.filter(|(_, topic)| topic.is_alive() && topic.name.contains('-'));
        others.map(|(number, _)| number).collect()
    });
    for number in others {
        assert!(delete(load, number).await, "the broker is gone");
    }
}
