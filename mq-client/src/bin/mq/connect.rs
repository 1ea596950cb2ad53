//! From the global flags to a client.

use std::fs;
use std::time::Duration;

use mq_client::Client;
use mq_common::api::AdminClient;
use rpc_core::plugin::Settings;
use rpc_core::{CallError, Invoker};

use crate::args::Global;
use crate::fail::{Failure, Outcome, explained_rpc};

/// A client for the brokers that the flags name.
pub(crate) async fn connect(global: &Global) -> Outcome<Client> {
    let builder = Client::builder();
    let mut builder = match &global.registry {
        Some(url) => builder.registry(url.as_str()),
        None => {
            if let Some(address) = global.broker.iter().find(|address| !is_address(address)) {
                return Err(Failure::Usage(format!(
                    "`{address}` is not a broker's address; expected host:port, as in `127.0.0.1:7070` (a registry goes \
                     to `--registry`)"
                )));
            }
            builder.brokers(&global.broker)
        }
    };
    let token = token(global)?;
    if let Some(token) = &token {
        builder = builder.token(token);
    }
    match &global.registry {
        None => probe(&global.broker, "--broker", token.as_deref()).await?,
        Some(url) => {
            let servers = servers_of(url);
            if !servers.is_empty() {
                probe(&servers, "--registry", token.as_deref()).await?;
            }
        }
    }
    Ok(builder.build().await?)
}

/// The brokers whose own registry the URL names; none for other registries, and where the URL is wrong, which is said
/// elsewhere.
fn servers_of(url: &str) -> Vec<String> {
    let Ok((scheme, settings)) = Settings::from_url(url) else {
        return Vec::new();
    };
    let named = settings
        .text("address")
        .filter(|_| scheme == "mq")
        .unwrap_or_default();
    let servers: Vec<_> = named.split(',').map(|server| server.trim().to_owned()).collect();
    match servers.iter().all(|server| is_address(server)) {
        true => servers,
        false => Vec::new(),
    }
}

fn token(global: &Global) -> Outcome<Option<String>> {
    let Some(file) = &global.token_file else {
        return Ok(None);
    };
    let text = fs::read_to_string(file).map_err(|error| {
        Failure::new(format!(
            "cannot read the token file `{}`: {error}",
            file.display()
        ))
    })?;
    Ok(Some(text.trim().to_owned()))
}

/// How long a broker may take to say anything at all.
const PROBE_WAIT: Duration = Duration::from_secs(3);

/// Asks the brokers named on the command line for a sign of life; one suffices. A wrong address or token is met at once
/// and in plain words here, while discovery would go on hoping.
async fn probe(addresses: &[String], flag: &str, token: Option<&str>) -> Outcome {
    let mut builder = Invoker::builder()
        .direct(addresses.iter().cloned())
        .timeout(PROBE_WAIT);
    if let Some(token) = token {
        builder = builder.token(token);
    }
    let invoker = builder
        .build()
        .await
        .map_err(|error| Failure::new(error.to_string()))?;
    let admin = AdminClient::refer(&invoker);
    let asked: Vec<_> = addresses
        .iter()
        .map(|address| admin.status().to_address(address).future())
        .collect();
    let mut reasons = Vec::new();
    for answer in asked {
        match answer.await {
            Ok(_) | Err(CallError::App(_)) => {
                invoker.shutdown().await;
                return Ok(());
            }
            Err(CallError::Rpc(error)) => reasons.push(explained_rpc(&error)),
        }
    }
    invoker.shutdown().await;
    Err(Failure::new(format!(
        "nobody answers: {}; start `mq-broker`, or name another with `{flag}`",
        reasons.join("; ")
    )))
}

fn is_address(text: &str) -> bool {
    let port = text
        .rsplit_once(':')
        .map(|(host, port)| (!host.is_empty(), port.parse::<u16>()));
    matches!(port, Some((true, Ok(port))) if port > 0) && !text.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_brokers_own_registry_names_brokers() {
        assert_eq!(servers_of("mq://a:1,b:2"), ["a:1", "b:2"]);
        assert_eq!(servers_of("mq://a:1?lease_ms=500"), ["a:1"]);
        for other in ["etcd://a:1", "mq://a", "embedded", ""] {
            assert_eq!(servers_of(other), Vec::<String>::new(), "{other}");
        }
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        assert!(is_address("127.0.0.1:7070"));
        assert!(is_address("[::1]:7070"));
        assert!(is_address("broker-a.example:1"));
        for wrong in [
            "",
            "7070",
            ":7070",
            "host",
            "host:",
            "host:x",
            "host:70000",
            "etcd://h:2379",
            "h:0",
        ] {
            assert!(!is_address(wrong), "{wrong}");
        }
    }
}
