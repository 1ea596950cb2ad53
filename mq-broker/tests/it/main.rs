//! The broker as a process of its own, over loopback: what it promises to clients, across stops and kills.

mod cluster;
mod command_line;
mod groups;
mod kills;
mod plugins;
mod produce_fetch;
mod support;
mod transactions;
