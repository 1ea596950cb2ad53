//! `queue_stat.txt`: statistics of a queue's files, for people. No program reads it.

use std::io::{self, IoSlice};

use mq_common::ids::Offset;

use super::View;
use crate::store::disk::{Mode, write_all_at};
use crate::store::{Folder, layout};

/// Rewrites the statistics of a queue's segments; `start` is the first offset that is still valid.
pub(in super::super) fn write(folder: &Folder, segments: &[View], start: Offset) -> io::Result<()> {
    let Some(first) = segments.first() else {
        return Ok(());
    };
    let path = layout::queue_stat_file(folder.path(), &first.name);
    let disk = folder.disk();
    let file = match disk.open(&path, Mode::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => disk.open(&path, Mode::CreateNew)?,
        opened => opened?,
    };
    let text = text(segments, start);
    write_all_at(&*file, &mut [IoSlice::new(text.as_bytes())], 0)?;
    file.set_bytes(text.len() as u64)
}

fn text(segments: &[View], start: Offset) -> String {
    let messages = |from: Offset| -> u64 {
        segments
            .iter()
            .map(|view| view.segment.end.0.saturating_sub(view.first.max(from).0))
            .sum()
    };
    let bytes: u64 = segments.iter().map(|view| u64::from(view.segment.bytes)).sum();
    let (first, end) = segments
        .first()
        .zip(segments.last())
        .map_or_else(Default::default, |(first, last)| (first.first, last.segment.end));
    let lines = [
        ("segments", segments.len() as u64),
        ("messages", messages(Offset(0))),
        ("valid_messages", messages(start)),
        ("bytes", bytes),
        ("first_offset", first.0),
        ("last_offset", end.0.saturating_sub(1)),
    ];
    lines.map(|(name, value)| format!("{name} {value}\n")).concat()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mq_common::ids::{QueueNumber, TopicId, TopicName};

    use super::super::{FileSegment, QueueName};
    use super::*;
    use crate::ids::QueueKey;

    #[test]
    fn what_lies_below_the_start_is_not_valid() {
        let view = |first, end| View {
            queue: QueueKey(1),
            first: Offset(first),
            generation: 0,
            segment: FileSegment {
                end: Offset(end),
                bytes: 1000,
                planned_bytes: 1 << 20,
            },
            name: QueueName {
                topic: Arc::new(TopicName::new("t").unwrap()),
                topic_id: TopicId(1),
                number: QueueNumber(0),
            },
        };
        assert_eq!(
            text(&[view(10, 20), view(20, 50)], Offset(25)),
            "segments 2\nmessages 40\nvalid_messages 25\nbytes 2000\nfirst_offset 10\nlast_offset 49\n"
        );
    }
}
