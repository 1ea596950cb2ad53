//! A crate outside the framework: it adds a serializer and a load balancer without a change to the framework.
//! A program that wants them by name adds `use own_plugins as _;`, so that the linker includes this crate.

mod checked_json;
mod primary_first;

pub use checked_json::CheckedJson;
pub use primary_first::PrimaryFirst;
