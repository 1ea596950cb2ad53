//! kill -9 at random moments while everything goes on at once: producers of all kinds, transactions, groups,
//! topics that come and go, retention, rounds of compaction, passes over keys, rewrites of queue files,
//! checkpoints. What was answered holds.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use crate::kills::kills;
use crate::support::mixed::{Death, Ledger, Load, TOMBSTONE_MS, check, now, observe, settle::settle};
use crate::support::{BrokerProcess, Client, Options};

const MIB: u64 = 1 << 20;
/// From here on messages are moved into queue files, and from there on none are taken.
const JOURNAL_BYTES: [u64; 2] = [4 * MIB, 64 * MIB];
/// What comes between two looks at its size; and decisions, for which segments are sealed that are not full.
const BEYOND_BYTES: u64 = 16 * MIB;

/// Segments of 1 MiB, of which four are kept; nearly every queue file that lost something is rewritten, and
/// whatever is moved is compacted by its keys. Fewer of these are remembered than there are, so that passes
/// end in the midst of files.
fn options() -> Options {
    Options::default()
        .variable("MQ__JOURNAL__SEGMENT_BYTES", MIB.to_string())
        .variable("MQ__STORE__TAIL_BYTES_MAX", "300000")
        .variable("MQ__JOURNAL__BUDGET_BYTES", JOURNAL_BYTES[0].to_string())
        .variable("MQ__JOURNAL__BYTES_MAX", JOURNAL_BYTES[1].to_string())
        .variable("MQ__STORE__COMPACTION_DISK_PERCENT", "100")
        .variable("MQ__STORE__REWRITE_VALID_PERCENT", "90")
        .variable("MQ__STORE__KEY_COMPACTION_DIRTY_PERCENT", "1")
        .variable("MQ__STORE__KEY_COMPACTION_MAP_BYTES", "800")
        .variable("MQ__STORE__TOMBSTONE_MS", TOMBSTONE_MS.to_string())
        .variable("MQ__CHECKPOINT__EVERY_MS", "50")
        .variable("MQ__RETENTION__CHECK_MS", "20")
        .variable("MQ__TRANSACTION__CHECK_AGAIN_MS", "50")
        .variable("MQ__TELEMETRY__LOG_FILTER", "warn")
}

/// What the broker's own metrics say, summed up over its lives.
#[derive(Debug, Default, Clone)]
struct Done {
    rounds: u64,
    passes: u64,
    let_go: u64,
    queue_files_removed: u64,
    segments_freed: u64,
    trimmed: u64,
    checkpoints: u64,
}

impl Done {
    fn add(&mut self, broker: &BrokerProcess) {
        let metric = |name| broker.metric(name);
        self.rounds += metric("hc_mq_compaction_rounds_total");
        self.passes += metric("hc_mq_key_compaction_passes_total");
        self.let_go += metric("hc_mq_key_compaction_messages_total");
        self.queue_files_removed += metric("hc_mq_queue_files_removed_total");
        self.segments_freed += metric("hc_mq_journal_segments_recycled_total");
        self.segments_freed += metric("hc_mq_journal_segments_unlinked_total");
        self.trimmed += metric("hc_mq_trimmed_records_total");
        self.checkpoints += metric("hc_mq_checkpoint_seconds_count");
    }

    fn is_some_of_each(&self) -> bool {
        self.rounds.min(self.trimmed).min(self.let_go) > 0
    }
}

/// Everything that is known of the broker, over its lives.
struct Run {
    folder: tempfile::TempDir,
    ledger: Arc<Mutex<Ledger>>,
    done: Done,
}

impl Run {
    fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    /// Starts the broker and compares what it shows with what it promised.
    async fn start(&self) -> (BrokerProcess, Client) {
        let broker = BrokerProcess::start_with(&self.data(), &options());
        let client = Client::connect(&broker).await;
        self.look(&client).await;
        (broker, client)
    }

    async fn look(&self, client: &Client) {
        let observed = observe(client).await.unwrap_or_else(|wrong| self.fail(&wrong));
        let mut ledger = self.ledger.lock().unwrap();
        if let Err(wrong) = check(&ledger, &observed, Death::Killed, now()) {
            self.fail(&wrong);
        }
        settle(&mut ledger, &observed);
        let segments = segments(&self.data());
        if segments * MIB > JOURNAL_BYTES[1] + BEYOND_BYTES {
            self.fail(&format!("the journal has {segments} segments"));
        }
    }

    /// Fails with what is wrong, and where the folder is kept.
    fn fail(&self, wrong: &str) -> ! {
        let kept = std::env::temp_dir().join(format!("mixed-kills-{}", std::process::id()));
        let copied = Command::new("cp")
            .arg("-r")
            .arg(self.folder.path())
            .arg(&kept)
            .status();
        panic!("{wrong}; the folder is kept in {} ({copied:?})", kept.display());
    }

