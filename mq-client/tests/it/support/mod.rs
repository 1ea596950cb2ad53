//! What the tests share: a broker process, an etcd process, and `mq` as a person would run it.

mod broker;
#[path = "../../../../rpc-registry/tests/it/etcd_server.rs"]
#[expect(dead_code, reason = "the registry's own tests do more to it")]
mod etcd_server;
mod mq;

pub(crate) use broker::Broker;
pub(crate) use etcd_server::EtcdServer;
pub(crate) use mq::{Ran, Running, mq, mq_in, mq_with_input};
