//! The broker among others: where it listens, and how it announces itself.

pub mod listen;

use std::sync::Arc;

use rpc_core::plugin::{PluginError, Settings};
use rpc_core::registry::{Registry, RegistryPlugin};

/// The registry that a setting names.
///
/// # Errors
/// No registry of that scheme is linked in, or it refuses its address.
pub fn registry(url: &str) -> Result<Arc<dyn Registry>, PluginError> {
    if url == "embedded" {
        return Ok(rpc_registry::local("mq-broker"));
    }
    let (scheme, settings) = Settings::from_url(url)?;
    RegistryPlugin::build(&scheme, &settings)
}
