//! The broker among others: where it listens, and how it announces itself.

pub mod listen;
