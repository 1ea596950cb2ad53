//! A broker within the example's own process, with its data in a temporary folder: so that an example is one program.

use mq_broker::broker::Broker;
use mq_broker::config::{Config, Given, Source};
use tempfile::TempDir;

/// A running broker and its folder, which goes with it.
#[derive(Debug)]
pub struct LocalBroker {
    broker: Broker,
    _folder: TempDir,
}

impl LocalBroker {
    /// A broker called `name` on free ports, registered at `registry` (`embedded`, or a URL).
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(name: &str, registry: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data").display().to_string();
        let settings = [
            ("broker.name", name),
            ("broker.data_dir", &data),
            ("network.listen", "127.0.0.1:0"),
            ("network.http", "127.0.0.1:0"),
            ("registry.url", registry),
        ];
        let given = settings.map(|(key, value)| Given {
            key: key.to_owned(),
            value: value.to_owned(),
            source: Source::Flag,
        });
        let broker = Broker::start(Config::merge(&given)?).await?;
        Ok(Self {
            broker,
            _folder: folder,
        })
    }

    /// Where clients reach it.
    #[must_use]
    pub fn address(&self) -> &str {
        self.broker.address()
    }

    /// Stops it gracefully.
    ///
    /// # Errors
    /// The stop was not clean.
    pub async fn stop(self) -> Result<(), Box<dyn std::error::Error>> {
        Ok(self.broker.stop().await?)
    }
}
