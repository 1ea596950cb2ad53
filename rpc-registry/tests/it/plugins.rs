//! The names the registries of this crate are known by.

use rpc_core::plugin::{PluginError, Settings};
use rpc_core::registry::RegistryPlugin;

#[test]
fn names_are_known() {
    let mut expected = vec!["local", "mq"];
    if cfg!(feature = "etcd") {
        expected.insert(0, "etcd");
    }
    assert_eq!(
        RegistryPlugin::names().expect("no name is claimed twice"),
        expected
    );
}

#[test]
fn unknown_setting_is_refused() {
    for name in RegistryPlugin::names().expect("no name is claimed twice") {
        let settings = Settings::new().with("address", "h:1").with("colour", "red");
        let refused = RegistryPlugin::build(name, &settings);
        assert!(
            matches!(&refused, Err(PluginError::Setting { key, .. }) if key == "colour"),
            "{name}: {refused:?}"
        );
    }
}