    /// Waits for it, a minute at most.
    async fn comes(&self, what: &str, mut is_there: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_there() {
            if Instant::now() > deadline {
                self.fail(&format!("not within a minute: {what}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// One life; it ends by SIGKILL, under load or so long after it: when all is moved that can be, passes
    /// over keys begin.
    async fn live_and_die(&mut self, seed: u64, life: Duration, rest: Option<Duration>) {
        let (broker, client) = self.start().await;
        let time = rest.map_or(Duration::from_secs(3600), |_| life);
        let load = Load::new(&client, &self.ledger, time);
        let mut working = load.start(seed);
        if let Some(rest) = rest {
            while let Some(worked) = working.join_next().await {
                worked.unwrap();
            }
            load.fill_latest().await;
            tokio::time::sleep(rest).await;
        } else {
            tokio::time::sleep(life).await;
        }
        self.done.add(&broker);
        broker.kill();
        load.gone.cancel();
        working.join_all().await;
        client.invoker.shutdown().await;
    }

    /// What is open is ended and what came goes; then the journal is small, and no file of a dead topic is
    /// left, nor one of a pass that was cut short.
    async fn come_to_rest(&mut self) {
        let (broker, client) = self.start().await;
        let load = Load::new(&client, &self.ledger, Duration::from_secs(3600));
        load.fill_latest().await;
        load.finish().await;
        let data = self.data();
        // The one that is being written is over it.
        self.comes("the journal within its budget", || {
            segments(&data) * MIB <= JOURNAL_BYTES[0] + MIB
        })
        .await;
        let living = load.folders();
        self.comes("no folder of a deleted topic", || {
            queue_folders(&data).is_subset(&living)
        })
        .await;
        self.comes("a pass over keys", || {
            broker.metric("hc_mq_key_compaction_passes_total") > 0
        })
        .await;
        self.comes("a round, a trim and messages deleted for later ones", || {
            let mut done = self.done.clone();
            done.add(&broker);
            done.is_some_of_each()
        })
        .await;
        self.look(&client).await;
        self.done.add(&broker);
        assert!(broker.stop().success());
        let (there, listed) = (latest_files(&data), listed_files(&data, "latest").await);
        if !there.is_subset(&listed) {
            self.fail(&format!("the files {there:?} are there, listed are {listed:?}"));
        }
        let verified = BrokerProcess::verify(&data);
        assert!(
            verified.status.success(),
            "{}",
            String::from_utf8_lossy(&verified.stdout)
        );
        let (broker, _) = self.start().await;
        assert!(broker.stop().success());
    }
}

fn segments(data: &Path) -> u64 {
    let files = std::fs::read_dir(data.join("journal")).unwrap();
    let segments = files.filter(|file| {
        let path = file.as_ref().unwrap().path();
        path.extension().is_some_and(|extension| extension == "journal")
    });
    segments.count() as u64
}

fn queue_folders(data: &Path) -> BTreeSet<String> {
    let folders = std::fs::read_dir(data.join("queues")).unwrap();
    folders
        .map(|folder| folder.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Names of the data files of the topic that compacts.
fn latest_files(data: &Path) -> BTreeSet<String> {
    let folders = queue_folders(data).into_iter();
    let folder = folders.filter(|name| name.starts_with("latest-"));
    let files = folder.flat_map(|name| std::fs::read_dir(data.join("queues").join(name).join("0")).unwrap());
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("queue_data")).collect()
}

/// The same as the checkpoint lists them, those that only wait for their removal too.
async fn listed_files(data: &Path, topic: &str) -> BTreeSet<String> {
    let options = SqliteConnectOptions::new().filename(data.join("state.db"));
    let mut database = options.connect().await.unwrap();
    let sql = "SELECT first_offset, generation FROM queue_files WHERE topic = ?";
    let query = sqlx::query_as::<_, (i64, i64)>(sql).bind(topic);
    let files = query.fetch_all(&mut database).await.unwrap().into_iter();
    database.close().await.unwrap();
    let names = files.map(|(first, generation)| match generation {
        0 => format!("queue_data.{first:020}"),
        _ => format!("queue_data.{first:020}.{generation}"),
    });
    names.collect()
}

/// Some die at their start, some before anything was moved, most in the midst of it.
fn life(random: &mut fastrand::Rng) -> Duration {
    let ms = [1..50, 50..300, 200..1_200][random.usize(..3)].clone();
    Duration::from_millis(random.u64(ms))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_under_mixed_load_keeps_what_it_answered() {
    let kills = kills(8);
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    eprintln!("kills: {kills}, SEED={seed}");
    let started = Instant::now();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut run = Run {
        folder: tempfile::tempdir().unwrap(),
        ledger: Arc::default(),
        done: Done::default(),
    };
    let (broker, client) = run.start().await;
    Load::new(&client, &run.ledger, Duration::from_secs(3600))
        .declare()
        .await;
    broker.kill();
    // On a busy machine little may be acknowledged in a life: then there are more of them.
    let enough = 100 * u64::from(kills);
    let is_enough = |run: &Run| run.ledger.lock().unwrap().acknowledged > enough;
    let mut lives = 0;
    while lives < kills || (lives < 20 * kills && !is_enough(&run)) {
        let life = life(&mut random);
        let rest = (random.u8(..4) == 0).then(|| Duration::from_millis(random.u64(0..1_500)));
        run.live_and_die(random.u64(..), life, rest).await;
        lives += 1;
    }
    run.come_to_rest().await;
    let ledger = run.ledger.lock().unwrap();
    let deleted = ledger
        .topics
        .iter()
        .filter(|topic| topic.deletion.is_some())
        .count();
    eprintln!(
        "{} messages acknowledged, {} transactions, {} topics made and {deleted} deleted, {:?}; {:?}",
        ledger.acknowledged,
        ledger.transactions.len(),
        ledger.topics.len(),
        run.done,
        started.elapsed()
    );
    assert!(ledger.acknowledged > enough, "the load was no load");
    assert!(run.done.is_some_of_each(), "{:?}", run.done);
}
