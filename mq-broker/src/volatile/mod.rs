//! What the broker knows only while it runs: the live members of groups and the queues they own, and the
//! questions about open transactions. Never logged; built from the state at start, then updated by its
//! effects.
//!
//! Plain structs: time and randomness are arguments, nothing here waits or wakes a task.

mod assign;
mod checks;
mod members;
mod refused;

pub use assign::{Holding, Plan, plan};
pub use checks::{Checks, POLL_TICK, Schedule};
pub use members::{Members, Settings, Subscription};
pub use refused::Refused;

#[cfg(test)]
mod tests;
