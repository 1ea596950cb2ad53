//! What a broker can be asked: requests, answers and the service traits. Batches never stand in here: they travel as
//! attachments, and the structures say how many bytes belong to whom.

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
/// Whose registrations tell clients which brokers there are; an instance's name is its shard's.
pub const DISCOVERY_SERVICE: &str = "hc.mq.Admin";
