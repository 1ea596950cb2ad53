//! One small program per feature, the demo and the load generators. The programs are in `src/bin/`; this
//! library contains what several of them share.

pub mod child_broker;
pub mod echo;
pub mod echo_load;
pub mod local_broker;
pub mod local_etcd;

/// The programs of the README, compiled with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// The programs of the guide, likewise.
#[cfg(doctest)]
pub mod guide {
    #[doc = include_str!("../../docs/guide/from-hc-rpc.md")]
    pub struct FromHcRpc;

    #[doc = include_str!("../../docs/guide/from-kafka.md")]
    pub struct FromKafka;

    #[doc = include_str!("../../docs/guide/from-rocketmq.md")]
    pub struct FromRocketmq;

    #[doc = include_str!("../../docs/guide/from-tonic.md")]
    pub struct FromTonic;

    #[doc = include_str!("../../docs/guide/last-value-per-key.md")]
    pub struct LastValuePerKey;
}
