//! What a message is: ids, limits, the batch format, the broker's error codes and service traits. No I/O, no clock.

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
