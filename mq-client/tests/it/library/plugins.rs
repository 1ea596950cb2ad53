//! Which plug-ins a program that names only mq-client has: rustc links no crate that nobody names.

use mq_client as _;
use rpc_core::balance::LoadBalancerPlugin;
use rpc_core::registry::RegistryPlugin;

#[test]
fn all_registries_and_balancers_are_linked() {
    assert_eq!(RegistryPlugin::names().unwrap(), ["etcd", "local", "mq"]);
    assert_eq!(
        LoadBalancerPlugin::names().unwrap(),
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
