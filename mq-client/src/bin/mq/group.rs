//! `mq group list | describe`.

use std::collections::BTreeSet;

use clap::Subcommand;
use mq_client::Client;
use mq_common::api::group::{GroupDescription, GroupMode};
use mq_common::ids::GroupName;

use crate::fail::{Failure, Outcome, all_answered};
use crate::output::{Output, Record};

/// What to do with consumer groups.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List all consumer groups with their lag.
    #[command(after_help = "Examples:\n  mq group list\n  mq --output json group list")]
    List,
    /// Show the queues of a group: its cursor, the lag and the owner of each.
    #[command(after_help = "Example:\n  mq group describe billing")]
    Describe {
        /// The group.
        group: GroupName,
    },
}

/// Runs it.
pub(crate) async fn run(command: Command, client: &Client, output: &mut Output) -> Outcome {
    match command {
        Command::List => {
            let groups = client.admin().groups().await?;
            let names: BTreeSet<&GroupName> = groups.items.iter().map(|part| &part.group).collect();
            let records: Vec<Record> = names
                .into_iter()
                .map(|name| {
                    let parts: Vec<_> = groups.items.iter().filter(|part| part.group == *name).collect();
                    summary(name, &parts)
                })
                .collect();
            output.list(
                &records,
                "no groups; `mq consume TOPIC --group GROUP` creates one",
            )?;
            all_answered(&groups.silent)?;
        }
        Command::Describe { group } => {
            let parts = client.admin().describe_group(group.clone()).await?;
            if parts.items.is_empty() {
                all_answered(&parts.silent)?;
                return Err(Failure::new(format!(
                    "there is no group `{group}`; see `mq group list`"
                )));
            }
            output.list(&queues(&parts.items), "the group has no queues yet")?;
            all_answered(&parts.silent)?;
        }
    }
    Ok(())
}

const fn mode(mode: GroupMode) -> &'static str {
    match mode {
        GroupMode::Stream => "stream",
        _ => "unknown",
    }
}

/// One line for a group, from the descriptions of all brokers.
fn summary(name: &GroupName, parts: &[&GroupDescription]) -> Record {
    let members: BTreeSet<_> = parts.iter().flat_map(|part| &part.members).collect();
    let queues = || parts.iter().flat_map(|part| &part.queues);
    let lag: u64 = queues()
        .map(|queue| queue.end.0.saturating_sub(queue.cursor.0))
        .sum();
    let topics: BTreeSet<&str> = parts.iter().map(|part| part.topic.as_str()).collect();
    Record::new()
        .with("group", name.as_str())
        .with("topic", topics.into_iter().collect::<Vec<_>>().join(","))
        .with("mode", parts.first().map(|part| mode(part.mode)))
        .with("members", members.len())
        .with("queues", queues().count())
        .with("lag", lag)
}

fn queues(parts: &[GroupDescription]) -> Vec<Record> {
    let mut rows: Vec<_> = parts
        .iter()
        .flat_map(|part| part.queues.iter().map(move |queue| (part, queue)))
        .collect();
    rows.sort_by_key(|(_, queue)| queue.queue);
    let row = |(part, queue): (&GroupDescription, &mq_common::api::group::GroupQueue)| {
        Record::new()
            .with("group", part.group.as_str())
            .with("topic", part.topic.as_str())
            .with("queue", queue.queue.0)
            .with("cursor", queue.cursor.0)
            .with("end", queue.end.0)
            .with("lag", queue.end.0.saturating_sub(queue.cursor.0))
            .with("owner", queue.owner.as_ref().map(ToString::to_string))
            .with("expired_unread", queue.expired_unread)
    };
    rows.into_iter().map(row).collect()
}
