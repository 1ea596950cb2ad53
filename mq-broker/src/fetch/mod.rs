//! The machinery behind the fetch service: a memory budget for responses (`budget`), a bounded pool for disk
//! reads (`disk_pool`), reading several queues fairly for one response (`fair_read`), and damage that was
//! already reported (`seen_damage`). It knows the store, not the services.

pub(crate) mod budget;
pub(crate) mod disk_pool;
pub(crate) mod fair_read;
pub(crate) mod seen_damage;

pub use budget::ResponseBudget;
pub use disk_pool::{DiskPool, Settings as DiskPoolSettings};
