//! The core.
mod clock;
mod tails;
mod topics;
mod visibility;
