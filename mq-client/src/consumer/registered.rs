//! Handlers that register themselves at link time with the attribute `#[mq_client::consumer]`, and the call
//! that runs them all.

use std::collections::BTreeSet;
use std::sync::Arc;

use mq_common::api::group::StartAt;

use super::{Consumer, Handler};
use crate::client::Client;
use crate::error::ConsumeError;

/// What `#[mq_client::consumer(..)]` submits.
#[derive(Debug)]
pub struct ConsumerRecord {
    /// Module and name of the function.
    pub name: &'static str,
    /// The topic.
    pub topic: &'static str,
    /// The group.
    pub group: &'static str,
    /// Polling tasks per broker; `None` = the default.
    pub threads: Option<usize>,
    /// Whether a new group starts at the end of its queues instead of their beginning.
    pub latest: bool,
    /// The function as a handler.
    pub handler: fn() -> Arc<dyn Handler>,
}

inventory::collect!(ConsumerRecord);

/// All consumers registered in this program, running.
#[derive(Debug)]
pub struct RunningConsumers {
    consumers: Vec<(&'static str, Consumer)>,
}

impl RunningConsumers {
    /// Names of the handlers, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.consumers.iter().map(|(name, _)| *name).collect()
    }

    /// Stops all of them and waits until they have stopped.
    ///
    /// # Errors
    /// The first failure of a consumer that had stopped by itself.
    ///
    /// # Cancel safety
    /// Dropping the future stops all of them in the background, without waiting for them.
    pub async fn stop(self) -> Result<(), ConsumeError> {
        let mut outcome = Ok(());
        for (_, consumer) in self.consumers {
            let stopped = consumer.stop().await;
            outcome = outcome.and(stopped);
        }
        outcome
    }
}

impl Client {
    /// Starts every handler that was registered with `#[mq_client::consumer(topic = "..", group = "..")]` in
    /// this program, in order of their names.
    ///
    /// # Errors
    /// The first one that cannot start; those started before it are stopped.
    ///
    /// # Cancel safety
    /// Dropping the future stops those that were started.
    pub async fn run_consumers(&self) -> Result<RunningConsumers, ConsumeError> {
        let mut records: Vec<_> = inventory::iter::<ConsumerRecord>.into_iter().collect();
        records.sort_by_key(|record| record.name);
        let mut names = BTreeSet::new();
        if let Some(twice) = records.iter().find(|record| !names.insert(record.name)) {
            return Err(ConsumeError::Duplicate { name: twice.name });
        }
        let mut running = RunningConsumers {
            consumers: Vec::new(),
        };
        for record in records {
            match self.run(record).await {
                Ok(consumer) => running.consumers.push((record.name, consumer)),
                Err(error) => {
                    if let Err(error) = running.stop().await {
                        tracing::warn!(%error, "a consumer had stopped by itself");
                    }
                    return Err(error);
                }
            }
        }
        Ok(running)
    }

    async fn run(&self, record: &ConsumerRecord) -> Result<Consumer, ConsumeError> {
        let mut builder = self.consumer(record.topic, record.group)?;
        if let Some(threads) = record.threads {
            builder = builder.threads(threads);
        }
        if record.latest {
            builder = builder.start_at(StartAt::Latest);
        }
        builder.run_handler((record.handler)()).await
    }
}
