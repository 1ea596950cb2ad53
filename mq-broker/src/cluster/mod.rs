//! The broker as a member of a cluster: where it listens, how it registers, and how it keeps its topics in
//! step with those of the other brokers. Every broker also serves a registry, so clients that know one broker
//! find all of them.

pub(crate) mod declarations;
pub mod listen;

use std::time::Duration;

use rpc_core::plugin::{PluginError, Settings};
use rpc_registry::{EmbeddedRegistry, Mq};

/// A registration at this broker's registry expires after this time unless it is renewed.
const LEASE: Duration = Duration::from_secs(10);

/// Explains a wrong registry to the operator of a broker. The error itself is meant for developers who link
/// plug-ins, and does not mention `embedded`.
pub(crate) fn explained(error: &PluginError) -> String {
    let urls = |known: &[&str]| {
        // `local` exists only within this process: no client could find a broker there.
        let known = known.iter().filter(|name| **name != "local");
        known.map(|name| format!(", `{name}://..`")).collect::<String>()
    };
    match error {
        PluginError::Unknown { name, known, .. } => format!(
            "`--registry`: there is no registry `{name}`; known are `embedded` (this broker's own){}",
            urls(known)
        ),
        PluginError::Url { url } => format!(
            "`--registry`: `{url}` is neither `embedded` (this broker's own) nor a registry's URL, such as \
             `etcd://host:2379` or `mq://host:7070`"
        ),
        other => format!("`--registry`: {other}"),
    }
}

/// The registry that a setting names: `embedded`, or a URL. Brokers that register with each other
/// (`mq://a,b`) share one token, so ours is presented to them unless the URL contains another.
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
