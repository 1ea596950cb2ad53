//! The examples are run as a user runs them, and must say what they claim to show.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod programs;
