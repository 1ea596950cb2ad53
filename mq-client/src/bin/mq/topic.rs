//! `mq topic create | list | describe | delete`.

use clap::Subcommand;
use mq_client::{Admin, Client};
use mq_common::api::admin::Topic;
use mq_common::ids::{Durability, TopicName};
use mq_common::limits::TOPIC_QUEUES_MAX;

use crate::fail::{Outcome, all_answered};
use crate::output::{Output, Record};

/// What to do with topics.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a topic. Repeating it with the same properties is harmless.
    #[command(
        after_help = "Examples:\n  mq topic create orders --queues 8\n  mq topic create clicks --queues 64 --durability memory"
    )]
    Create {
        /// Its name: 1 to 127 of A-Z a-z 0-9 . _ -
        name: TopicName,
        /// Message queues in all, dealt over the brokers.
        #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=i64::from(TOPIC_QUEUES_MAX)))]
        queues: u32,
        /// Least durability of a send: `fsynced` survives a power loss, `memory` a kill of the broker.
        #[arg(long, value_name = "L", default_value = "fsynced")]
        durability: Durability,
    },
    /// List all topics.
    #[command(after_help = "Examples:\n  mq topic list\n  mq --output json topic list")]
    List,
    /// Show the queues of a topic: where they lie and what they hold.
    #[command(after_help = "Example:\n  mq topic describe orders")]
    Describe {
        /// The topic.
        name: TopicName,
    },
    /// Delete a topic with all its messages.
    #[command(
        after_help = "Examples:\n  mq topic delete orders\n  mq topic delete orders --drop-transactions"
    )]
    Delete {
        /// The topic.
        name: TopicName,
        /// Drop its open transactions too; without this, they refuse the deletion.
        #[arg(long)]
        drop_transactions: bool,
    },
}

/// Runs it.
pub(crate) async fn run(command: Command, client: &Client, output: &mut Output) -> Outcome {
    let admin = client.admin();
    match command {
        Command::Create {
            name,
            queues,
            durability,
        } => {
            let topic = admin.create_topic(name, queues, Some(durability)).await?;
            output.list(&[summary(&topic)], "")?;
        }
        Command::List => {
            let topics = admin.topics().await?;
            let records: Vec<Record> = topics.items.iter().map(summary).collect();
            output.list(
                &records,
                "no topics; create one with `mq topic create NAME --queues 8`",
            )?;
            all_answered(&topics.silent)?;
        }
        Command::Describe { name } => describe(&admin, name, output).await?,
        Command::Delete {
            name,
            drop_transactions,
        } => {
            admin.delete_topic(name.clone(), drop_transactions).await?;
            let record = Record::new()
                .with("topic", name.as_str())
                .with("state", "deleted");
            output.list(&[record], "")?;
        }
    }
    Ok(())
}

fn summary(topic: &Topic) -> Record {
    let mut shards: Vec<String> = topic.queues.iter().map(|home| home.shard.to_string()).collect();
    shards.sort_unstable();
    shards.dedup();
    Record::new()
        .with("topic", topic.name.as_str())
        .with("queues", topic.queues.len())
        .with("durability", topic.durability.to_string())
        .with("shards", shards)
        .with("id", topic.id.0)
        .with("version", topic.version)
}

async fn describe(admin: &Admin, name: TopicName, output: &mut Output) -> Outcome {
    let found = admin.describe_topic(name).await?;
    let Some(described) = found.items.first() else {
        return all_answered(&found.silent);
    };
    let topic = &described.topic;
    let records: Vec<Record> = topic
        .queues
        .iter()
        .map(|home| {
            let found = described.queues.iter().find(|queue| queue.queue == home.queue);
            Record::new()
                .with("topic", topic.name.as_str())
                .with("queue", home.queue.0)
                .with("shard", home.shard.as_str())
                .with("start", found.map(|queue| queue.start.0))
                .with("end", found.map(|queue| queue.end.0))
                .with(
                    "messages",
                    found.map(|queue| queue.end.0.saturating_sub(queue.start.0)),
                )
                .with("bytes", found.map(|queue| queue.bytes))
        })
        .collect();
    output.list(&records, "")?;
    all_answered(&found.silent)
}
