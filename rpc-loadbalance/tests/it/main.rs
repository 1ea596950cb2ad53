//! Every strategy of this crate against the contract, the names they are known by, and balancers in an invoker.

mod invoker;

use rpc_core::balance::LoadBalancerPlugin;
use rpc_core::plugin::{PluginError, Settings};
use rpc_loadbalance::contract::{self, Promises};

/// A failed check names its seed; `HC_MQ_SEED` repeats it.
fn check(name: &str, promises: &Promises) {
    let seed = contract::seed();
    let balancer = LoadBalancerPlugin::build(name, &Settings::new()).expect("it is linked in");
    contract::check(&*balancer, promises, seed);
}

#[test]
fn random_keeps_the_contract() {
    // 5 standard deviations of a share of 1/20 in 60,000 calls are 9 %; of 1/15 (weight 50 of 750) 8 %.
    check("random", &Promises::weighted_shares(0.12));
}

#[test]
fn round_robin_keeps_the_contract() {
    check("round_robin", &Promises::equal_shares(0.001));
}

#[test]
fn consistent_hash_keeps_the_contract() {
    check("consistent_hash", &Promises::keyed_shares(0.25));
}

#[test]
fn weighted_keeps_the_contract() {
    // Exact but for the last, unfinished period.
    check("weighted", &Promises::weighted_shares(0.001));
}

#[test]
fn least_active_keeps_the_contract() {
    check("least_active", &Promises::weighted_shares(0.12));
}

#[test]
fn p2c_keeps_the_contract() {
    check("p2c", &Promises::weighted_shares(0.12));
}

#[test]
fn names_are_known() {
    assert_eq!(
        LoadBalancerPlugin::names().expect("no name is claimed twice"),
        [
            "consistent_hash",
            "least_active",
            "p2c",
            "random",
            "round_robin",
            "weighted"
        ]
    );
}

#[test]
fn unknown_setting_is_refused() {
    for name in LoadBalancerPlugin::names().expect("no name is claimed twice") {
        let refused = LoadBalancerPlugin::build(name, &Settings::new().with("colour", "red"));
        assert!(matches!(refused, Err(PluginError::Setting { key, .. }) if key == "colour"));
    }
}
