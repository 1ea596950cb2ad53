//! The broker through its public modules, and as a process of its own over loopback: what it promises to clients,
//! across stops and kills, torn writes and rot.

mod cluster;
mod command_line;
mod groups;
mod kills;
mod plugins;
mod log_crash;
mod log_damage;
mod log_model;
mod log_turns;
mod produce_fetch;
mod support;
mod transactions;
