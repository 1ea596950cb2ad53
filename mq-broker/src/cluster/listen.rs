//! Checks the addresses that the broker listens on and announces, before anything is opened.

use std::net::{SocketAddr, ToSocketAddrs as _};

use crate::config::Network;

/// Why the addresses are refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The host name cannot be resolved.
    #[error("`{key}` = `{address}` cannot be resolved: {reason}")]
    Unresolved {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: String,
        /// The resolver's error.
        reason: String,
    },
    /// The address to announce is not one that others can call.
    #[error(
        "`network.listen` = `{address}` means all interfaces, which is not an address that others can call; give one with `--advertise host:port`"
    )]
    NoAdvertise {
        /// The address.
        address: String,
    },
    /// Anyone on the network could read and write.
    #[error(
        "`{key}` = `{address}` is reachable from other machines and no token is set; give `--auth-token-file FILE`, or `--insecure-listen` if the network is trusted"
    )]
    Insecure {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: String,
    },
}

/// Checks the addresses.
///
/// # Errors
/// [`ListenError`] names the setting and what to do.
pub fn check(network: &Network) -> Result<(), ListenError> {
    let listen = resolve("network.listen", &network.listen)?;
    let http = resolve("network.http", &network.http)?;
    if network.advertise.is_none() && listen.iter().any(|address| address.ip().is_unspecified()) {
        return Err(ListenError::NoAdvertise {
            address: network.listen.clone(),
        });
    }
    if network.auth_token_file.is_some() || network.insecure_listen {
        return Ok(());
    }
    let all = [
        ("network.listen", &network.listen, listen),
        ("network.http", &network.http, http),
    ];
    for (key, address, resolved) in all {
        if !resolved.iter().all(|address| address.ip().is_loopback()) {
            return Err(ListenError::Insecure {
                key,
                address: address.clone(),
            });
        }
    }
    Ok(())
}

/// The address at which others reach the HTTP server: the bound port, on the advertised host if the server
/// listens on all interfaces.
#[must_use]
pub fn advertised_http(bound: SocketAddr, advertise: Option<&str>) -> String {
    let host = advertise
        .and_then(|address| address.rsplit_once(':'))
        .map(|(host, _)| host);
    match host {
        Some(host) if bound.ip().is_unspecified() => format!("{host}:{}", bound.port()),
        _ => bound.to_string(),
    }
}

fn resolve(key: &'static str, address: &str) -> Result<Vec<SocketAddr>, ListenError> {
    let unresolved = |reason: String| ListenError::Unresolved {
        key,
        address: address.to_owned(),
        reason,
    };
    let found: Vec<SocketAddr> = address
        .to_socket_addrs()
        .map_err(|error| unresolved(error.to_string()))?
        .collect();
    if found.is_empty() {
        return Err(unresolved("the name has no address".to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(listen: &str, http: &str) -> Network {
        Network {
            listen: listen.to_owned(),
            http: http.to_owned(),
            ..Network::default()
        }
    }

    #[test]
    fn loopback_needs_nothing() {
        check(&network("127.0.0.1:0", "[::1]:0")).unwrap();
        check(&network("localhost:7070", "127.0.0.1:0")).unwrap();
    }

    #[test]
    fn every_interface_needs_an_advertised_address() {
        let mut network = network("0.0.0.0:7070", "127.0.0.1:0");
        network.insecure_listen = true;
        assert!(matches!(check(&network), Err(ListenError::NoAdvertise { .. })));
        network.advertise = Some("b:7070".into());
        check(&network).unwrap();
    }

    #[test]
    fn beyond_loopback_needs_a_token_or_the_flag() {
        for bad in [
            network("192.0.2.1:1", "127.0.0.1:0"),
            network("127.0.0.1:0", "0.0.0.0:1"),
        ] {
            let error = check(&bad).unwrap_err();
            assert!(matches!(error, ListenError::Insecure { .. }), "{error}");
            assert!(error.to_string().contains("--insecure-listen"));
            let secured = Network {
                auth_token_file: Some("token".into()),
                ..bad
            };
            check(&secured).unwrap();
        }
    }

    #[test]
    fn http_on_every_interface_is_announced_under_the_advertised_host() {
        let bound = "0.0.0.0:9".parse().unwrap();
        assert_eq!(advertised_http(bound, Some("b.example:7070")), "b.example:9");
        assert_eq!(
            advertised_http("127.0.0.1:9".parse().unwrap(), None),
            "127.0.0.1:9"
        );
    }
}
