//! The vocabulary shared by brokers and clients: ids, limits, the batch format, error codes and service
//! traits. No I/O, no clock.

pub mod api;
pub mod batch;
pub mod content;
pub mod declared;
pub mod error;
pub mod ids;
pub mod limits;
pub mod partition;
pub mod units;

pub use error::{DiskShortage, Error, ErrorCode};
