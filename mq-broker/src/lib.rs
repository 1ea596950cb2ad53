//! The hc-mq message broker.
