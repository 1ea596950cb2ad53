//! The demo: a broker, a real text published in all four send modes, a SIGKILL in the middle, and at the end
//! a proof, line by line, that every acknowledged message arrived, unchanged and in order, in each consumer
//! group.
//!
//! `cargo xtask demo`

mod input;
mod ledger;
mod listener;
mod proof;
mod publish;
mod report;
mod show;
mod subscribe;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use examples::child_broker::{ChildBroker, Start, beside_this_program};
use mq_client::{Client, Consumer, NewTopic};
use mq_common::ids::TopicName;

use input::Input;
use ledger::{Fate, Ledger};
use listener::{Counts, Listener};
use publish::Publisher;
use report::Timing;
use subscribe::GROUPS;

const TOPIC: &str = "demo";
const QUEUES: u32 = 8;
/// How long the broker is down.
const DOWN: Duration = Duration::from_millis(500);
/// The broker's first question about an undecided transaction.
const CHECK_AFTER: Duration = Duration::from_secs(2);
/// How long the consumers may take until the last acknowledged line arrives, check-backs included.
const ARRIVAL_WAIT: Duration = Duration::from_secs(90);
/// Without an arrival for this long, no more are expected.
const QUIET: Duration = Duration::from_secs(1);

#[derive(Debug, Parser)]
#[command(
    about = "Publishes a text through a broker that is killed in the middle, and proves that nothing was lost."
)]
struct Arguments {
    /// The text; by default the package database of this machine.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// The broker's program; by default the one next to this program.
    #[arg(long, value_name = "FILE")]
    broker_binary: Option<PathBuf>,
    /// Keep the broker's folder and log, and say where they are.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(demo(&arguments)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            show::verdict(false, &format!("the demo could not be run to its end: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn demo(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let mut folder = tempfile::Builder::new().prefix("hc-mq-demo-").tempdir()?;
    folder.disable_cleanup(arguments.keep);
    let binary = arguments
        .broker_binary
        .clone()
        .map_or_else(beside_this_program, Ok)?;
    let input = Arc::new(Input::read(arguments.input.as_deref())?);

    show::title("hc-mq demo");
    let lines = show::grouped(input.lines.len());
    show::fact(
        "text",
        &format!(
            "{}: {lines} lines, {} bytes",
            input.path.display(),
            show::grouped(input.bytes())
        ),
    );
    let mut start = Start::new(&binary, &folder.path().join("broker"));
    start.flags = ["--name", "demo", "--registry", "embedded"]
        .map(str::to_owned)
        .to_vec();
    let broker = start.run()?;
    start.listen.clone_from(&broker.listen);
    show::fact(
        "broker",
        &format!("{} (http {}), registry embedded", broker.listen, broker.http),
    );
    show::fact("data", &folder.path().display().to_string());

    let client = Client::builder().brokers([&broker.listen]).build().await?;
    client
        .admin()
        .create_topic(NewTopic::new(TOPIC).queues(QUEUES))
        .await?;
    show::fact(
        "topic",
        &format!("`{TOPIC}`, {QUEUES} queues, every receipt fsynced"),
    );
    show::fact(
        "groups",
        &GROUPS
            .map(|(name, members)| {
                let noun = if members == 1 { "member" } else { "members" };
                format!("`{name}` ({members} {noun})")
            })
            .join(", "),
    );
    show::heading("What happened");

    let run = Run {
        begun: Instant::now(),
        ledger: Arc::new(Ledger::new(input.lines.len(), GROUPS.len())),
        counts: Arc::default(),
        input,
        client,
    };
    let (broker, consumers, timing) = run.publish_and_kill(broker, &start).await?;
    run.wait_for_the_last().await;
    let ends = run.client.admin().describe_topic(TOPIC).await?;
    let undecided = run.client.admin().transactions().await?.items.len();
    for consumer in consumers {
        consumer.stop().await?;
    }
    run.client.shutdown().await;
    drop(broker);
    if arguments.keep {
        show::fact("kept", &folder.path().display().to_string());
    }
    let queues = ends.items.iter().flat_map(|topic| &topic.queues);
    let ends = queues.map(|queue| (queue.queue.0, queue.end.0)).collect();
    Ok(report::report(&run, &timing, &ends, undecided))
}

