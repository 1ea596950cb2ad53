//! What most tests of a process begin with.

use std::path::PathBuf;

use tempfile::TempDir;

use super::{BrokerProcess, Client, Options};

/// A new broker in a folder of its own, and a client of it. To be taken apart: the folder lives as long as
/// its value.
pub(crate) struct Running {
    pub(crate) folder: TempDir,
    pub(crate) data: PathBuf,
    pub(crate) broker: BrokerProcess,
    pub(crate) client: Client,
}

impl Running {
    pub(crate) async fn start(options: &Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let broker = BrokerProcess::start_with(&data, options);
        let client = Client::connect(&broker).await;
        Self {
            folder,
            data,
            broker,
            client,
        }
    }
}
