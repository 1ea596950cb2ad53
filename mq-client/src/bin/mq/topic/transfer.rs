//! `mq topic export | import`: topics with their settings and consumer groups, one topic per line.
//!
//! The format
//! is stable, and may be written by people and scripts: a missing field has the default of `mq topic create`;
//! an unknown field is refused, because ignoring it could create the wrong topic.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use mq_client::{Admin, AdminError, NewTopic};
use mq_common::api::admin::Topic;
use mq_common::api::group::{GroupDescription, GroupMode};
use mq_common::api::{SettingsChange, TopicSettings};
use mq_common::ids::{Durability, GroupName, TopicName};
use serde::{Deserialize, Serialize};

use crate::fail::{Failure, Outcome, all_answered};
use crate::output::{Output, Record};

/// One line of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exported {
    topic: TopicName,
    /// In all.
    queues: u32,
    #[serde(default = "fsynced")]
    durability: Durability,
    #[serde(
        default = "TopicSettings::of_new_topic",
        deserialize_with = "StrictSettings::deserialize"
    )]
    settings: TopicSettings,
    #[serde(default)]
    groups: Vec<ExportedGroup>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportedGroup {
    group: GroupName,
    #[serde(default = "stream")]
    mode: GroupMode,
}

/// The settings, refusing unknown fields.
#[derive(Deserialize)]
#[serde(remote = "TopicSettings", deny_unknown_fields)]
struct StrictSettings {
    #[serde(default)]
    retention_ms: Option<u64>,
    #[serde(default)]
    retention_bytes: Option<u64>,
    #[serde(default)]
    consumed: bool,
    #[serde(default)]
    hold_ms: Option<u64>,
    #[serde(default)]
    message_bytes_max: Option<u32>,
    #[serde(default)]
    compact: bool,
}

const fn fsynced() -> Durability {
    Durability::Fsynced
}

const fn stream() -> GroupMode {
    GroupMode::Stream
}

/// Exports the named topics, or all.
pub(super) async fn export(admin: &Admin, names: &[TopicName], output: &mut Output) -> Outcome {
    let topics = admin.topics().await?;
    let groups = admin.groups().await?;
    // An incomplete export is refused: what it lacks would be missing when it is needed.
    all_answered(&topics.silent)?;
    all_answered(&groups.silent)?;
    if let Some(missing) = names
        .iter()
        .find(|name| !topics.items.iter().any(|topic| topic.name == **name))
    {
        return Err(Failure::new(format!(
            "no topic `{missing}`; `mq topic list` lists all topics"
        )));
    }
    let wanted = topics
        .items
        .iter()
        .filter(|topic| names.is_empty() || names.contains(&topic.name));
    for topic in wanted {
        output.json(&exported(topic, &groups.items))?;
    }
    output.flush()?;
    Ok(())
}

fn exported(topic: &Topic, groups: &[GroupDescription]) -> Exported {
    // A group is known at several brokers.
    let own = groups.iter().filter(|group| group.topic == topic.name);
    let own: BTreeMap<&GroupName, GroupMode> = own.map(|group| (&group.group, group.mode)).collect();
    let groups = own.into_iter().map(|(group, mode)| ExportedGroup {
        group: group.clone(),
        mode,
    });
    Exported {
        topic: topic.name.clone(),
        queues: u32::try_from(topic.queues.len()).unwrap_or(u32::MAX),
        durability: topic.durability,
        settings: topic.settings,
        groups: groups.collect(),
    }
}

/// Creates what is missing, and compares what exists.
pub(super) async fn import(admin: &Admin, file: Option<&Path>, output: &mut Output) -> Outcome {
    let wanted = parse(&read(file)?)?;
    let topics = admin.topics().await?;
    let groups = admin.groups().await?;
    // A silent broker may have a topic with other settings.
    all_answered(&topics.silent)?;
    all_answered(&groups.silent)?;
    let mut differences = 0;
    for wanted in &wanted {
        let known = topics.items.iter().find(|topic| topic.name == wanted.topic);
        let result = import_topic(admin, wanted, known).await?;
        differences += usize::from(result.differs());
        output.line(&result.record(&wanted.topic, None))?;
        if result.differs() {
            continue;
        }
        for group in &wanted.groups {
            let known = groups.items.iter().find(|known| known.group == group.group);
            let result = import_group(admin, &wanted.topic, group, known).await?;
            differences += usize::from(result.differs());
            output.line(&result.record(&wanted.topic, Some(&group.group)))?;
        }
    }
    output.flush()?;
    if differences > 0 {
        return Err(Failure::new(format!(
            "{differences} differ from the export and were left as they are; change them with `mq topic alter`, or \
             delete them first"
        )));
    }
    Ok(())
}

fn read(file: Option<&Path>) -> Outcome<String> {
    let Some(path) = file else {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| Failure::new(format!("cannot read stdin: {error}")))?;
        return Ok(text);
    };
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("cannot read `{}`: {error}", path.display())))
}

/// Parses all lines, or fails at the first invalid one: nothing is created from half a file.
fn parse(text: &str) -> Outcome<Vec<Exported>> {
    let mut topics = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |reason: String| {
            Failure::new(format!(
                "line {number}: {reason}; expected what `mq topic export` writes, nothing was done"
            ))
        };
        let topic: Exported = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        topic.settings.check().map_err(|error| wrong(error.to_string()))?;
        topics.push(topic);
    }
    Ok(topics)
}

