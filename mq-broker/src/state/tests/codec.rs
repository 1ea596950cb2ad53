//! Commands as bytes: golden file, round trip, arbitrary bytes.

use proptest::prelude::*;

use super::*;
use crate::state::command::{DecodeError, VERSION, VERSION_WITH_COMPACT, VERSION_WITH_SETTINGS};

/// One of each kind, with the edges of its fields.
fn samples() -> Vec<(&'static str, Command)> {
    let mut samples = topic_samples();
    samples.extend(other_samples());
    samples.extend(later_samples());
    samples.extend(retention_samples());
    samples.extend(compact_samples());
    samples.extend(move_samples());
    samples
}

/// Kinds that came after the first golden file.
fn later_samples() -> Vec<(&'static str, Command)> {
    vec![(
        "resume_transaction",
        Command::ResumeTransaction {
            number: TransactionNumber(0x0102_0304_0506_0708),
        },
    )]
}

/// What came with retention.
fn retention_samples() -> Vec<(&'static str, Command)> {
    let mut list = declaration("orders", 0x0102_0304_0506_0708, &["a", "b"]);
    list.settings = TopicSettings {
        retention_ms: Some(604_800_000),
        retention_bytes: Some(1 << 30),
        consumed: true,
        hold_ms: Some(2_592_000_000),
        message_bytes_max: Some(65_536),
        compact: false,
    };
    let mut altered = list.clone();
    (altered.version, altered.settings) = (3, TopicSettings::of_new_topic());
    let mut forever = altered.clone();
    forever.settings = TopicSettings::default();
    let starts = vec![(QueueKey(1), Offset(1000)), (QueueKey(9), Offset(u64::MAX))];
    vec![
        ("trim", Command::Trim { starts }),
        ("create_topic_with_settings", Command::CreateTopic(list.clone())),
        (
            "adopt_with_settings",
            Command::AdoptTopic {
                declaration: list,
                drop_transactions: false,
            },
        ),
        ("alter_topic", Command::AlterTopic(altered)),
        ("alter_topic_forever", Command::AlterTopic(forever)),
    ]
}

/// What came with topics that compact.
fn compact_samples() -> Vec<(&'static str, Command)> {
    let mut list = declaration("orders", 0x0102_0304_0506_0708, &["a", "b"]);
    list.settings.compact = true;
    let mut altered = list.clone();
    (altered.version, altered.settings.retention_ms) = (3, Some(604_800_000));
    vec![
        ("create_topic_that_compacts", Command::CreateTopic(list.clone())),
        (
            "adopt_that_compacts",
            Command::AdoptTopic {
                declaration: list,
                drop_transactions: false,
            },
        ),
        ("alter_topic_to_compact", Command::AlterTopic(altered)),
    ]
}

/// What came with half messages that are moved.
fn move_samples() -> Vec<(&'static str, Command)> {
    let parts = vec![part(QueueKey(1), 1), part(QueueKey(9), 2)];
    vec![(
        "move_half",
        Command::MoveHalf {
            number: TransactionNumber(0x0102_0304_0506_0708),
            parts,
        },
    )]
}

fn topic_samples() -> Vec<(&'static str, Command)> {
    let mut list = declaration("orders", 0x0102_0304_0506_0708, &["a", "b", "a"]);
    let adopted = |version, deleted, durability| {
        let mut list = list.clone();
        (list.version, list.deleted, list.durability) = (version, deleted, durability);
        list
    };
    let tombstone = adopted(7, true, Durability::Memory);
    let replicated = adopted(1, false, Durability::ReplicatedFsynced(3));
    list.durability = Durability::Fsynced;
    vec![
        ("create_topic", Command::CreateTopic(list)),
        (
            "adopt_tombstone",
            Command::AdoptTopic {
                declaration: tombstone,
                drop_transactions: true,
            },
        ),
        (
            "adopt_replicated",
            Command::AdoptTopic {
                declaration: replicated,
                drop_transactions: false,
            },
        ),
        (
            "delete_topic",
            Command::DeleteTopic {
                name: topic_name("orders"),
                drop_transactions: false,
            },
        ),
    ]
}

