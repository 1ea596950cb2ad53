//! From the global flags to a client.

use std::fs;

use mq_client::Client;

use crate::args::Global;
use crate::fail::{Failure, Outcome};

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
    if let Some(file) = &global.token_file {
        let token = fs::read_to_string(file).map_err(|error| {
            Failure::new(format!(
                "cannot read the token file `{}`: {error}",
                file.display()
            ))
        })?;
        builder = builder.token(token.trim());
    }
    Ok(builder.build().await?)
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
