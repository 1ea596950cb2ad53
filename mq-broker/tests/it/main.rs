//! The broker through its public modules, and as a process of its own over loopback: what it promises to clients,
//! across stops and kills, torn writes and rot.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod backup;
mod catalog;
mod clock_jumps;
mod cluster;
mod cold_start;
mod command_line;
mod core_starts;
mod core_turns;
mod damaged_footer;
mod declarations;
mod emptied;
mod failing_disk;
mod fetch_many;
mod full_disk;
mod groups;
mod hostile;
mod key_compaction;
mod key_files;
mod kills;
mod listing;
mod log_crash;
mod log_damage;
mod log_full;
mod log_model;
mod log_rare;
mod log_recycle;
mod log_turns;
mod memory;
mod mixed_kills;
mod plugins;
mod produce_fetch;
mod queue_files;
mod reclaim;
mod retention;
mod scrub;
mod scrub_store;
mod slow_disk;
mod stopping;
mod support;
mod transactions;
mod upgrade;
mod verify;
mod whole_crash;
mod whole_model;
