//! Names of files and folders in the data folder. They are known only here.

use std::path::{Path, PathBuf};

use mq_common::ids::{Offset, TopicName};

use super::{QueueName, SegmentId};

const QUEUE_STAT: &str = "queue_stat.txt";

/// The lock file: the process that has locked it owns the folder.
#[must_use]
pub fn lock_file(data: &Path) -> PathBuf {
    data.join("lock")
}

/// The checkpoint's database.
#[must_use]
pub fn checkpoint_file(data: &Path) -> PathBuf {
    data.join("state.db")
}

/// A marker that exists while a backup is being restored into the folder, and after a restore that was
/// interrupted.
#[must_use]
pub fn restoring_file(data: &Path) -> PathBuf {
    data.join("restoring")
}

/// The folder of the journal's segments.
#[must_use]
pub fn journal_folder(data: &Path) -> PathBuf {
    data.join("journal")
}

/// The folder of the queue files.
#[must_use]
pub fn queues_folder(data: &Path) -> PathBuf {
    data.join("queues")
}

/// The name of the folder in it for the topic of this queue.
#[must_use]
pub fn topic_folder_name(name: &QueueName) -> String {
    format!("{}-{}", name.topic, name.topic_id)
}

/// The folder of a queue's files.
#[must_use]
pub fn queue_folder(data: &Path, name: &QueueName) -> PathBuf {
    queues_folder(data)
        .join(topic_folder_name(name))
        .join(name.number.to_string())
}

/// The batches of a queue from this offset on: 20 digits, so that names sort as numbers, followed by the
/// generation if it is not 0.
#[must_use]
pub fn queue_data_file(data: &Path, name: &QueueName, first: Offset, generation: u32) -> PathBuf {
    queue_folder(data, name).join(numbered("queue_data", first, generation))
}

/// The index of that file.
#[must_use]
pub fn queue_index_file(data: &Path, name: &QueueName, first: Offset, generation: u32) -> PathBuf {
    queue_folder(data, name).join(numbered("queue_index", first, generation))
}

fn numbered(what: &str, first: Offset, generation: u32) -> String {
    match generation {
        0 => format!("{what}.{:020}", first.0),
        _ => format!("{what}.{:020}.{generation}", first.0),
    }
}

/// The statistics of a queue's files, for people.
#[must_use]
pub fn queue_stat_file(data: &Path, name: &QueueName) -> PathBuf {
    queue_folder(data, name).join(QUEUE_STAT)
}

/// Whether a folder name could come from [`topic_folder_name`].
#[must_use]
pub fn is_topic_folder(name: &str) -> bool {
    let parts = name.rsplit_once('-');
    parts.is_some_and(|(topic, id)| TopicName::new(topic).is_ok() && is_number(id))
}

/// Whether a folder name is that of a queue in a topic's folder.
#[must_use]
pub fn is_queue_folder(name: &str) -> bool {
    is_number(name)
}

/// Whether a file name is one of those in a queue's folder.
#[must_use]
pub fn is_of_a_queue(name: &str) -> bool {
    parse_queue_file(name).is_some() || name == QUEUE_STAT
}

/// As it is written.
fn is_number(text: &str) -> bool {
    text.parse::<u64>().is_ok_and(|number| number.to_string() == text)
}

/// The first offset and the generation in the name of a queue file or of its index.
#[must_use]
pub fn parse_queue_file(name: &str) -> Option<(Offset, u32)> {
    let numbers = name
        .strip_prefix("queue_data.")
        .or_else(|| name.strip_prefix("queue_index."))?;
    let (digits, generation) = match numbers.split_once('.') {
        Some((digits, generation)) => (digits, Some(generation)),
        None => (numbers, None),
    };
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if digits.len() != 20 || !is_number(digits) {
        return None;
    }
    let generation = match generation {
        Some(text) if is_number(text) && !text.starts_with('0') => text.parse().ok()?,
        Some(_) => return None,
        None => 0,
    };
    digits.parse().ok().map(|first| (Offset(first), generation))
}

/// A segment's file: 16 hex digits, so that names sort as numbers.
#[must_use]
pub fn segment_file(data: &Path, segment: SegmentId) -> PathBuf {
    journal_folder(data).join(format!("{:016x}.journal", segment.0))
}

/// The segment whose file in the journal folder has this name, if any.
#[must_use]
pub fn parse_segment(name: &str) -> Option<SegmentId> {
    parse_digits(name.strip_suffix(".journal")?).map(SegmentId)
}

/// A segment that is being filled with zeros, or the ready one with that number.
#[must_use]
pub fn spare_file(data: &Path, number: u64, ready: bool) -> PathBuf {
    let state = if ready { "spare" } else { "filling" };
    journal_folder(data).join(format!("{number:016x}.{state}"))
}

/// The number in the name of a spare in the journal folder, and whether the spare is ready.
#[must_use]
pub fn parse_spare(name: &str) -> Option<(u64, bool)> {
    let (digits, ready) = match name.strip_suffix(".spare") {
        Some(digits) => (digits, true),
        None => (name.strip_suffix(".filling")?, false),
    };
    parse_digits(digits).map(|number| (number, ready))
}

fn parse_digits(digits: &str) -> Option<u64> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if digits.len() != 16 || !digits.bytes().all(lower) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_names_sort_as_numbers_and_come_back() {
        let data = Path::new("d");
        for id in [1, 255, 256, u64::MAX] {
            let path = segment_file(data, SegmentId(id));
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(parse_segment(name), Some(SegmentId(id)));
        }
        for name in [
            "1.journal",
            "000000000000000A.journal",
            "0000000000000001.spare",
            "+000000000000001.journal",
        ] {
            assert_eq!(parse_segment(name), None);
        }
    }

    #[test]
    fn queue_file_names_say_first_offset_and_generation_and_come_back() {
        for first in [0, 42, u64::MAX].map(Offset) {
            for generation in [0, 1, 10, u32::MAX] {
                for what in ["queue_data", "queue_index"] {
                    let name = numbered(what, first, generation);
                    assert_eq!(parse_queue_file(&name), Some((first, generation)), "{name}");
                }
            }
        }
        assert_eq!(
            numbered("queue_data", Offset(42), 0),
            "queue_data.00000000000000000042"
        );
        for name in [
            "queue_data.42",
            "queue_data.99999999999999999999",
            "queue_data.00000000000000000042.",
            "queue_data.00000000000000000042.0",
            "queue_data.00000000000000000042.01",
            "queue_data.00000000000000000042.+1",
            "queue_data.00000000000000000042.4294967296",
            "queue_data.00000000000000000042.1.1",
            "queue_stat.txt",
        ] {
            assert_eq!(parse_queue_file(name), None, "{name}");
        }
    }
}
