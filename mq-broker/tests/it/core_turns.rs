//! The core over a disk in memory: turns, groups, a full inbox, a failing disk.

use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mq_broker::core::{Answer, Core, CoreThread, Holder, Parts, Published};
use mq_broker::ids::QueueKey;
use mq_broker::log::{self, Command, Refused, Want};
use mq_broker::state::command::Part;
use mq_broker::state::{self, Declaration, Limits, Outcome, State};
use mq_broker::store::disk::{Faults, TestDisk};
use mq_broker::store::{self, Folder, Rows, Store};
use mq_broker::telemetry::Metrics;
use mq_broker::volatile;
use mq_common::api::admin::{QueueHome, Topic};
use mq_common::ids::{Durability, Offset, QueueNumber, ShardName, TopicId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::support::{batch, topic};

const QUEUE: QueueKey = QueueKey(0);

pub(super) struct Fixture {
    pub(super) core: Arc<Core>,
    pub(super) thread: CoreThread,
    disk: TestDisk,
    metrics: Metrics,
}

pub(super) fn parts(disk: &TestDisk, state: State, rows: Rows, inbox_bytes_max: usize) -> (Parts, Metrics) {
    let folder = Folder::open(Arc::new(disk.clone()), Path::new("data")).unwrap();
    let store = Arc::new(Store::open(&folder, store::Settings::default(), rows));
    let published = Published::new(
        Arc::clone(&store),
        volatile::Settings::default(),
        volatile::Schedule::default(),
    );
    let (metrics, _) = Metrics::new();
    let settings = log_settings();
    let parts = Parts {
        folder,
        state,
        store,
        published: Arc::new(published),
        settings,
        inbox_bytes_max,
        metrics: metrics.clone(),
    };
    (parts, metrics)
}

pub(super) fn log_settings() -> log::Settings {
    log::Settings {
        segment_bytes: 16 << 20,
        segments_ahead: 0,
        spares_max: 0,
        zeros_ahead_bytes: 0,
        ..log::Settings::default()
    }
}

pub(super) fn shard() -> ShardName {
    ShardName::new("here").unwrap()
}

pub(super) fn open(disk: &TestDisk, inbox_bytes_max: usize) -> Fixture {
    let state = State::new(shard(), Limits::default());
    open_parts(disk, parts(disk, state, Rows::default(), inbox_bytes_max))
}

fn open_parts(disk: &TestDisk, (parts, metrics): (Parts, Metrics)) -> Fixture {
    let core = Core::open(parts).unwrap();
    Fixture {
        thread: CoreThread::start(Arc::clone(&core)).unwrap(),
        core,
        disk: disk.clone(),
        metrics,
    }
}

pub(super) async fn create_topic(core: &Core) {
    let declared = Topic {
        name: topic("orders"),
        id: TopicId(1),
        version: 0,
        durability: Durability::Fsynced,
        queues: vec![QueueHome {
            queue: QueueNumber(0),
            shard: shard(),
        }],
        deleted: false,
        settings: mq_common::api::TopicSettings::default(),
    };
    let command = state::Command::CreateTopic(Declaration::new(&declared).unwrap());
    let answer = core
        .propose_one(Command::new(command.encode(), Vec::new()), Want::Synced)
        .await;
    assert!(matches!(answer, Answer::Applied { .. }), "{answer:?}");
}

pub(super) fn append(value: &str) -> Command {
    let batch = batch(&[value]);
    let part = Part {
        queue: QUEUE,
        records: 1,
        bytes: u32::try_from(batch.len()).unwrap(),
    };
    Command::new(state::Command::Append(part).encode(), vec![batch])
}

fn offset(answer: &Answer) -> Offset {
    match answer {
        Answer::Applied {
            result: Outcome::Appended { base_offset },
            ..
        } => *base_offset,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_journal_takes_nothing_from_the_segment_on_that_is_its_last() {
    const SEGMENT_BYTES: u32 = 4096;
    let disk = TestDisk::default();
    let state = State::new(shard(), Limits::default());
    let (mut parts, metrics) = parts(&disk, state, Rows::default(), 1 << 20);
    parts.settings.segment_bytes = SEGMENT_BYTES;
    let fixture = open_parts(&disk, (parts, metrics));
    create_topic(&fixture.core).await;
    // Nothing else looks at the journal here, as when all that does so waits for the disk.
    fixture
        .core
        .journal_limit()
        .set_limit(3 * u64::from(SEGMENT_BYTES));
    let segments = || {
        let names = disk.names().into_iter();
        names
            .filter(|name| name.extension().is_some_and(|found| found == "journal"))
            .count()
    };
    for _ in 0..1000 {
        if fixture.core.journal_limit().check().is_err() {
            break;
        }
        assert!(segments() < 3);
        fixture.core.propose_one(append("value"), Want::Flushed).await;
    }
    assert_eq!(segments(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_one_request_stay_in_order_and_all_answers_come() {
    let fixture = open(&TestDisk::default(), 1 << 20);
    create_topic(&fixture.core).await;
    let commands = (0..100).map(|number| (append(&number.to_string()), Want::Synced));
    let answers = fixture.core.propose(commands.collect()).await;
    let offsets: Vec<u64> = answers.iter().map(|answer| offset(answer).0).collect();
    assert_eq!(offsets, (0..100).collect::<Vec<u64>>());
    assert_eq!(
        fixture.core.published().visible.range(QUEUE).unwrap().end,
        Offset(100)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_request_overtakes_what_was_refused_before_it() {
    let disk = TestDisk::default();
    let state = State::new(shard(), Limits::default());
    let (mut parts, metrics) = parts(&disk, state, Rows::default(), 1 << 20);
    parts.settings.waiting_bytes_max = 1000;
    let fixture = open_parts(&disk, (parts, metrics));
    create_topic(&fixture.core).await;
    // The log accepts the first and the last one, not the one in between.
    let commands = [append("a"), append(&"b".repeat(900)), append("c")];
    let commands = commands.into_iter().map(|command| (command, Want::Synced));
    let answers = fixture.core.propose(commands.collect()).await;
    assert_eq!(offset(&answers[0]), Offset(0));
    for answer in &answers[1..] {
        assert!(
            matches!(answer, Answer::Refused(Refused::Overloaded { .. })),
            "{answer:?}"
        );
    }
    let answer = fixture.core.propose_one(append("b"), Want::Synced).await;
    assert_eq!(offset(&answer), Offset(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_come_together_share_turns() {
    const REQUESTS: usize = 500;
    let fixture = open(&TestDisk::default(), 1 << 20);
    create_topic(&fixture.core).await;
    let (held, is_held) = mpsc::sync_channel(1);
    let (release, released) = mpsc::sync_channel::<()>(1);
    let core = Arc::clone(&fixture.core);
    let mut holding = JoinSet::new();
    holding.spawn(async move {
        core.visit(move |_, _| {
            held.send(()).unwrap();
            released.recv().unwrap();
        })
        .await
    });
    tokio::task::spawn_blocking(move || is_held.recv().unwrap())
        .await
        .unwrap();
    let before = (fixture.metrics.turns.get(), fixture.disk.syncs());
    // The core is held until all of them wait for it.
    let all_wait = Arc::new(tokio::sync::Barrier::new(REQUESTS + 1));
    let mut sending = JoinSet::new();
    for number in 0..REQUESTS {
        let (core, all_wait) = (Arc::clone(&fixture.core), Arc::clone(&all_wait));
        sending.spawn(async move {
            let payload = append(&number.to_string());
            let mut answer = pin!(core.propose_one(payload, Want::Synced));
            let asks = std::future::poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx).is_pending()));
            assert!(asks.await, "answered while the core is held");
            all_wait.wait().await;
            offset(&answer.await).0
        });
    }
    all_wait.wait().await;
    release.send(()).unwrap();
    holding.join_all().await;
    let mut offsets = sending.join_all().await;
    offsets.sort_unstable();
    assert_eq!(offsets, (0..REQUESTS as u64).collect::<Vec<u64>>());
    let turns = fixture.metrics.turns.get() - before.0;
    let syncs = fixture.disk.syncs() - before.1;
    assert!(
        turns < 10 && syncs <= turns,
        "{turns} turns and {syncs} syncs for {REQUESTS} requests"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn full_inbox_refuses_definitely_and_what_was_taken_goes_on() {
    let fixture = open(&TestDisk::default(), 1000);
    create_topic(&fixture.core).await;
    let (held, is_held) = mpsc::sync_channel(1);
    let (release, released) = mpsc::sync_channel::<()>(1);
    let holding = {
        let core = Arc::clone(&fixture.core);
        let mut holding = JoinSet::new();
        holding.spawn(async move {
            core.visit(move |_, _| {
                held.send(()).unwrap();
                released.recv().unwrap();
            })
            .await
        });
        holding
    };
    tokio::task::spawn_blocking(move || is_held.recv().unwrap())
        .await
        .unwrap();
    // One of the two fits; it cannot be answered while the core is held.
    let mut sending = JoinSet::new();
    for _ in 0..2 {
        let core = Arc::clone(&fixture.core);
        sending.spawn(async move { core.propose_one(append(&"x".repeat(900)), Want::Synced).await });
    }
    let refused = sending.join_next().await.unwrap().unwrap();
    assert!(
        matches!(refused, Answer::Refused(Refused::Overloaded { .. })),
        "{refused:?}"
    );
    release.send(()).unwrap();
    holding.join_all().await;
    assert_eq!(offset(&sending.join_next().await.unwrap().unwrap()), Offset(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_sync_answers_unknown_then_everything_is_refused() {
    let fixture = open(&TestDisk::default(), 1 << 20);
    create_topic(&fixture.core).await;
    let syncs = fixture.disk.syncs();
    fixture.disk.set_faults(Faults {
        fail_sync: syncs + 1,
        ..Faults::default()
    });
    let answer = fixture.core.propose_one(append("a"), Want::Synced).await;
    assert_eq!(answer, Answer::Unknown);
    fixture.core.failed().cancelled().await;
    let answer = fixture.core.propose_one(append("b"), Want::Flushed).await;
    assert_eq!(answer, Answer::Refused(Refused::ReadOnly));
    let visited = fixture.core.visit(|_, _| ()).await;
    assert_eq!(visited, Err(Refused::ReadOnly));
    assert_eq!(
        fixture.core.published().visible.range(QUEUE).unwrap().end,
        Offset(0),
        "shown before it was safe"
    );
    assert!(fixture.core.last_snapshot().is_none());
    fixture.thread.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_finishes_what_waits_and_refuses_what_comes() {
    let fixture = open(&TestDisk::default(), 1 << 20);
    create_topic(&fixture.core).await;
    let mut sending = JoinSet::new();
    for number in 0..100 {
        let core = Arc::clone(&fixture.core);
        sending.spawn(async move { core.propose_one(append(&number.to_string()), Want::Synced).await });
    }
    let thread = fixture.thread;
    tokio::task::spawn_blocking(move || thread.stop())
        .await
        .unwrap()
        .unwrap();
    for answer in sending.join_all().await {
        let definite = matches!(
            answer,
            Answer::Applied { .. } | Answer::Refused(Refused::ReadOnly)
        );
        assert!(definite, "{answer:?}");
    }
    let snapshot = fixture.core.last_snapshot().unwrap();
    assert_eq!(snapshot.synced, fixture.core.watermarks().synced);
    assert!(snapshot.state.rows.counters.lsn <= snapshot.synced);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_goes_away_leaves_its_command_behind() {
    let fixture = open(&TestDisk::default(), 1 << 20);
    create_topic(&fixture.core).await;
    {
        // Polled once: the command is in the inbox. Then the caller goes away.
        let mut proposing = pin!(fixture.core.propose_one(append("a"), Want::Synced));
        assert!(
            proposing
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_pending()
        );
    }
    let waiter = fixture.core.published().visible.waiter(vec![QUEUE]);
    while fixture.core.published().visible.range(QUEUE).unwrap().end < Offset(1) {
        waiter.changed().await;
    }
}

/// The thread that blocks may be the one that drives the sockets: another one must take that over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_and_timers_are_served_while_a_turn_blocks() {
    let fixture = open(&TestDisk::default(), 1 << 20);
    for _ in 0..20 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (began, begins) = mpsc::sync_channel(1);
        let (done, released) = mpsc::sync_channel(1);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let byte = socket.read_u8().await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            socket.write_u8(byte).await.unwrap();
        });
        let peer = std::thread::spawn(move || {
            begins.recv().unwrap();
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            std::io::Write::write_all(&mut socket, &[7]).unwrap();
            let mut answer = [0];
            std::io::Read::read_exact(&mut socket, &mut answer).unwrap();
            done.send(answer).unwrap();
        });
        let core = Arc::clone(&fixture.core);
        let visit = move |_: &mut Holder, _: &Core| {
            began.send(()).unwrap();
            released.recv_timeout(Duration::from_secs(10))
        };
        let mut visiting = JoinSet::new();
        visiting.spawn(async move { core.visit(visit).await.unwrap() });
        assert_eq!(visiting.join_all().await, [Ok([7])]);
        server.join_all().await;
        peer.join().unwrap();
    }
    fixture.thread.stop().unwrap();
}

/// A hand-off to the core's thread would cost a lone send two wake-ups.
#[test]
fn what_is_asked_of_an_idle_core_is_done_by_the_thread_that_asks() {
    const NAME: &str = "asks-alone";
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(NAME)
        .enable_all()
        .build()
        .unwrap();
    let fixture = open(&TestDisk::default(), 1 << 20);
    let core = Arc::clone(&fixture.core);
    let mut asking = JoinSet::new();
    let asks = async move {
        let mut inline = 0;
        for _ in 0..50 {
            let name = |_: &mut Holder, _: &Core| std::thread::current().name().map(str::to_owned);
            inline += usize::from(core.visit(name).await.unwrap().as_deref() == Some(NAME));
        }
        inline
    };
    asking.spawn_on(asks, runtime.handle());
    let inline = runtime.block_on(asking.join_all())[0];
    assert!(
        inline >= 5,
        "{inline} of 50; the core's thread looks after itself now and then"
    );
    fixture.thread.stop().unwrap();
}

/// A task that a turn wakes continues where the turn ran; no other thread has to be woken to take over its
/// worker.
#[test]
fn turns_that_block_take_no_thread_from_the_pool() {
    const NAME: &str = "turns-alone";
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(NAME)
        .enable_all()
        .build()
        .unwrap();
    let fixture = open(&TestDisk::default(), 1 << 20);
    runtime.block_on(create_topic(&fixture.core));
    let core = Arc::clone(&fixture.core);
    let mut sending = JoinSet::new();
    sending.spawn_on(
        async move {
            for _ in 0..50 {
                core.propose_one(append("x"), Want::Synced).await;
            }
        },
        runtime.handle(),
    );
    runtime.block_on(sending.join_all());
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    let count = names.filter(|name| name.trim_end() == NAME).count();
    assert!(count <= 2, "{count} threads, the workers alone were to be there");
    fixture.thread.stop().unwrap();
}
