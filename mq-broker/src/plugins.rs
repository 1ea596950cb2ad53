//! The plug-ins linked into this binary, as `mq-broker plugins` lists them.

use std::fmt::Write as _;

use rpc_core::balance::LoadBalancerPlugin;
use rpc_core::compress::CompressorPlugin;
use rpc_core::fault::FaultTolerancePlugin;
use rpc_core::filter::FilterPlugin;
use rpc_core::plugin::PluginError;
use rpc_core::registry::RegistryPlugin;
use rpc_core::serialize::SerializerPlugin;

/// One line `kind<TAB>name<TAB>origin` for each, sorted by kind and name.
///
/// # Errors
/// Two plug-ins of a kind claim one name.
pub fn plugins() -> Result<String, PluginError> {
    let mut text = String::new();
    let mut kind = |label: &str, origins: Vec<(&str, &str)>| {
        for (name, origin) in origins {
            let written = writeln!(text, "{label}\t{name}\t{origin}");
            debug_assert!(written.is_ok(), "writing to a String cannot fail");
        }
    };
    kind(CompressorPlugin::LABEL, CompressorPlugin::table()?.origins());
    kind(
        FaultTolerancePlugin::LABEL,
        FaultTolerancePlugin::table()?.origins(),
    );
    kind(FilterPlugin::LABEL, FilterPlugin::table()?.origins());
    kind(LoadBalancerPlugin::LABEL, LoadBalancerPlugin::table()?.origins());
    kind(RegistryPlugin::LABEL, RegistryPlugin::table()?.origins());
    kind(SerializerPlugin::LABEL, SerializerPlugin::table()?.origins());
    Ok(text)
}
