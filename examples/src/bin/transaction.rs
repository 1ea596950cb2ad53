//! Transactional messages: invisible until the local transaction has decided. One is committed, one is rolled
//! back, and the decision of the third is lost: the broker asks for it.
//!
//! `cargo run -p examples --bin transaction`
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use examples::local_broker::LocalBroker;
use mq_client::{CheckedTransaction, Client, Message, NewTopic, TransactionListener, async_trait};
use mq_common::api::transaction::Decision;
use mq_common::ids::TransactionId;

/// A bank with a ledger in place of a database: it records the transaction's id together with the booking.
#[derive(Default)]
struct Bank {
    booked: Mutex<BTreeMap<TransactionId, bool>>,
}

#[async_trait]
impl TransactionListener for Bank {
    type Argument = i64;

    async fn execute_local_transaction(&self, id: &TransactionId, _: &[Message], amount: &i64) -> Decision {
        let covered = *amount <= 100;
        self.booked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone(), covered);
        match (covered, amount) {
            (true, 42) => Decision::Unknown, // as if the process had died before it could say so
            (true, _) => Decision::Commit,
            (false, _) => Decision::Rollback,
        }
    }

    async fn check_local_transaction(&self, checked: &CheckedTransaction) -> Decision {
        println!("the broker asks about transaction {}", checked.transaction);
        let booked = self.booked.lock().unwrap_or_else(PoisonError::into_inner);
        match booked.get(&checked.transaction) {
            Some(true) => Decision::Commit,
            // Rolled back, or never started: nothing was booked.
            _ => Decision::Rollback,
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let broker = LocalBroker::start("example", "embedded").await?;
    let client = Client::builder().brokers([broker.address()]).build().await?;
    client
        .admin()
        .create_topic(NewTopic::new("transfers").queues(1))
        .await?;

    let check_after = Duration::from_secs(1);
    let producer = client
        .transaction_producer("bank", Bank::default())?
        .check_after(check_after)
        .build();
    for amount in [10, 500, 42] {
        let messages = vec![Message::new("transfers", format!("{amount} coins"))?];
        let receipt = producer.send_messages_in_transaction(messages, &amount).await?;
        println!(
            "{amount} coins: transaction {} is {:?}",
            receipt.transaction, receipt.state
        );
    }

    let mut transfers = client.consumer("transfers", "audit")?.subscribe().await?;
    for expected in ["10 coins", "42 coins"] {
        let next = tokio::time::timeout(Duration::from_secs(20), transfers.next()).await?;
        let transfer = next.ok_or("the subscription ended")?;
        transfers.ack(&transfer)?;
        println!("visible: {}", String::from_utf8_lossy(&transfer.payload));
        assert_eq!(transfer.payload, expected);
    }

    transfers.close().await?;
    client.shutdown().await;
    broker.stop().await
}
