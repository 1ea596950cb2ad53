//! The broker's services: decode, check, one call into the core, answer. No further logic, no file, no lock
//! held across an await.

mod admin;
mod backup;
mod batches;
mod fetch;
mod group;
mod offset_at_time;
mod produce;
mod transaction;

use std::sync::Arc;
use std::time::Instant;

use mq_common::ids::{Durability, Lsn, ShardName, TopicName};
use mq_common::{DiskShortage, Error, ErrorCode};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::core::{Acks, Answer, Core, JournalFull};
use crate::fetch::{DiskPool, ResponseBudget};
use crate::log::{Refused, Want};
use crate::state::{Outcome, Refusal, Topic};
use crate::telemetry::Metrics;

pub use admin::Admin;
pub use backup::Backups;
pub use fetch::Fetch;
pub use group::Group;
pub use produce::Produce;
pub use transaction::Transaction;

/// What a broker reports about itself that is not in the state; set once it listens.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// Where clients reach it.
    pub address: String,
    /// Its HTTP address.
    pub http: String,
}

/// What all services share.
#[derive(Debug)]
pub struct Services {
    /// The log, the state, and what is published of them.
    pub core: Arc<Core>,
    /// Collects acks.
    pub acks: Arc<Acks>,
    /// This broker's shard.
    pub shard: ShardName,
    /// Counters.
    pub metrics: Metrics,
    /// Owns tasks that may block.
    pub tasks: TaskTracker,
    /// Disk reads for fetches.
    pub disk_pool: Arc<DiskPool>,
    /// Memory for responses to fetches.
    pub response_budget: ResponseBudget,
    /// Cancelled when a stop begins: long polls answer at once.
    pub stopping: CancellationToken,
    /// Default delay of the first check-back question about a transaction.
    pub check_first_ms: u32,
    /// Addresses.
    pub identity: Arc<std::sync::OnceLock<Identity>>,
    /// Its backups.
    pub backups: Arc<Backups>,
    /// The state of the registration.
    pub health: Arc<crate::http::Health>,
    /// When it started.
    pub started: Instant,
}

impl Services {
    /// Refuses everything once the log has failed: nothing it says can be believed any longer.
    fn check_alive(&self) -> Result<(), Error> {
        if self.core.failed().is_cancelled() {
            return Err(Error::new(
                ErrorCode::ReadOnly,
                "the broker's journal failed; the broker is shutting down",
            ));
        }
        Ok(())
    }

    /// Refuses messages while the journal is above its limit.
    fn check_room(&self) -> Result<(), Error> {
        let full = |full: JournalFull| Error::new(ErrorCode::Overloaded, full.to_string());
        self.core.journal_limit().check().map_err(full)
    }

    /// Counts an appended batch, visible or half.
    fn count_produced(&self, records: u32, bytes: usize) {
        self.metrics.produced_batches.inc();
        self.metrics.produced_records.inc_by(u64::from(records));
        self.metrics.produced_bytes.inc_by(bytes as u64);
    }

    fn topic(&self, name: &TopicName) -> Result<Arc<Topic>, Error> {
        let topics = &self.core.published().topics;
        topics
            .live(name)
            .ok_or_else(|| self.refusal(&Refusal::UnknownTopic(name.clone())))
    }

    /// The core's result, or the error for the client.
    fn outcome(&self, answer: Answer) -> Result<(Outcome, Lsn, Durability), Error> {
        match answer {
            Answer::Applied {
                result: Outcome::Refused(refusal),
                ..
            } => Err(self.refusal(&refusal)),
            Answer::Applied {
                result: outcome,
                lsn,
                reached,
            } => Ok((outcome, lsn, reached)),
            Answer::Refused(refused) => Err(self.refused(&refused)),
            Answer::Unknown => Err(Error::new(
                ErrorCode::OutcomeUnknown,
                "the journal failed while this was being written: it may have happened or not",
            )),
        }
    }

    fn refusal(&self, refusal: &Refusal) -> Error {
        refusal.to_error(&self.shard)
    }

    fn refused(&self, refused: &Refused) -> Error {
        let code = match refused {
            Refused::NotLeader { .. } => ErrorCode::NotLeader,
            Refused::Overloaded { .. } => ErrorCode::Overloaded,
            Refused::TooLarge { .. } => ErrorCode::TooLarge,
            Refused::DiskFull { .. } => ErrorCode::DiskFull,
            Refused::ReadOnly if self.stopping.is_cancelled() => ErrorCode::ShuttingDown,
            Refused::ReadOnly | Refused::ReserveUsed { .. } | Refused::NoSegment { .. } => {
                ErrorCode::ReadOnly
            }
        };
        let mut error = Error::new(code, refused.to_string());
        if let Refused::DiskFull { free, needed } | Refused::ReserveUsed { free, needed } = *refused {
            error.disk = Some(DiskShortage { free, needed });
        }
        error
    }

    fn count<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &outcome {
            self.metrics.refuse(error);
        }
        outcome
    }
}

/// The log's progress that a durability requires. This broker keeps one copy.
fn want(durability: Durability) -> Result<Want, Error> {
    match durability {
        Durability::Memory => Ok(Want::Flushed),
        Durability::Fsynced => Ok(Want::Synced),
        Durability::ReplicatedFsynced(_) => Err(Error::new(
            ErrorCode::Unsupported,
            format!(
                "this broker keeps one copy and cannot reach `{durability}`; ask for `memory` or `fsynced`"
            ),
        )),
    }
}

/// The outcome does not belong to the command: a bug of ours.
fn unexpected(outcome: &Outcome) -> Error {
    tracing::error!(?outcome, "a command was answered with an outcome of another kind");
    Error::new(
        ErrorCode::Internal,
        "the broker gave an unexpected answer; see its log",
    )
}