/// The result for one topic or group.
#[derive(Debug, PartialEq, Eq)]
enum Imported {
    Created,
    Unchanged,
    Differs(String),
}

impl Imported {
    const fn differs(&self) -> bool {
        matches!(self, Self::Differs(_))
    }

    fn record(&self, topic: &TopicName, group: Option<&GroupName>) -> Record {
        let (result, difference) = match self {
            Self::Created => ("created", None),
            Self::Unchanged => ("unchanged", None),
            Self::Differs(difference) => ("differs", Some(difference.as_str())),
        };
        Record::new()
            .with("topic", topic.as_str())
            .with("group", group.map(GroupName::as_str))
            .with("result", result)
            .with("difference", difference)
    }
}

async fn import_topic(admin: &Admin, wanted: &Exported, known: Option<&Topic>) -> Outcome<Imported> {
    if let Some(known) = known {
        return Ok(compare(wanted, known));
    }
    let new = NewTopic::new(wanted.topic.as_str())
        .queues(wanted.queues)
        .durability(wanted.durability)
        .settings(SettingsChange::from(wanted.settings));
    match admin.create_topic(new).await {
        Ok(_) => Ok(Imported::Created),
        // It was created concurrently.
        Err(error @ (AdminError::TopicExists { .. } | AdminError::OtherSettings { .. })) => {
            Ok(Imported::Differs(error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

fn compare(wanted: &Exported, known: &Topic) -> Imported {
    let queues = u32::try_from(known.queues.len()).unwrap_or(u32::MAX);
    let mut differences = Vec::new();
    let mut note = |name: &str, is: String, wanted: String| {
        if is != wanted {
            differences.push(format!("{name} is {is}, not {wanted}"));
        }
    };
    note("queues", queues.to_string(), wanted.queues.to_string());
    note(
        "durability",
        known.durability.to_string(),
        wanted.durability.to_string(),
    );
    let (is, wanted) = (&known.settings, &wanted.settings);
    note("retention_ms", shown(is.retention_ms), shown(wanted.retention_ms));
    note(
        "retention_bytes",
        shown(is.retention_bytes),
        shown(wanted.retention_bytes),
    );
    note("consumed", is.consumed.to_string(), wanted.consumed.to_string());
    note("hold_ms", shown(is.hold_ms), shown(wanted.hold_ms));
    note("compact", is.compact.to_string(), wanted.compact.to_string());
    let (is, wanted) = (is.message_bytes_max, wanted.message_bytes_max);
    note(
        "message_bytes_max",
        shown(is.map(u64::from)),
        shown(wanted.map(u64::from)),
    );
    if differences.is_empty() {
        Imported::Unchanged
    } else {
        Imported::Differs(differences.join(", "))
    }
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unset".to_owned(), |limit| limit.to_string())
}

async fn import_group(
    admin: &Admin,
    topic: &TopicName,
    wanted: &ExportedGroup,
    known: Option<&GroupDescription>,
) -> Outcome<Imported> {
    match known {
        Some(known) if known.topic == *topic && known.mode == wanted.mode => Ok(Imported::Unchanged),
        Some(known) => Ok(Imported::Differs(format!("it reads topic `{}`", known.topic))),
        None => {
            admin.create_group(topic, &wanted.group, wanted.mode).await?;
            Ok(Imported::Created)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exported_line_is_read_back() {
        let line = Exported {
            topic: TopicName::new("orders").unwrap(),
            queues: 3,
            durability: Durability::Memory,
            settings: TopicSettings {
                compact: true,
                ..TopicSettings::default()
            },
            groups: vec![ExportedGroup {
                group: GroupName::new("billing").unwrap(),
                mode: GroupMode::Stream,
            }],
        };
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(
            parse(&format!("{text}\n\n{text}\n")).unwrap(),
            [line.clone(), line]
        );
    }

    #[test]
    fn a_line_by_hand_may_leave_out_what_is_usual() {
        let topics = parse(r#"{"topic":"t","queues":2}"#).unwrap();
        assert_eq!(topics[0].settings, TopicSettings::of_new_topic());
        assert_eq!(topics[0].durability, Durability::Fsynced);
        let forever = parse(r#"{"topic":"t","queues":2,"settings":{}}"#).unwrap();
        assert_eq!(forever[0].settings, TopicSettings::default());
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        for line in [
            "topic",
            r#"{"topic":"__t","queues":1}"#,
            r#"{"topic":"t","queues":1,"retention":"7d"}"#,
            r#"{"topic":"t","queues":1,"settings":{"retention_ms":0}}"#,
            r#"{"topic":"t","queues":1,"settings":{"retention":1}}"#,
            r#"{"topic":"t","queues":1,"settings":{"compact":true,"consumed":true}}"#,
        ] {
            let text = format!("{{\"topic\":\"t\",\"queues\":1}}\n{line}\n");
            let refused = parse(&text).unwrap_err().to_string();
            assert!(refused.starts_with("line 2: "), "{refused}");
        }
    }
}