/// One run of the demo.
struct Run {
    begun: Instant,
    input: Arc<Input>,
    ledger: Arc<Ledger>,
    counts: Arc<Counts>,
    client: Client,
}

impl Run {
    /// Runs consumers and publishers concurrently; the broker is killed when half of the text is sent, and
    /// restarted.
    async fn publish_and_kill(
        &self,
        broker: ChildBroker,
        start: &Start,
    ) -> Result<(ChildBroker, Vec<Consumer>, Timing), Box<dyn Error>> {
        let mut consumers = Vec::new();
        for (group, (_, members)) in GROUPS.iter().enumerate() {
            for _ in 0..*members {
                consumers
                    .push(subscribe::start(&self.client, TOPIC, group, &self.input, &self.ledger).await?);
            }
        }
        show::event(self.begun, "three consumers have joined; publishing begins");

        let listener = Listener::new(Arc::clone(&self.ledger), Arc::clone(&self.counts));
        let transactions = self
            .client
            .transaction_producer("demo", listener)?
            .check_after(CHECK_AFTER)
            .build();
        let publisher = Arc::new(Publisher::new(
            &self.client,
            Arc::clone(&self.input),
            TopicName::new(TOPIC)?,
            Arc::clone(&self.ledger),
            transactions,
        ));
        let publishing_began = Instant::now();
        let publishing = tokio::task::JoinSet::from_iter([Arc::clone(&publisher).run()]);

        publisher.middle_reached.notified().await;
        let acked = self
            .ledger
            .fates()
            .iter()
            .filter(|fate| matches!(fate, Fate::Acked { .. }))
            .count();
        let process = broker.process();
        let killed = Instant::now();
        tokio::task::spawn_blocking(move || broker.kill()).await?;
        show::event(
            self.begun,
            &format!(
                "SIGKILL to the broker (process {process}) with {} lines acknowledged",
                show::grouped(acked)
            ),
        );
        tokio::time::sleep(DOWN).await;
        let again = start.clone();
        let broker = tokio::task::spawn_blocking(move || again.run()).await??;
        let (down, ready_at) = (killed.elapsed(), Instant::now());
        let ready = show::time(broker.started_in);
        show::event(
            self.begun,
            &format!("a new broker on the same folder is ready, {ready} after its start"),
        );

        publishing.join_all().await;
        let took = publishing_began.elapsed();
        show::event(
            self.begun,
            "every line is sent; the broker asks about the transactions that were left undecided",
        );
        Ok((
            broker,
            consumers,
            Timing {
                _publisher: publisher,
                took,
                down,
                ready: ready_at,
            },
        ))
    }

    /// Waits until everything that must arrive has arrived, and then until no more messages come.
    async fn wait_for_the_last(&self) {
        let deadline = Instant::now() + ARRIVAL_WAIT;
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let mut quiet_since = (Instant::now(), 0);
        while Instant::now() < deadline {
            tick.tick().await;
            let arrived = (0..GROUPS.len())
                .map(|group| self.ledger.arrivals_count(group))
                .sum();
            if arrived != quiet_since.1 {
                quiet_since = (Instant::now(), arrived);
            }
            if quiet_since.0.elapsed() >= QUIET && report::missing(self) == 0 && self.decided().await {
                show::event(
                    self.begun,
                    "everything that must arrive has arrived, and no more messages come",
                );
                return;
            }
        }
        show::event(self.begun, "waited long enough: not everything has arrived");
    }

    /// Whether the broker has no open transactions left.
    async fn decided(&self) -> bool {
        self.client
            .admin()
            .transactions()
            .await
            .is_ok_and(|open| open.items.is_empty() && open.silent.is_empty())
    }
}
