//! What the broker knows only while it runs: live members of groups and who owns which queue, and which questions
//! about open transactions are out. Never logged; made from the state at start, then fed by its effects.
//!
//! Plain structs: time and randomness are arguments, nothing here waits or wakes anybody.

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
