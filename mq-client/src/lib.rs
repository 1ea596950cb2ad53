//! The hc-mq client: producer, consumer, transactions, and the mq command line tool.
//!
//! Start with [`Client`]: it discovers the brokers, learns which broker has each of a topic's queues, and
//! creates [`Producer`]s, consumers and the [`Admin`].
//!
//! ```no_run
//! use mq_client::{Client, Delivery, Message, NewTopic};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder().brokers(["127.0.0.1:7070"]).build().await?;
//! client.admin().create_topic(NewTopic::new("orders").queues(8)).await?;
//!
//! let producer = client.producer().build();
//! let receipt = producer.send(Message::new("orders", "hello")?.key("order-1")).await?;
//! println!("queue {} offset {} {}", receipt.queue, receipt.base_offset, receipt.durability);
//!
//! let consumer = client
//!     .consumer("orders", "billing")?
//!     .run(async |message: Delivery| {
//!         println!("{}", String::from_utf8_lossy(&message.payload));
//!         Ok::<(), std::io::Error>(())
//!     })
//!     .await?;
//! consumer.stop().await?;
//! # Ok(()) }
//! ```

pub mod admin;
mod client;
pub mod config;
pub mod consumer;
pub mod error;
pub mod message;
pub mod producer;
mod route;

// The plug-ins that this crate offers by name: rustc only links crates that are named in the source.
use rpc_loadbalance as _;
use rpc_registry as _;

/// Registers an async function as a handler of a consumer group at link time; [`Client::run_consumers`] runs
/// all of them.
///
/// The function takes `&Delivery` and returns `Result<(), E>` where `E` implements `Display`: `Ok` acks the
/// message; after `Err` the function gets it again. The attribute needs `topic` and `group`. Optional are
/// `threads = N`, the number of polling tasks per broker (tasks of the runtime, see
/// [`ConsumerConfig::threads`]), and `start = "latest"` or `"earliest"` (the default), where a new group
/// starts.
///
/// ```no_run
/// use mq_client::{Client, Delivery};
///
/// #[mq_client::consumer(topic = "orders", group = "billing")]
/// async fn bill(message: &Delivery) -> Result<(), std::io::Error> {
///     println!("{}", String::from_utf8_lossy(&message.payload));
///     Ok(())
/// }
///
/// # async fn run(client: Client) -> Result<(), mq_client::ConsumeError> {
/// let running = client.run_consumers().await?;
/// // ..
/// running.stop().await?;
/// # Ok(()) }
/// ```
pub use mq_client_macros::consumer;

// Used by the code that the attribute generates.
#[doc(hidden)]
pub use async_trait::async_trait;
#[doc(hidden)]
pub use inventory;

pub use admin::{Admin, NewTopic};
pub use client::{Client, ClientBuilder};
pub use config::{ConsumerConfig, ProducerConfig};
pub use consumer::{Consumer, Delivery, Handler, HandlerError, Subscription};
pub use error::{AdminError, ClientError, ConsumeError, Outcome, RouteError, SendError};
pub use message::Message;
pub use producer::transaction::{CheckedTransaction, TransactionListener, TransactionProducer};
pub use producer::{BatchWriter, Producer, PushError, SendReceipt};
