//! `mq-broker verify` and `mq-broker dump`: they find what is wrong, name whose messages it was, and change
//! nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mq_broker::store::{SegmentId, layout};
use mq_common::ids::Durability;
use serde_json::Value;

use crate::support::{BrokerProcess, Client, Options, topic};

fn run(arguments: &[&str], path: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mq-broker"));
    command.args(arguments).arg(path).output().unwrap()
}

/// Exit code, one object per line, and the whole output as text.
fn lines(output: &Output) -> (i32, Vec<Value>, String) {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let values = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), values, text + &errors)
}

fn verify(data: &Path) -> (i32, Vec<Value>, String) {
    lines(&BrokerProcess::verify(data))
}

fn options() -> Options {
    Options::default()
        .variable("MQ__JOURNAL__SEGMENT_BYTES", "1048576")
        .variable("MQ__STORE__TAIL_BYTES_MAX", "1000000")
}

/// Two sealed segments and a begun one, in which queue 0 of `orders` has 30 messages of 80 kB each.
async fn fill(data: &Path) -> BrokerProcess {
    let broker = BrokerProcess::start_with(data, &options());
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    for number in 0..30 {
        let value = format!("{number}-{}", "x".repeat(80_000));
        client.send(&orders, 0, &[value], None).await.unwrap();
    }
    broker
}

/// Every file with its content.
fn contents(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for folder in [data.to_owned(), data.join("journal")] {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                all.insert(entry.path(), std::fs::read(entry.path()).unwrap());
            }
        }
    }
    all
}

fn flip(path: &Path, byte: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[byte] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

fn report<'a>(reports: &'a [Value], file: &str) -> &'a Value {
    reports.iter().find(|report| report["file"] == file).unwrap()
}

fn segment(data: &Path, number: u64) -> PathBuf {
    layout::segment_file(data, SegmentId(number))
}

