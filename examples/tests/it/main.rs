//! The examples are run as a user runs them, and must say what they claim to show.

mod programs;
