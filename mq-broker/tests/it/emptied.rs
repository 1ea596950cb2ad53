//! A broker whose folder was emptied: it is a new one, and does not mistake ids of the old one for its own.

use std::time::Duration;

use mq_common::ErrorCode;
use mq_common::api::PageRequest;
use mq_common::api::transaction::Decision;
use mq_common::ids::{Durability, Offset};
use rpc_core::CallError;

use super::transactions::{end, half};
use crate::support::{BrokerProcess, Client, Options, topic};

#[tokio::test(flavor = "multi_thread")]
async fn s23_an_emptied_folder_is_a_new_broker_with_another_name_and_no_claim_to_the_old_ones_ids() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let orders = topic("orders");
    let broker = BrokerProcess::start(&data);
    let client = Client::connect(&broker).await;
    client.create_topic(&orders, 2, Durability::Fsynced).await;
    client.send(&orders, 0, &["x"], None).await.unwrap();
    let old = half(&client, &orders, None, None).await.transaction;
    let name = broker.name.clone();
    broker.kill();
    std::fs::remove_dir_all(&data).unwrap();
    let broker = BrokerProcess::start(&data);
    assert_ne!(broker.name, name);
    let client = Client::connect(&broker).await;
    let gone = client.fetch_once(&orders, 0, Offset(0), Duration::ZERO).await;
    let gone = gone.unwrap_err();
    assert!(
        matches!(&gone, CallError::App(error) if error.code == ErrorCode::UnknownTopic),
        "{gone}"
    );
    // The same work gets the same numbers again: the old transaction's id must not end the new one.
    client.create_topic(&orders, 2, Durability::Fsynced).await;
    client.send(&orders, 0, &["y"], None).await.unwrap();
    let new = half(&client, &orders, None, None).await.transaction;
    assert_ne!(new, old);
    let refused = end(&client, &old, Decision::Commit).await.unwrap_err();
    assert!(
        matches!(&refused, CallError::App(error) if error.is_definite()),
        "{refused}"
    );
    let open = client
        .transaction
        .list(PageRequest::default())
        .await
        .unwrap()
        .items;
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].transaction, new);
}

#[tokio::test(flavor = "multi_thread")]
async fn s23_a_decision_of_the_former_life_of_a_named_broker_ends_no_transaction_of_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let options = Options::default().argument("--name").argument("broker-1");
    let orders = topic("orders");
    let mut old = None;
    for life in 0..2 {
        let broker = BrokerProcess::start_with(&data, &options);
        let client = Client::connect(&broker).await;
        client.create_topic(&orders, 2, Durability::Fsynced).await;
        // The same work, so the entries of the journal have the same numbers.
        let new = half(&client, &orders, None, None).await.transaction;
        let Some(old) = old.replace(new.clone()) else {
            broker.kill();
            std::fs::remove_dir_all(&data).unwrap();
            continue;
        };
        assert_eq!((life, &old.shard), (1, &new.shard));
        for decision in [Decision::Commit, Decision::Rollback] {
            let refused = end(&client, &old, decision).await.unwrap_err();
            assert!(
                matches!(&refused, CallError::App(error) if error.code == ErrorCode::UnknownTransaction),
                "{refused}"
            );
        }
        let resumed = client.transaction.resume(old).await.unwrap_err();
        assert!(
            matches!(&resumed, CallError::App(error) if error.code == ErrorCode::UnknownTransaction),
            "{resumed}"
        );
        end(&client, &new, Decision::Commit).await.unwrap();
        // Also after a start, from the journal alone.
        broker.kill();
        let broker = BrokerProcess::start_with(&data, &options);
        let client = Client::connect(&broker).await;
        assert!(end(&client, &new, Decision::Commit).await.unwrap().already);
    }
}

/// The remains of a folder hold messages: a new broker beside them would never serve them.
#[tokio::test(flavor = "multi_thread")]
async fn s22_folder_with_queue_files_but_no_journal_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let broker = BrokerProcess::start(&data);
    assert!(broker.stop().success());
    std::fs::remove_dir_all(data.join("journal")).unwrap();
    std::fs::remove_file(data.join("state.db")).unwrap();
    let file = data.join("queues/orders-7/0/queue_data.00000000000000000000");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "messages").unwrap();
    for _ in 0..2 {
        let refused = BrokerProcess::command(&data, &Options::default())
            .output()
            .unwrap();
        assert!(!refused.status.success());
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("mq-broker restore"), "{said}");
        assert!(!data.join("state.db").exists());
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"messages");
}
