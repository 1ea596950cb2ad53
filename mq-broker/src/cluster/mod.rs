//! The broker among others: where it listens, how it announces itself, and how its topics keep in step with theirs.
//! Every broker also serves a registry, so that clients can find all brokers by knowing one.

pub(crate) mod declarations;
pub mod listen;

use std::time::Duration;

use rpc_core::plugin::{PluginError, Settings};
use rpc_registry::{EmbeddedRegistry, Mq};

/// What is announced here holds for so long without being renewed.
const LEASE: Duration = Duration::from_secs(10);

/// A wrong registry in words for who runs a broker; the error itself speaks to who links plug-ins, and does not know
/// `embedded`.
pub(crate) fn explained(error: &PluginError) -> String {
    let urls = |known: &[&str]| {
        // `local` ends with this process: nobody could find a broker there.
        let known = known.iter().filter(|name| **name != "local");
        known.map(|name| format!(", `{name}://..`")).collect::<String>()
    };
    match error {
        PluginError::Unknown { name, known, .. } => format!(
            "`--registry`: there is no registry `{name}`; known are `embedded` (this broker's own){}",
            urls(known)
        ),
        PluginError::Url { url } => format!(
            "`--registry`: `{url}` is neither `embedded` (this broker's own) nor a registry's URL, as in \
             `etcd://host:2379` or `mq://host:7070`"
        ),
        other => format!("`--registry`: {other}"),
    }
}

/// The registry that a setting names: `embedded`, or a URL. Brokers that register at each other (`mq://a,b`) share one
/// token, so ours is shown to them unless the URL says another.
///
/// # Errors
/// No registry of that scheme is linked in, or it refuses its settings.
pub fn registry(url: &str, token: Option<&str>) -> Result<EmbeddedRegistry, PluginError> {
    let Some(token) = token.filter(|_| url.starts_with("mq://")) else {
        return EmbeddedRegistry::open(url, LEASE);
    };
    let (_, settings) = Settings::from_url(url)?;
    match settings.text("address") {
        Some(servers) if settings.only(&["address"]).is_ok() => {
            let servers = Mq::builder(servers).token(token).among_servers().build();
            Ok(EmbeddedRegistry::in_front_of(std::sync::Arc::new(servers), LEASE))
        }
        _ => EmbeddedRegistry::open(url, LEASE),
    }
}
