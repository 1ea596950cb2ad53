//! The hc-mq message broker.

pub mod ids;
