//! Commands as text for `dump`.

use crate::state::command::{Command, Part};

/// One line that tells what a command does.
pub(super) fn words(command: &Command) -> String {
    match command {
        Command::Append(part) => format!("append to {}", of_part(part)),
        Command::CreateTopic(topic) => {
            format!("create topic {} with {} queues", topic.name, topic.homes.len())
        }
        Command::AdoptTopic {
            declaration: topic, ..
        } => format!(
            "adopt topic {} {} version {}{}",
            topic.name,
            topic.id,
            topic.version,
            if topic.deleted { ", deleted" } else { "" }
        ),
        Command::DeleteTopic { name, .. } => format!("delete topic {name}"),
        Command::SendHalf(half) => {
            let parts: Vec<String> = half.parts.iter().map(of_part).collect();
            format!("half messages of {}: {}", half.producer_group, parts.join("; "))
        }
        Command::MoveHalf { number, parts } => {
            let parts: Vec<String> = parts.iter().map(of_part).collect();
            format!(
                "half messages of transaction {number}, moved: {}",
                parts.join("; ")
            )
        }
        Command::EndTransaction { number, decision } => format!("end transaction {number}: {decision:?}"),
        Command::CountChecks { numbers } => format!("count a check-back of {} transactions", numbers.len()),
        Command::ResumeTransaction { number } => format!("resume transaction {number}"),
        Command::CreateGroup(group) => format!("create group {} of topic {}", group.name, group.topic),
        Command::Progress { acks } => {
            let acks = acks.iter().map(|ack| {
                format!(
                    "group key {} in queue key {} to offset {}",
                    ack.group.0, ack.queue.0, ack.next
                )
            });
            format!("progress: {}", acks.collect::<Vec<_>>().join("; "))
        }
        Command::Trim { starts } => {
            let starts = starts
                .iter()
                .map(|(queue, start)| format!("queue key {} starts at {start}", queue.0));
            format!("trim: {}", starts.collect::<Vec<_>>().join("; "))
        }
        Command::AlterTopic(topic) => format!(
            "alter topic {} version {}: {} queues",
            topic.name,
            topic.version,
            topic.homes.len()
        ),
    }
}

fn of_part(part: &Part) -> String {
    format!(
        "queue key {}: {} records, {} bytes",
        part.queue.0, part.records, part.bytes
    )
}
