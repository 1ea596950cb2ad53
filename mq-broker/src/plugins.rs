//! The plug-ins linked into this binary, as `mq-broker plugins` lists them.

use std::fmt::Write as _;

use rpc_core::plugin::{self, PluginError};

/// One line `kind<TAB>name<TAB>origin` per plug-in, sorted by kind and name.
///
/// # Errors
/// Two plug-ins of a kind claim the same name.
pub fn plugins() -> Result<String, PluginError> {
    let mut text = String::new();
    for plugin in plugin::linked()? {
        let written = writeln!(text, "{}\t{}\t{}", plugin.kind, plugin.name, plugin.origin);
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
    }
    Ok(text)
}
