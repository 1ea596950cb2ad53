//! `cargo xtask bench rpc|store|mq`: measures ours beside peers and the bare machine, in one run on one machine. A table
//! for people on stderr or stdout, or one JSON object per line on stdout.

use crate::run::{Failure, Outcome};

/// Runs one of the benches.
pub(crate) fn bench(arguments: &[String]) -> Outcome {
    match arguments.split_first() {
        Some((name, _)) => Err(Failure::usage(format!(
            "unknown bench `{name}`; there are rpc, store, mq"
        ))),
        None => Err(Failure::usage("which bench? rpc, store or mq")),
    }
}
