//! Tests of the volatile part; time is moved by hand.

mod checks;
mod members;
