//! `mq cluster status`.

use clap::Subcommand;
use mq_client::Client;

use crate::args::Format;
use crate::fail::{Failure, Outcome};
use crate::output::{Output, Record};

/// What to show about the brokers.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show every registered broker. Exit status 1 if one of them does not answer, or if a broker that has
    /// queues of a topic is not registered.
    #[command(
        after_help = "Examples:\n  mq cluster status\n  mq --registry etcd://127.0.0.1:2379 --output json cluster status"
    )]
    Status,
}

/// Runs it.
pub(crate) async fn run(command: Command, client: &Client, output: &mut Output) -> Outcome {
    let Command::Status = command;
    let admin = client.admin();
    let members = admin.cluster_status().await?;
    let mut silent = Vec::new();
    let mut records = Vec::new();
    for member in &members {
        let instance = &member.instance;
        let record = Record::new()
            .with("broker", instance.name.as_str())
            .with("address", instance.address.as_str());
        records.push(match &member.status {
            Ok(status) => {
                let record = record
                    .with("state", status.role.as_str())
                    .with("topics", status.topics)
                    .with("queues", status.queues)
                    .with("groups", status.groups)
                    .with("transactions", status.transactions)
                    .with("journal_bytes", status.journal_bytes)
                    .with("uptime_s", status.uptime_ms / 1000)
                    .with("registration", status.registration.as_str())
                    .with(
                        "disk",
                        status.disk.as_ref().map_or("", |disk| disk.state.as_str()),
                    )
                    .with(
                        "disk_free_bytes",
                        status.disk.as_ref().map_or(0, |disk| disk.free),
                    );
                // A terminal has no room for fields that only scripts need.
                if output.format() == Format::Json {
                    record
                        .with("http", status.http.as_str())
                        .with("version", status.version.as_str())
                        .with("term", status.term.0)
                        .with("appended", status.appended.0)
                        .with("flushed", status.flushed.0)
                        .with("synced", status.synced.0)
                        .with(
                            "disk_total_bytes",
                            status.disk.as_ref().map_or(0, |disk| disk.total),
                        )
                        .with(
                            "disk_needed_bytes",
                            status.disk.as_ref().map_or(0, |disk| disk.needed),
                        )
                } else {
                    record
                }
            }
            Err(error) => {
                silent.push(format!("`{}`: {error}", instance.name));
                record.with("state", "unreachable")
            }
        });
    }
    output.list(&records, "")?;
    // If no broker answers, that was already reported.
    for missing in admin.missing_shards().await.unwrap_or_default() {
        silent.push(format!("`{}`: {missing}", missing.shard));
    }
    match (records.is_empty(), silent.is_empty()) {
        (true, _) => Err(Failure::new(
            "no broker is registered; start `mq-broker`, or check `--broker` or `--registry`",
        )),
        (_, true) => Ok(()),
        _ => Err(Failure::new(format!("no answer from {}", silent.join("; ")))),
    }
}