/// Where the batch of an offset is in a segment, according to `dump`: its first byte and the byte after its
/// last.
fn batch_at(path: &Path, offset: u64) -> (usize, usize) {
    let (code, lines, text) = lines(&run(&["dump", "--output", "json"], path));
    assert_eq!(code, 0, "{text}");
    let placed = |line: &&Value| line["kind"] == "placed" && line["first_offset"] == offset;
    let row = lines.iter().find(placed).unwrap_or_else(|| panic!("{text}"));
    let number = |name: &str| usize::try_from(row[name].as_u64().unwrap()).unwrap();
    (number("position"), number("position") + number("bytes"))
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_nothing_in_a_sound_folder_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let broker = fill(&data).await;
    // Beside a running broker.
    let (code, reports, text) = verify(&data);
    assert_eq!(code, 0, "{text}");
    assert!(
        report(&reports, "state.db")["note"]
            .as_str()
            .unwrap()
            .contains("a broker is running"),
        "{text}"
    );
    broker.kill();
    for state in ["killed", "stopped"] {
        let before = contents(&data);
        let (code, reports, text) = verify(&data);
        assert_eq!(code, 0, "{state}: {text}");
        assert_eq!(
            report(&reports, "journal/0000000000000001.journal")["standing"],
            "ok"
        );
        assert!(reports.len() >= 4, "{text}");
        let after = contents(&data);
        let same = before.iter().all(|(path, bytes)| {
            // SQLite's locks lie in this one; it holds nothing.
            path.extension().is_some_and(|extension| extension == "db-shm") || after.get(path) == Some(bytes)
        });
        assert!(same && before.len() == after.len(), "{state}");
        assert!(BrokerProcess::start_with(&data, &options()).stop().success());
    }
    let table = run(&["verify", "--data-dir"], &data);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("journal/0000000000000001.journal  ok"), "{table}");
    let none = run(&["verify", "--data-dir"], &folder.path().join("none"));
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("holds no broker's data"));
    assert!(!folder.path().join("none").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn s6_damaged_batch_is_named_by_verify_and_dump_and_served_as_a_hole_between_all_others() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    assert!(fill(&data).await.stop().success());
    let path = segment(&data, 1);
    let (from, end) = batch_at(&path, 3);
    let sound = std::fs::read(&path).unwrap();
    // Its first byte, its checksum, its middle, its last byte.
    for byte in [from, from + 5, usize::midpoint(from, end), end - 1] {
        std::fs::write(&path, &sound).unwrap();
        flip(&path, byte);
        let (code, reports, text) = verify(&data);
        assert_eq!(code, 1, "{text}");
        let found = report(&reports, "journal/0000000000000001.journal");
        assert_eq!(found["standing"], "damaged", "{text}");
        let damage = &found["damage"];
        assert_eq!(damage.as_array().unwrap().len(), 1, "{text}");
        let damage = &damage[0];
        assert_eq!(
            (&damage["topic"], &damage["queue"]),
            (&"orders".into(), &0.into()),
            "{text}"
        );
        assert_eq!(
            (&damage["first_offset"], &damage["end_offset"]),
            (&3.into(), &4.into()),
            "{text}"
        );
        assert_eq!(
            (&damage["position"], &damage["end"]),
            (&from.into(), &end.into()),
            "{text}"
        );
    }
    let (_, shown, text) = lines(&run(&["dump", "--output", "json"], &path));
    let damaged = shown.iter().filter(|line| line["damaged"] == true).count();
    assert_eq!(damaged, 1, "{text}");
    let table = String::from_utf8(run(&["verify", "--data-dir"], &data).stdout).unwrap();
    assert!(
        table.contains("topic orders queue 0 offsets 3..4: a batch is damaged"),
        "{table}"
    );

    let broker = BrokerProcess::start_with(&data, &options());
    let client = Client::connect(&broker).await;
    let (offsets, holes) = client.offsets_and_holes(&topic("orders"), 0, 30).await;
    assert_eq!(holes, [(3, 4)]);
    assert_eq!(offsets, (0..30).filter(|offset| *offset != 3).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn s7_s8_s22_rot_torn_tails_and_lost_files_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let broker = fill(&data).await;
    broker.kill();
    let sound = contents(&data);
    let restore = || {
        for (path, bytes) in &sound {
            std::fs::write(path, bytes).unwrap();
        }
    };
    let (_, reports, text) = verify(&data);
    let last = reports.last().unwrap()["file"].as_str().unwrap().to_owned();
    let last = data.join(last);
    let (_, shown, _) = lines(&run(&["dump", "--output", "json"], &last));
    let entries: Vec<u64> = shown
        .iter()
        .filter(|line| line["kind"] == "entry" && line["batches"] != 0)
        .map(|line| line["position"].as_u64().unwrap())
        .collect();
    assert!(entries.len() >= 2, "{text}");
    let at = |entry: u64| usize::try_from(entry).unwrap();
    let standing = |path: &Path, expected: (i32, &str)| {
        let (code, reports, text) = verify(&data);
        let file = path.strip_prefix(&data).unwrap().to_str().unwrap();
        let found = report(&reports, file)["standing"].as_str().unwrap();
        assert_eq!((code, found), expected, "{text}");
        text
    };
    // S7: an acknowledged entry, proven by a later one.
    flip(&last, at(entries[0]) + 30);
    standing(&last, (1, "damaged"));
    // S8: the length of a frame.
    restore();
    flip(&last, at(entries[0]));
    standing(&last, (1, "damaged"));
    // A tail that nobody says was synced.
    restore();
    let mut bytes = std::fs::read(&last).unwrap();
    let (_, shown, _) = lines(&run(&["dump", "--output", "json"], &last));
    let end = shown.iter().find(|line| line["kind"] == "end").unwrap()["position"]
        .as_u64()
        .unwrap();
    bytes.resize(bytes.len().max(at(end) + 200), 0);
    bytes[at(end) + 100] = 7;
    std::fs::write(&last, bytes).unwrap();
    standing(&last, (0, "torn_tail"));
    // A header: the frames are read all the same, as the segment before says how they go on.
    restore();
    flip(&segment(&data, 2), 20);
    let text = standing(&segment(&data, 2), (1, "damaged"));
    assert!(text.contains("\"last_lsn\""), "{text}");
    // S22: files that are gone, of what a start would replay and of what only consumers need.
    restore();
    for number in [1, 2] {
        std::fs::remove_file(segment(&data, number)).unwrap();
        standing(&segment(&data, number), (1, "missing"));
        restore();
    }
    assert!(BrokerProcess::start_with(&data, &options()).stop().success());
    assert_eq!(verify(&data).0, 0);
    let sound = contents(&data);
    for path in [segment(&data, 1), last.clone()] {
        std::fs::remove_file(&path).unwrap();
        let (code, reports, text) = verify(&data);
        assert_eq!(code, 1, "{}", path.display());
        let named = reports
            .iter()
            .flat_map(|report| report["damage"].as_array().unwrap());
        let lost: u64 = named
            .map(|damage| damage["end_offset"].as_u64().unwrap() - damage["first_offset"].as_u64().unwrap())
            .sum();
        // All that it held.
        assert_eq!(lost, if path == last { 4 } else { 13 }, "{text}");
        std::fs::write(&path, &sound[&path]).unwrap();
    }
    std::fs::remove_file(data.join("state.db")).unwrap();
    standing(&data.join("state.db"), (1, "missing"));
    assert!(!data.join("state.db").exists());
    std::fs::write(data.join("state.db"), b"SQLite format 3\0 but no more").unwrap();
    standing(&data.join("state.db"), (1, "damaged"));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_no_file_holds_by_the_checkpoint_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    assert!(fill(&data).await.stop().success());
    let state = data.join("state.db");
    let sound = std::fs::read(&state).unwrap();
    for (forgotten, first) in [
        ("DELETE FROM segment_rows WHERE segment = 1", 0),
        ("DELETE FROM segment_rows WHERE segment = 2", 13),
        ("UPDATE segment_rows SET segment = 1000 + segment", 0),
        ("UPDATE queues SET start_offset = 0, end_offset = 35", 30),
    ] {
        std::fs::write(&state, &sound).unwrap();
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&state);
        let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
        sqlx::raw_sql(forgotten).execute(&mut connection).await.unwrap();
        sqlx::Connection::close(connection).await.unwrap();
        let (code, reports, text) = verify(&data);
        assert_eq!(code, 1, "{forgotten}: {text}");
        let named = reports
            .iter()
            .flat_map(|report| report["damage"].as_array().unwrap());
        let named: Vec<&Value> = named.filter(|damage| damage["topic"] == "orders").collect();
        assert_eq!(named[0]["first_offset"], first, "{forgotten}: {text}");
        assert_eq!(named[0]["queue"], 0, "{forgotten}: {text}");
    }
    let table = String::from_utf8(run(&["verify", "--data-dir"], &data).stdout).unwrap();
    let said = "  topic orders queue 0 offsets 30..35: no file holds these messages";
    assert!(table.contains(said), "{table}");
}

