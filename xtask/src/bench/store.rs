//! The store bench: what the bare disk under the build folder does, by the same calls that the journal makes.

use super::Options;
use crate::run::{Failure, Outcome};

/// Runs the program that measures the disk.
pub(super) fn run(_options: Options) -> Outcome {
    Err(Failure::new("not there yet"))
}
