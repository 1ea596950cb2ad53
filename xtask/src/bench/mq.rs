//! The broker's bench: `mq bench` against a fresh broker, beside the bare disk in the same run.

use super::Options;
use crate::run::{Failure, Outcome};

/// Starts a broker in a temporary folder and measures it.
pub(super) fn run(_options: Options) -> Outcome {
    Err(Failure::new("not there yet"))
}