#[test]
fn dump_shows_the_golden_segment_and_refuses_other_files() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/segment-v1.journal");
    let (code, shown, text) = lines(&run(&["dump", "--output", "json"], &golden));
    assert_eq!(code, 0, "{text}");
    let kinds = |kind: &str| shown.iter().filter(|line| line["kind"] == kind).count();
    assert_eq!((kinds("segment"), kinds("damage")), (1, 0), "{text}");
    assert!(kinds("entry") >= 1 && kinds("batch") >= 1, "{text}");
    let table = run(&["dump"], &golden);
    assert!(String::from_utf8(table.stdout).unwrap().starts_with("segment "));
    let refused = run(
        &["dump"],
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"),
    );
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not a file that a broker writes"));
}

#[tokio::test(flavor = "multi_thread")]
async fn dump_reads_a_segment_with_a_damaged_header_by_the_one_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    assert!(fill(&data).await.stop().success());
    let path = segment(&data, 2);
    let entries = |arguments: &[&str], path: &Path| {
        let (code, shown, text) = lines(&run(arguments, path));
        assert_eq!(code, 0, "{text}");
        let held = shown
            .into_iter()
            .filter(|line| line["kind"] != "segment" && line["seed_from"].is_null());
        held.collect::<Vec<Value>>()
    };
    let dump = ["dump", "--output", "json"];
    let sound = entries(&dump, &path);
    assert!(sound.len() > 10);
    let whole = std::fs::read(&path).unwrap();
    // Its seed; its first letters.
    for byte in [20, 0] {
        std::fs::write(&path, &whole).unwrap();
        flip(&path, byte);
        assert_eq!(entries(&dump, &path), sound, "byte {byte}");
        let table = String::from_utf8(run(&["dump"], &path).stdout).unwrap();
        assert!(table.starts_with("the header is DAMAGED"), "{table}");
    }
    // Away from its folder.
    let alone = folder.path().join(path.file_name().unwrap());
    std::fs::copy(&path, &alone).unwrap();
    let refused = run(&["dump"], &alone);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--seed-from"));
    let before = segment(&data, 1).display().to_string();
    let by_hand = ["dump", "--output", "json", "--seed-from", &before];
    assert_eq!(entries(&by_hand, &alone), sound);
    let other = segment(&data, 3).display().to_string();
    let refused = run(&["dump", "--seed-from", &other], &alone);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no entry in it continues"));
}

#[test]
fn dump_shows_the_marks_of_an_index_as_far_as_they_hold() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/queue-v1.index");
    let mut bytes = std::fs::read(golden).unwrap();
    let whole = bytes.len();
    bytes.extend_from_slice(&[7; 32]);
    let path = folder.path().join("queue_index.00000000000000000000");
    for (damaged, marks, damage) in [(None, 1, whole), (Some(40), 0, 32), (Some(3), 0, 0)] {
        let mut bytes = bytes.clone();
        if let Some(byte) = damaged {
            bytes[byte] ^= 1;
        }
        std::fs::write(&path, bytes).unwrap();
        let (code, shown, text) = lines(&run(&["dump", "--output", "json"], &path));
        assert_eq!(code, 0, "{text}");
        assert_eq!(shown[0]["kind"], "queue_index", "{text}");
        let of_kind = |kind: &str| {
            shown
                .iter()
                .filter(|line| line["kind"] == kind)
                .collect::<Vec<_>>()
        };
        assert_eq!(of_kind("mark").len(), marks, "{text}");
        assert!(
            of_kind("mark")
                .iter()
                .all(|mark| mark["offset"] == 0 && mark["time_ms"] == 1)
        );
        assert_eq!(of_kind("damage")[0]["position"], damage, "{text}");
    }
    let table = String::from_utf8(run(&["dump"], &path).stdout).unwrap();
    assert!(table.contains("DAMAGED"), "{table}");
}
