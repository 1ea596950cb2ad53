//! `mq topic create | list | describe | alter | delete | export | import`.

mod settings;
mod transfer;

use std::path::PathBuf;

use clap::Subcommand;
use mq_client::admin::TopicChange;
use mq_client::{Admin, Client, NewTopic};
use mq_common::api::admin::Topic;
use mq_common::ids::{Durability, TopicName};
use mq_common::limits::TOPIC_QUEUES_MAX;

use crate::args::Format;
use crate::fail::{Failure, Outcome, all_answered};
use crate::output::{Output, Record, remark};
use settings::SettingsFlags;

/// Commands for topics.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a topic. Repeating it with the same properties is harmless.
    #[command(
        after_help = "Examples:\n  mq topic create orders --queues 8\n  mq topic create clicks --queues 64 --durability memory\n  mq topic create audit --retention forever\n  mq topic create prices --compact\n  mq topic create jobs --consumed --hold-until-consumed 30d"
    )]
    Create {
        /// Its name: 1 to 127 of A-Z a-z 0-9 . _ -
        name: TopicName,
        /// Number of message queues, dealt over the brokers.
        #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=i64::from(TOPIC_QUEUES_MAX)))]
        queues: u32,
        /// Least durability of a send: `fsynced` survives a power loss, `memory` only a kill of the broker.
        #[arg(long, value_name = "DURABILITY", default_value = "fsynced")]
        durability: Durability,
        #[command(flatten)]
        settings: SettingsFlags,
    },
    /// Change a topic: more queues, another durability, retention or message limit. Properties that are not
    /// named stay as they are.
    #[command(
        after_help = "Examples:\n  mq topic alter orders --queues 16\n  mq topic alter orders --retention 30d --retention-bytes 10GiB\n  mq topic alter jobs --consumed=false --hold-until-consumed none"
    )]
    Alter {
        /// The topic.
        name: TopicName,
        /// Number of message queues, not fewer than now. Keys may move to other queues: the messages of one
        /// key may then be in two.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(TOPIC_QUEUES_MAX)))]
        queues: Option<u32>,
        /// Least durability of a send: `fsynced` survives a power loss, `memory` only a kill of the broker.
        #[arg(long, value_name = "DURABILITY")]
        durability: Option<Durability>,
        #[command(flatten)]
        settings: SettingsFlags,
    },
    /// Export topics and their consumer groups as JSON, one topic per line, for `mq topic import`; without
    /// messages and cursors.
    #[command(
        after_help = "Examples:\n  mq topic export > topics.json\n  mq topic export orders clicks > two.json"
    )]
    Export {
        /// The topics to export; all if none is named.
        names: Vec<TopicName>,
    },
    /// Create the topics and consumer groups of an export that do not exist yet. Existing ones are compared
    /// and never changed: exit status 1 if any of them differs. Repeating it is harmless.
    #[command(
        after_help = "Examples:\n  mq topic import topics.json\n  mq topic export | mq --broker other:7070 topic import"
    )]
    Import {
        /// The exported file; stdin if none is named.
        file: Option<PathBuf>,
    },
    /// List all topics.
    #[command(after_help = "Examples:\n  mq topic list\n  mq --output json topic list")]
    List,
    /// Show the queues of a topic: their brokers, offsets and sizes.
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
        /// Also drop its open transactions; without this flag, a topic with open transactions is not deleted.
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
            settings,
        } => {
            note_cost(queues);
            let new = NewTopic::new(name)
                .queues(queues)
                .durability(durability)
                .settings(settings.change());
            let topic = admin.create_topic(new).await?;
            output.list(&[summary(&topic, output.format())], "")?;
        }
        Command::Alter {
            name,
            queues,
            durability,
            settings,
        } => {
            let change = TopicChange {
                queues,
                durability,
                settings: settings.change(),
            };
            if change == TopicChange::default() {
                return Err(Failure::Usage(
                    "nothing to change was named; see `mq topic alter --help`".to_owned(),
                ));
            }
            note_cost(queues.unwrap_or(0));
            let topic = admin.alter_topic(name, change).await?;
            output.list(&[summary(&topic, output.format())], "")?;
        }
        Command::Export { names } => transfer::export(&admin, &names, output).await?,
        Command::Import { file } => transfer::import(&admin, file.as_deref(), output).await?,
        Command::List => {
            let topics = admin.topics().await?;
            let records: Vec<Record> = topics
                .items
                .iter()
                .map(|topic| summary(topic, output.format()))
                .collect();
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

/// With more queues than this, their cost is mentioned.
const QUEUES_WORTH_A_NOTE: u32 = 10_000;

fn note_cost(queues: u32) {
    if queues > QUEUES_WORTH_A_NOTE {
        remark(&format!(
            "mq: {queues} queues: every client of the topic loads the whole list, and its brokers keep and save each of \
             them; a few queues per consumer are enough"
        ));
    }
}

fn summary(topic: &Topic, format: Format) -> Record {
    let mut shards: Vec<String> = topic.queues.iter().map(|home| home.shard.to_string()).collect();
    shards.sort_unstable();
    shards.dedup();
    let record = Record::new()
        .with("topic", topic.name.as_str())
        .with("queues", topic.queues.len())
        .with("durability", topic.durability.to_string())
        .with("shards", shards)
        .with("id", topic.id.0)
        .with("version", topic.version);
    settings::shown(record, &topic.settings, format)
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
            let record = Record::new()
                .with("topic", topic.name.as_str())
                .with("queue", home.queue.0)
                .with("shard", home.shard.as_str())
                .with("start", found.map(|queue| queue.start.0))
                .with("end", found.map(|queue| queue.end.0))
                .with(
                    "messages",
                    found.map(|queue| queue.end.0.saturating_sub(queue.start.0)),
                )
                .with("bytes", found.map(|queue| queue.bytes));
            settings::shown(record, &topic.settings, output.format())
        })
        .collect();
    output.list(&records, "")?;
    all_answered(&found.silent)
}
