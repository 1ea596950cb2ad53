//! A broker's services: their traits, requests and responses. These never contain batches, which travel as
//! attachments; they state how many bytes of the attachment belong to which queue.

pub mod admin;
pub mod fetch;
pub mod group;
pub mod page;
pub mod produce;
pub mod settings;
pub mod transaction;

pub use admin::{Admin, AdminClient, AdminServer};
pub use fetch::{Fetch, FetchClient, FetchServer};
pub use group::{Group, GroupClient, GroupServer};
pub use page::{Page, PageRequest};
pub use produce::{Produce, ProduceClient, ProduceServer};
pub use settings::{InvalidSettings, SettingsChange, TopicSettings};
pub use transaction::{Transaction, TransactionClient, TransactionServer};

/// RPC version of all services of the broker.
pub const VERSION: &str = "1.0";
/// RPC group of all services of the broker.
pub const GROUP: &str = "default";
/// The service whose registrations list the brokers; an instance's name is that of its shard.
pub const DISCOVERY_SERVICE: &str = "hc.mq.Admin";
