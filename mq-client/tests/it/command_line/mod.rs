//! The `mq` command line tool, as DESIGN promises it to people and scripts.

mod bench;
mod compaction;
mod errors;
mod messages;
mod retention;
mod topics;
mod transactions;
