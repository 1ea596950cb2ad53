//! A stranger's crate: it adds a serializer and a load balancer to the framework without a change to the framework. A
//! program that wants them by name says `use own_plugins as _;`, so that the linker takes this crate along.

mod checked_json;
mod primary_first;

pub use checked_json::CheckedJson;
pub use primary_first::PrimaryFirst;
