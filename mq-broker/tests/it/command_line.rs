//! Flags, settings, the ready line, health, metrics, signals, and who may have the folder.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use mq_common::api::PageRequest;
use mq_common::ids::Durability;

use crate::support::{BrokerProcess, Client, Options, topic};

fn run(folder: &Path, options: &Options) -> Output {
    let mut command = BrokerProcess::command(folder, options);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn s24_second_broker_on_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let broker = BrokerProcess::start(&data);
    let second = run(&data, &Options::default());
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains(data.to_str().unwrap()),
        "{}",
        stderr(&second)
    );
    assert!(second.stdout.is_empty());
    broker.signal("STOP");
    assert_eq!(run(&data, &Options::default()).status.code(), Some(1));
    broker.signal("CONT");
    let client = Client::connect(&broker).await;
    client.create_topic(&topic("t"), 1, Durability::Fsynced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_tell_the_state() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&folder.path().join("data"));
    assert_eq!(broker.get("/healthz").0, 200);
    assert_eq!(broker.get("/readyz"), (200, "ready\n".to_owned()));
    let client = Client::connect(&broker).await;
    client.create_topic(&topic("t"), 1, Durability::Fsynced).await;
    client.send(&topic("t"), 0, &["a", "b"], None).await.unwrap();
    let (status, text) = broker.get("/metrics");
    assert_eq!(status, 200);
    assert!(text.contains("hc_mq_produced_records_total 2\n"), "{text}");
    assert!(text.contains("hc_mq_ready 1\n"), "{text}");
    assert!(text.contains("process_resident_memory_bytes "), "{text}");
    let produced = "hc_mq_rpc_calls_total{service=\"hc.mq.Produce\",method=\"produce\"} 1\n";
    assert!(text.contains(produced), "{text}");
    assert_eq!(broker.get("/none").0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_stops_cleanly_and_the_next_start_is_clean() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    client.create_topic(&topic("t"), 1, Durability::Fsynced).await;
    assert_eq!(broker.stop().code(), Some(0));
    assert_eq!(BrokerProcess::start(&data).stop().code(), Some(0));
}

#[test]
fn wrong_settings_name_key_and_source() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let file = folder.path().join("b.toml");
    std::fs::write(&file, "[network]\nlisen = \"x\"\n").unwrap();
    let cases = [
        (
            Options::default()
                .argument("--config")
                .argument(file.to_str().unwrap()),
            ["network.lisen", "b.toml"],
        ),
        (
            Options::default().variable("MQ__NETWORK__LISEN", "x"),
            ["MQ__NETWORK__LISEN", "environment"],
        ),
        (
            Options::default().variable("MQ__GROUP__SESSION_MS", "x"),
            ["group.session_ms", "`x`"],
        ),
        (
            Options::default().argument("--registry").argument("nosuch://a"),
            [
                "no registry `nosuch`",
                "`embedded` (this broker's own), `etcd://..`, `mq://..`",
            ],
        ),
        (
            Options::default()
                .argument("--registry")
                .argument("127.0.0.1:2379"),
            ["`127.0.0.1:2379` is neither `embedded`", "etcd://host:2379"],
        ),
        (
            Options::default().variable("MQ__NETWORK__HTTP", "127.0.0.1"),
            ["host:port", "network.http"],
        ),
    ];
    for (options, expected) in cases {
        let output = run(&data, &options);
        assert_eq!(output.status.code(), Some(2), "{options:?}: {}", stderr(&output));
        for text in expected {
            assert!(stderr(&output).contains(text), "{options:?}: {}", stderr(&output));
        }
        assert!(output.stdout.is_empty());
    }
    assert!(!data.join("journal").exists());
}

#[test]
fn second_broker_on_the_same_ports_is_told_of_both() {
    let folder = tempfile::tempdir().unwrap();
    let first = BrokerProcess::start(&folder.path().join("one"));
    let taken = Options::default()
        .variable("MQ__NETWORK__LISTEN", first.listen.as_str())
        .variable("MQ__NETWORK__HTTP", first.http.as_str());
    let mut command = Command::new(env!("CARGO_BIN_EXE_mq-broker"));
    command
        .envs(taken.variables)
        .arg("--data-dir")
        .arg(folder.path().join("two"));
    let second = command.output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    for words in [
        &*first.listen,
        &*first.http,
        "--listen",
        "--http",
        "another broker",
    ] {
        assert!(stderr(&second).contains(words), "`{words}`: {}", stderr(&second));
    }
}

#[test]
fn remote_listen_without_token_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mq-broker"));
    command.args([
        "--listen",
        "0.0.0.0:0",
        "--advertise",
        "localhost:0",
        "--data-dir",
    ]);
    let output = command.arg(folder.path().join("data")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("--auth-token-file"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn check_config_shows_every_value_and_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let output = run(
        &data,
        &Options::default()
            .argument("--check-config")
            .variable("MQ__CHECKPOINT__EVERY_MS", "120s"),
    );
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("checkpoint.every_ms = 2m\n"), "{text}");
    assert!(!data.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_demanded_when_one_is_set() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "secret\n").unwrap();
    let options = Options::default()
        .argument("--auth-token-file")
        .argument(file.to_str().unwrap());
    let broker = BrokerProcess::start_with(&folder.path().join("data"), &options);
    let stranger = Client::connect_with(&broker, Some("wrong")).await;
    stranger.admin.topics(PageRequest::default()).await.unwrap_err();
    let client = Client::connect_with(&broker, Some("secret")).await;
    assert!(
        client
            .admin
            .topics(PageRequest::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

#[test]
fn another_name_for_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let named = |name: &str| Options::default().argument("--name").argument(name);
    let broker = BrokerProcess::start_with(&data, &named("broker-a"));
    assert_eq!(broker.name, "broker-a");
    assert!(broker.stop().success());
    let output = run(&data, &named("broker-b"));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("broker-a"), "{}", stderr(&output));
}
