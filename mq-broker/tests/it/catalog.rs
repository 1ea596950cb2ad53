//! The catalog in a real PostgreSQL: it follows the broker, comes back after every accident, and never holds
//! it up.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mq_common::api::admin::AlterTopicRequest;
use mq_common::api::transaction::Decision;
use mq_common::ids::Durability;

use crate::groups::member;
use crate::support::postgres::Postgres;
use crate::support::{BrokerProcess, Client, Options, eventually_within, log_path, topic};
use crate::transactions::{end, half};

const WAIT: Duration = Duration::from_secs(60);

fn options(url: &str, name: &str) -> Options {
    Options::default()
        .argument("--name")
        .argument(name)
        .variable("MQ__CATALOG__URL", url)
        .variable("MQ__CATALOG__TIMEOUT_MS", "700")
        .variable("MQ__CATALOG__CHECK_MS", "300")
        .variable("MQ__CHECKPOINT__EVERY_MS", "200")
}

/// A folder for a broker's data, and the data's path.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    (folder, data)
}

fn log(data: &Path) -> String {
    std::fs::read_to_string(log_path(data)).unwrap()
}

/// Waits until a query answers these rows.
async fn shows(server: &Postgres, sql: &'static str, expected: &[&str]) {
    let deadline = Instant::now() + WAIT;
    loop {
        let rows = server.rows(sql).await;
        if rows.as_ref().is_some_and(|rows| rows == expected) {
            return;
        }
        assert!(Instant::now() < deadline, "not {expected:?} but {rows:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const TOPICS: &str = "SELECT concat_ws('|', broker, topic, durability, deleted, queues, queues_here, authority) \
                      FROM catalog_topics ORDER BY broker, topic";
const COMPACTING: &str = "SELECT topic FROM catalog_topics WHERE compact = 1";
const SETTINGS_OF_B: &str = "SELECT concat_ws('|', consumed, compact, coalesce(retention_ms, -1)) FROM catalog_topics \
                             WHERE broker = 'b'";
const QUEUES: &str = "SELECT concat_ws('|', broker, topic, queue, start_offset, end_offset, messages) \
                      FROM catalog_queues ORDER BY broker, topic, queue";
const BROKERS: &str = "SELECT broker FROM catalog_brokers ORDER BY broker";
const GROUPS: &str = "SELECT concat_ws('|', broker, consumer_group, topic, mode, lag) FROM catalog_groups";
const CURSORS: &str = "SELECT concat_ws('|', broker, consumer_group, topic, queue, next_offset, end_offset, lag) \
                       FROM catalog_cursors ORDER BY queue";
const TRANSACTIONS: &str = "SELECT concat_ws('|', broker, state, producer_group, messages) FROM catalog_transactions ORDER BY transaction_id";

/// Waits until the broker says so: rows are there a moment before.
async fn is_current(broker: &BrokerProcess) {
    eventually_within(WAIT, "the catalog is current", async || {
        broker.metric("hc_mq_catalog_current ") == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_appear_and_follow_and_a_restart_goes_on_where_it_was() {
    let server = Postgres::start().await;
    let (_folder, data) = folder();
    // Nothing is to be missed here, however slow the disk is.
    let options = options(&server.url(), "a").variable("MQ__CATALOG__TIMEOUT_MS", "10000");
    let broker = BrokerProcess::start_with(&data, &options);
    shows(&server, BROKERS, &["a"]).await;
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    let mut declared = client.create_topic(&orders, 2, Durability::Fsynced).await;
    shows(&server, TOPICS, &["a|orders|fsynced|0|2|2|a"]).await;
    declared.settings.compact = true;
    let request = AlterTopicRequest { topic: declared };
    client.admin.alter_topic(request).await.unwrap();
    shows(&server, COMPACTING, &["orders"]).await;
    client.send(&orders, 1, &["x", "y"], None).await.unwrap();
    shows(&server, QUEUES, &["a|orders|0|0|0|0", "a|orders|1|0|2|2"]).await;
    // A key that PostgreSQL could not store as it is.
    let transaction = half(&client, &orders, Some("k\0"), None).await.transaction;
    shows(&server, TRANSACTIONS, &["a|open|producers|3"]).await;
    end(&client, &transaction, Decision::Commit).await.unwrap();
    shows(&server, TRANSACTIONS, &[]).await;
    let member = member(&client, &orders, "m");
    let mut owned = member.beat(&[], false).await.assigned;
    while owned.len() < 2 {
        owned = member.beat(&owned, false).await.assigned;
    }
    let first = owned.iter().find(|assigned| assigned.queue.0 == 1).unwrap();
    member.fetch(first).await.unwrap();
    member.ack(first.queue, first.epoch, 1).await.unwrap();
    shows(
        &server,
        CURSORS,
        &["a|billing|orders|0|0|2|2", "a|billing|orders|1|1|3|2"],
    )
    .await;
    shows(&server, GROUPS, &["a|billing|orders|stream|4"]).await;
    let full = broker.metric("hc_mq_catalog_rewrites_total ");
    assert!(full <= 2, "all rows {full} times anew, though nothing was missed");
    client.send(&orders, 0, &["last"], None).await.unwrap();
    assert!(broker.stop().success());
    // What was saved last is there when the broker has stopped.
    assert_eq!(
        server.rows(QUEUES).await.unwrap(),
        ["a|orders|0|0|3|3", "a|orders|1|0|3|3"]
    );

    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    client.send(&orders, 0, &["z"], None).await.unwrap();
    shows(&server, QUEUES, &["a|orders|0|0|4|4", "a|orders|1|0|3|3"]).await;
    assert_eq!(
        broker.metric("hc_mq_catalog_rewrites_total "),
        0,
        "it goes on where it was"
    );
    is_current(&broker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_was_away_gets_what_it_missed_and_the_broker_serves_meanwhile() {
    let mut server = Postgres::start().await;
    let (_folder, data) = folder();
    let broker = BrokerProcess::start_with(&data, &options(&server.url(), "a"));
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    shows(&server, QUEUES, &["a|orders|0|0|0|0"]).await;
    server.kill();
    for number in 0..3 {
        client.send(&orders, 0, &["x"], None).await.unwrap();
        eventually_within(WAIT, "a failure is counted", async || {
            broker.metric("hc_mq_catalog_failures_total ") > number
        })
        .await;
    }
    assert_eq!(broker.metric("hc_mq_catalog_current "), 0);
    server.restart().await;
    shows(&server, QUEUES, &["a|orders|0|0|3|3"]).await;
    is_current(&broker).await;
    let log = log(&data);
    // Its connection broke, then nobody was there: each once, however many tries.
    assert!(log.matches("is not current").count() <= 3, "{log}");
    assert!(log.matches("database is current").count() >= 2, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wiped_tables_and_a_new_database_are_filled_again_without_any_change() {
    let server = Postgres::start().await;
    let (_folder, data) = folder();
    let broker = BrokerProcess::start_with(&data, &options(&server.url(), "a"));
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    client.send(&orders, 0, &["x"], None).await.unwrap();
    let queues = ["a|orders|0|0|1|1"];
    shows(&server, QUEUES, &queues).await;
    // Some rows, all rows, a table with what needs it, everything.
    for accident in [
        "DELETE FROM projected_queues",
        "TRUNCATE projected_brokers, projected_topics, projected_queues",
        "DROP TABLE projected_queues CASCADE",
        "DROP SCHEMA public CASCADE; CREATE SCHEMA public",
    ] {
        server.run_in("catalog", accident).await;
        shows(&server, QUEUES, &queues).await;
        shows(&server, TOPICS, &["a|orders|fsynced|0|1|1|a"]).await;
    }
    server
        .run_in("postgres", "DROP DATABASE catalog WITH (FORCE)")
        .await;
    eventually_within(WAIT, "it is missed", async || {
        broker.metric("hc_mq_catalog_current ") == 0
    })
    .await;
    client.send(&orders, 0, &["y"], None).await.unwrap();
    server.run_in("postgres", "CREATE DATABASE catalog").await;
    shows(&server, QUEUES, &["a|orders|0|0|2|2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_by_the_hundred_thousand_are_written_anew_in_steps_that_each_keep_the_time_out() {
    let server = Postgres::start().await;
    let (_folder, data) = folder();
    let options = options(&server.url(), "a");
    let broker = BrokerProcess::start_with(&data, &options);
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    client.send(&orders, 0, &["x"], None).await.unwrap();
    let queues = ["a|orders|0|0|1|1"];
    shows(&server, QUEUES, &queues).await;
    assert!(broker.stop().success());
    // What an earlier life left, on a server on which removing all of it takes several times the time-out.
    let left = "INSERT INTO projected_cursors \
                    SELECT 'a', g, q, 0, 0 FROM generate_series(100, 399) g, generate_series(1, 1000) q; \
                INSERT INTO projected_queues SELECT 'a', g, 'gone', g, 0, 0, 0 FROM generate_series(100, 5000) g; \
                INSERT INTO projected_groups SELECT 'a', g, 'gone', 'gone', 'stream', 0 FROM generate_series(100, 5000) g; \
                INSERT INTO projected_topics SELECT 'a', 'gone' || g, g, 1, 'fsynced', 0, 1 FROM generate_series(100, 5000) g; \
                INSERT INTO projected_transactions SELECT 'a', g, NULL, 'p', NULL, 0, 0, 0 FROM generate_series(100, 5000) g; \
                INSERT INTO projected_cursors SELECT 'b', 1, q, 0, 0 FROM generate_series(1, 1000) q; \
                UPDATE projected_brokers SET lsn = 0; \
                CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ \
                    BEGIN PERFORM count(*) FROM generate_series(1, 30); RETURN old; END $$; \
                CREATE TRIGGER slow BEFORE DELETE ON projected_cursors FOR EACH ROW EXECUTE FUNCTION slow()";
    server.run_in("catalog", left).await;

    let _broker = BrokerProcess::start_with(&data, &options);
    let rows = "SELECT broker || '|' || count(*) FROM projected_cursors GROUP BY broker";
    shows(&server, rows, &["b|1000"]).await;
    shows(&server, QUEUES, &queues).await;
    shows(&server, TOPICS, &["a|orders|fsynced|0|1|1|a"]).await;
    shows(&server, GROUPS, &[]).await;
    shows(&server, TRANSACTIONS, &[]).await;
    // In one step it would exceed the time limit each time, and never be done.
}

#[tokio::test(flavor = "multi_thread")]
async fn two_brokers_that_start_together_share_one_database() {
    let server = Postgres::start().await;
    let (_one, first) = folder();
    let (_two, second) = folder();
    let url = server.url();
    let (a, b) = tokio::join!(
        tokio::task::spawn_blocking({
            let (first, url) = (first.clone(), url.clone());
            move || BrokerProcess::start_with(&first, &options(&url, "a"))
        }),
        tokio::task::spawn_blocking({
            let (second, url) = (second.clone(), url.clone());
            move || BrokerProcess::start_with(&second, &options(&url, "b"))
        }),
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    shows(&server, BROKERS, &["a", "b"]).await;
    let (one, two) = (topic("one"), topic("two"));
    let (to_a, to_b) = (Client::connect(&a).await, Client::connect(&b).await);
    to_a.create_topic(&one, 1, Durability::Fsynced).await;
    to_b.create_topic(&two, 1, Durability::Memory).await;
    to_a.send(&one, 0, &["x"], None).await.unwrap();
    shows(&server, QUEUES, &["a|one|0|0|1|1", "b|two|0|0|0|0"]).await;
    shows(
        &server,
        TOPICS,
        &["a|one|fsynced|0|1|1|a", "b|two|memory|0|1|1|b"],
    )
    .await;
    // One broker's rows stay when the other writes its own anew.
    server
        .run_in("catalog", "DELETE FROM projected_brokers WHERE broker = 'a'")
        .await;
    shows(&server, BROKERS, &["a", "b"]).await;
    shows(&server, QUEUES, &["a|one|0|0|1|1", "b|two|0|0|0|0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_password_and_a_later_format_are_named_once_and_the_broker_serves() {
    let server = Postgres::start().await;
    server
        .run_in(
            "catalog",
            "CREATE TABLE catalog_versions (version integer PRIMARY KEY, taken_at timestamptz DEFAULT now()); \
             INSERT INTO catalog_versions VALUES (99)",
        )
        .await;
    for (password, said) in [
        ("wrong-secret", "password authentication failed"),
        (
            "pass-word%3A%40",
            "has format 99, this broker knows formats up to 3",
        ),
    ] {
        let (_folder, data) = folder();
        // On a busy machine no attempt is to fail for being slow, which would be logged too.
        let options = options(&server.url_with(password), "a").variable("MQ__CATALOG__TIMEOUT_MS", "30s");
        let broker = BrokerProcess::start_with(&data, &options);
        let client = Client::connect(&broker).await;
        eventually_within(WAIT, "two tries", async || {
            broker.metric("hc_mq_catalog_failures_total ") >= 2
        })
        .await;
        client.create_topic(&topic("t"), 1, Durability::Fsynced).await;
        client.send(&topic("t"), 0, &["x"], None).await.unwrap();
        assert!(broker.stop().success());
        let log = log(&data);
        assert_eq!(log.matches(said).count(), 1, "{log}");
        assert!(
            !log.contains("wrong-secret") && !log.contains("pass-word"),
            "{log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_format_1_come_to_the_latest_with_the_rows_of_brokers_that_are_away() {
    let server = Postgres::start().await;
    server
        .run_in("catalog", include_str!("../golden/catalog-format-1.sql"))
        .await;
    let (_folder, data) = folder();
    let broker = BrokerProcess::start_with(&data, &options(&server.url(), "a"));
    let client = Client::connect(&broker).await;
    let mut declared = client.create_topic(&topic("new"), 1, Durability::Fsynced).await;
    declared.settings.compact = true;
    let request = AlterTopicRequest { topic: declared };
    client.admin.alter_topic(request).await.unwrap();
    shows(
        &server,
        TOPICS,
        &["a|new|fsynced|0|1|1|a", "b|kept|fsynced|0|1|1|b"],
    )
    .await;
    shows(&server, COMPACTING, &["new"]).await;
    shows(&server, QUEUES, &["a|new|0|0|0|0", "b|kept|0|3|8|5"]).await;
    shows(&server, CURSORS, &["b|billing|kept|0|6|8|2"]).await;
    shows(&server, TRANSACTIONS, &["b|open|producers|3"]).await;
    shows(&server, SETTINGS_OF_B, &["0|0|-1"]).await;
    shows(&server, "SELECT max(version)::text FROM catalog_versions", &["3"]).await;
    is_current(&broker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_that_waits_for_a_lock_holds_nobody_up_and_its_time_is_limited() {
    let server = Postgres::start().await;
    let (_folder, data) = folder();
    let broker = BrokerProcess::start_with(&data, &options(&server.url(), "a"));
    let client = Client::connect(&broker).await;
    let orders = topic("orders");
    client.create_topic(&orders, 1, Durability::Fsynced).await;
    shows(&server, QUEUES, &["a|orders|0|0|0|0"]).await;
    let mut other = server.connect().await;
    let lock = "BEGIN; LOCK TABLE projected_queues IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(lock).execute(&mut other).await.unwrap();
    client.send(&orders, 0, &["x"], None).await.unwrap();
    eventually_within(WAIT, "the time-out", async || {
        log(&data).contains("did not answer within 700 ms")
    })
    .await;
    let saved = broker.metric("hc_mq_checkpoint_lsn ");
    client.send(&orders, 0, &["y"], None).await.unwrap();
    eventually_within(WAIT, "a checkpoint", async || {
        broker.metric("hc_mq_checkpoint_lsn ") > saved
    })
    .await;
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    shows(&server, QUEUES, &["a|orders|0|0|2|2"]).await;
}

#[test]
fn url_that_is_none_refuses_to_start_and_shows_no_password() {
    let (_folder, data) = folder();
    let output = BrokerProcess::command(&data, &options("mysql://me:secret@h/d", "a"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("catalog.url") && said.contains("expected `postgres://"),
        "{said}"
    );
    assert!(!said.contains("secret"), "{said}");
    let options = options("postgres://me:secret@h/d", "a").argument("--check-config");
    let output = BrokerProcess::command(&data, &options).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("catalog.url = postgres://me:***@h/d"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_column_of_the_catalog_is_in_both_databases() {
    let server = Postgres::start().await;
    let (_folder, data) = folder();
    let broker = BrokerProcess::start_with(&data, &options(&server.url(), "a"));
    shows(&server, BROKERS, &["a"]).await;
    // All but the view of what lies in a broker's own folder.
    let there = server
        .rows("SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = 'public'")
        .await
        .unwrap();
    let local = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(data.join("state.db"))
        .read_only(true);
    let mut local = sqlx::ConnectOptions::connect(&local).await.unwrap();
    let sql = "SELECT m.name || '.' || p.name FROM sqlite_schema m JOIN pragma_table_info(m.name) p \
               WHERE m.type = 'view' AND m.name LIKE 'catalog_%' AND m.name <> 'catalog_queue_files'";
    let columns: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut local).await.unwrap();
    assert!(columns.len() > 30, "{columns:?}");
    let missing: Vec<_> = columns.iter().filter(|column| !there.contains(column)).collect();
    assert!(missing.is_empty(), "not in PostgreSQL: {missing:?}");
    assert!(broker.stop().success());
}