fn other_samples() -> Vec<(&'static str, Command)> {
    vec![
        (
            "append",
            Command::Append(Part {
                queue: QueueKey(1),
                records: 2,
                bytes: 300,
            }),
        ),
        (
            "send_half",
            half(
                None,
                0x1122_3344_5566_7788,
                &[part(QueueKey(1), 1), part(QueueKey(9), 2)],
            ),
        ),
        (
            "send_half_with_key",
            half(Some("order-17"), 1, &[part(QueueKey(0), 1)]),
        ),
        ("commit", end(TransactionNumber(5), Decision::Commit)),
        ("rollback", end(TransactionNumber(u64::MAX), Decision::Rollback)),
        ("unknown", end(TransactionNumber(0), Decision::Unknown)),
        (
            "count_checks",
            Command::CountChecks {
                numbers: vec![TransactionNumber(1), TransactionNumber(2)],
            },
        ),
        (
            "create_group",
            Command::CreateGroup(CreateGroup {
                name: group_name("billing"),
                topic: topic_name("orders"),
                mode: GroupMode::Stream,
                cursors: vec![(QueueKey(3), Offset(1000))],
            }),
        ),
        (
            "progress",
            Command::Progress {
                acks: vec![Ack {
                    group: GroupKey(1),
                    queue: QueueKey(2),
                    next: Offset(3),
                }],
            },
        ),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn bytes_are_those_of_the_golden_file() {
    let golden = [
        include_str!("golden/commands.txt"),
        include_str!("golden/commands_resume.txt"),
        include_str!("golden/commands_retention.txt"),
        include_str!("golden/commands_compact.txt"),
        include_str!("golden/commands_move.txt"),
    ]
    .concat();
    let lines: Vec<String> = samples()
        .iter()
        .map(|(name, command)| format!("{name} {}", hex(&command.encode())))
        .collect();
    let expected: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines, expected);
}

#[test]
fn every_kind_reads_back() {
    for (name, command) in samples() {
        assert_eq!(Command::decode(&command.encode()), Ok(command), "{name}");
    }
}

#[test]
fn cut_or_longer_bytes_are_refused() {
    for (name, command) in samples() {
        let bytes = command.encode();
        for length in 0..bytes.len() {
            assert!(
                Command::decode(&bytes[..length]).is_err(),
                "{name} cut to {length}"
            );
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(Command::decode(&longer), Err(DecodeError::Trailing(1)), "{name}");
    }
}

#[test]
fn other_version_and_unknown_kind_are_refused() {
    assert_eq!(Command::decode(&[4, 2]), Err(DecodeError::Version(4)));
    // Versions 2 and 3 have settings, and an append has none.
    assert_eq!(Command::decode(&[2, 1]), Err(DecodeError::Version(2)));
    assert_eq!(Command::decode(&[3, 1]), Err(DecodeError::Version(3)));
    assert_eq!(Command::decode(&[VERSION, 200]), Err(DecodeError::Kind(200)));
}

#[test]
fn count_beyond_the_bytes_is_refused_before_anything_is_allocated() {
    let bytes = [VERSION, 7, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(Command::decode(&bytes), Err(DecodeError::Truncated("numbers")));
}

#[test]
fn home_that_is_not_in_the_list_of_shards_is_refused() {
    let mut list = declaration("t", 1, &["a", "b"]);
    list.shards.pop();
    let bytes = Command::CreateTopic(list).encode();
    assert_eq!(Command::decode(&bytes), Err(DecodeError::Invalid("home")));
}

#[test]
fn settings_that_make_no_sense_or_say_nothing_are_refused() {
    let mut list = declaration("t", 1, &["a"]);
    list.settings = TopicSettings::of_new_topic();
    let bytes = Command::CreateTopic(list).encode();
    let settings = bytes.len() - 29;
    let mut nothing = bytes.to_vec();
    nothing[settings..].fill(0);
    let mut beyond = bytes.to_vec();
    beyond[settings..settings + 8].fill(0xff);
    for wrong in [nothing, beyond] {
        assert_eq!(Command::decode(&wrong), Err(DecodeError::Invalid("settings")));
    }
}

#[test]
fn version_3_that_does_not_compact_and_one_that_is_consumed_too_are_refused() {
    let mut list = declaration("t", 1, &["a"]);
    list.settings.compact = true;
    let bytes = Command::CreateTopic(list).encode();
    let end = bytes.len();
    let mut not = bytes.to_vec();
    not[end - 1] = 0;
    assert_eq!(Command::decode(&not), Err(DecodeError::Invalid("compact")));
    let mut both = bytes.to_vec();
    both[end - 30 + 16] = 1;
    assert_eq!(Command::decode(&both), Err(DecodeError::Invalid("settings")));
}

#[test]
fn append_takes_fourteen_bytes() {
    assert_eq!(Command::Append(part(QueueKey(1), 1)).encode().len(), 14);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(Command::decode(&bytes));
        let mut marked = bytes;
        if marked.len() > 2 {
            for version in [VERSION, VERSION_WITH_SETTINGS, VERSION_WITH_COMPACT] {
                (marked[0], marked[1]) = (version, marked[1] % 14);
                drop(Command::decode(&marked));
            }
        }
    }

    #[test]
    fn damaged_command_is_refused_or_another_command(index in 0..23_usize, at in any::<usize>(), flip in 1..=255_u8) {
        let (_, command) = samples().remove(index);
        let mut bytes = command.encode().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        prop_assert_ne!(Command::decode(&bytes), Ok(command));
    }
}
