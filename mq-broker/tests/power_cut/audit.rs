//! Compares what a broker shows after a cut of the power with what it had answered before.

use std::path::Path;

use crate::support::mixed::ledger::Time;
use crate::support::mixed::observed::Observed;
use crate::support::mixed::{Death, Ledger, check, observe};
use crate::support::{BrokerProcess, Client, Options};

/// The check of one folder after the other.
pub(crate) struct Audit<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) options: Options,
}

impl Audit<'_> {
    /// Starts a broker on the folder, twice, and looks: the second one must show what the first one did, but
    /// for what passes over keys let go meanwhile.
    ///
    /// `cut` is when the power went.
    pub(crate) async fn run(&self, data: &Path, cut: Time) -> Result<(), String> {
        let first = self.start(data).await?;
        check(self.ledger, &first, Death::PowerCut, cut)?;
        let second = self.start(data).await?;
        check(self.ledger, &second, Death::PowerCut, cut)?;
        if !first.is_like(&second) {
            return Err("the second start shows something else than the first".to_owned());
        }
        Ok(())
    }

    async fn start(&self, data: &Path) -> Result<Observed, String> {
        // A refusal to start is a finding, not the end of the run.
        let started = BrokerProcess::try_start_with(data, &self.options);
        let broker = started.map_err(|said| format!("the broker does not start: {said}"))?;
        let client = Client::connect(&broker).await;
        let observed = observe(&client).await?;
        client.invoker.shutdown().await;
        broker.kill();
        Ok(observed)
    }
}
