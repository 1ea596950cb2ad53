//! The hc-mq client: producer, consumer, transactions, and the mq command line tool.
//!
//! Start with [`Client`]: it finds the brokers through a registry, learns where each topic's queues lie, and hands out
//! [`Producer`]s, consumers and the [`Admin`].
//!
//! ```no_run
//! use mq_client::{Client, Delivery, Message};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder().brokers(["127.0.0.1:7070"]).build().await?;
//! client.admin().create_topic("orders", 8, None).await?;
//!
//! let producer = client.producer().build();
//! let receipt = producer.send(Message::new("orders", "hello")?.key("order-1")).await?;
//! println!("queue {} offset {} {}", receipt.queue, receipt.base_offset, receipt.durability);
//!
//! let consumer = client
//!     .consumer("orders", "billing")?
//!     .handler(async |message: Delivery| {
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

// The plug-ins that this crate offers by name: rustc links no crate that nobody names.
use rpc_loadbalance as _;
use rpc_registry as _;

pub use admin::Admin;
pub use client::{Client, ClientBuilder};
pub use config::{ConsumerConfig, ProducerConfig};
pub use consumer::{Consumer, Delivery, Handler, Subscription};
pub use error::{ClientError, ConsumeError, Outcome, RouteError, SendError};
pub use message::Message;
pub use producer::{BatchWriter, Producer, PushError, SendReceipt};
