//! What the tests share: a broker process, and `mq` as a person would run it.

mod broker;
mod mq;

pub(crate) use broker::Broker;
pub(crate) use mq::{mq, mq_with_input};
