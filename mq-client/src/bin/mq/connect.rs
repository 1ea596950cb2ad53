//! Builds a client from the global flags.

use std::fs;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use mq_client::Client;
use mq_common::api::AdminClient;
use rpc_core::plugin::Settings;
use rpc_core::{CallError, Code, Executed, Invoker, RpcError};
use tokio::net::TcpStream;

use crate::args::Global;
use crate::fail::{Failure, Outcome, explained_rpc};
use crate::output::remark;

/// Connects to the brokers that the flags name.
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

/// The brokers that an `mq://` URL names; none for other registries or for a wrong URL, which is reported
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
    if servers.iter().all(|server| is_address(server)) {
        servers
    } else {
        Vec::new()
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

/// How long `mq` waits for a broker that does not listen yet, and for the answer of one that does.
const PROBE_WAIT: Duration = Duration::from_secs(5);

/// Pause between two attempts to connect to brokers that refuse connections.
const PROBE_PAUSE: Duration = Duration::from_millis(50);

/// After this long `mq` says what it is waiting for; on a terminal it says so at once.
const QUIET: Duration = Duration::from_secs(1);

/// Asks the brokers named on the command line for their status; one answer suffices. A wrong address or token
/// is reported here at once and in plain words, whereas discovery would keep trying. Only refused connections
/// are retried, because a broker that was started a moment ago does not listen yet.
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
    let mut answers = ask(&admin, addresses).await;
    let is_unreachable = |error: &RpcError| error.code == Code::Unavailable && error.executed == Executed::No;
    if matches!(&answers, Err(errors) if errors.iter().all(is_unreachable)) && listens(addresses).await {
        answers = ask(&admin, addresses).await;
    }
    invoker.shutdown().await;
    answers.map_err(|errors| {
        let reasons: Vec<String> = errors.iter().map(explained_rpc).collect();
        Failure::new(format!(
            "no broker answers: {}; start `mq-broker`, or name another with `{flag}`",
            reasons.join("; ")
        ))
    })
}

/// Whether one of the brokers answers; otherwise the error of each.
async fn ask(admin: &AdminClient, addresses: &[String]) -> Result<(), Vec<RpcError>> {
    let calls: Vec<_> = addresses
        .iter()
        .map(|address| admin.status().to_address(address).future())
        .collect();
    let mut errors = Vec::new();
    for call in calls {
        match call.await {
            Ok(_) | Err(CallError::App(_)) => return Ok(()),
            Err(CallError::Rpc(error)) => errors.push(error),
        }
    }
    Err(errors)
}

/// Waits up to [`PROBE_WAIT`] until one of the addresses takes a connection. False if none did, or if one
/// fails for another reason than a refused connection, which waiting would not change.
async fn listens(addresses: &[String]) -> bool {
    let start = Instant::now();
    let mut is_said = false;
    while start.elapsed() < PROBE_WAIT {
        for address in addresses {
            match tokio::time::timeout(PROBE_WAIT, TcpStream::connect(address)).await {
                Ok(Ok(_)) => return true,
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                _ => return false,
            }
        }
        if !is_said && (io::stderr().is_terminal() || start.elapsed() >= QUIET) {
            remark(&format!("mq: waiting for a broker at {}", addresses.join(", ")));
            is_said = true;
        }
        tokio::time::sleep(PROBE_PAUSE).await;
    }
    false
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
