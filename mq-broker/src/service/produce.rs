//! Appends batches: each gets its own receipt or refusal.

use std::sync::Arc;

use mq_common::api::produce::{self as api, ProduceRequest, ProduceResponse, Receipt};
use mq_common::ids::Durability;
use mq_common::{Error, ErrorCode};
use rpc_core::Attachment;

use super::batches::{Checked, check};
use super::{Services, unexpected, want};
use crate::core::Answer;
use crate::log::{self, Want};
use crate::state::{Command, Outcome};

/// The service `hc.mq.Produce`.
#[derive(Debug, Clone)]
pub struct Produce(pub Arc<Services>);

impl api::Produce for Produce {
    async fn produce(&self, request: ProduceRequest, batches: Attachment) -> Result<ProduceResponse, Error> {
        self.0.count(self.append(request, batches).await)
    }
}

impl Produce {
    async fn append(&self, request: ProduceRequest, attached: Attachment) -> Result<ProduceResponse, Error> {
        let services = &self.0;
        services.check_alive()?;
        services.check_room()?;
        let checked = check(services, &request.topics, attached)?;
        let mut commands = Vec::with_capacity(checked.len());
        let mut outcomes = Vec::with_capacity(checked.len());
        for batch in checked {
            match batch.and_then(|batch| command(batch, request.durability)) {
                Ok(command) => {
                    commands.push(command);
                    outcomes.push(None);
                }
                Err(error) => outcomes.push(Some(error)),
            }
        }
        let sizes: Vec<_> = commands
            .iter()
            .flat_map(|(command, _)| &command.batches)
            .map(|batch| (batch.record_count(), batch.len()))
            .collect();
        let answers = services.core.propose(commands).await;
        let mut answers = answers.into_iter().zip(sizes);
        let outcomes = outcomes.into_iter().map(|refusal| {
            let outcome = match (refusal, answers.next()) {
                (Some(error), _) => Err(error),
                (None, Some((answer, size))) => self.receipt(answer, size),
                (None, None) => Err(Error::new(ErrorCode::OutcomeUnknown, "the core gave no answer")),
            };
            services.count(outcome)
        });
        Ok(ProduceResponse {
            outcomes: outcomes.collect(),
        })
    }

    fn receipt(&self, answer: Answer, (records, bytes): (u32, usize)) -> Result<Receipt, Error> {
        let (outcome, lsn, durability) = self.0.outcome(answer)?;
        let Outcome::Appended { base_offset } = outcome else {
            return Err(unexpected(&outcome));
        };
        self.0.count_produced(records, bytes);
        Ok(Receipt {
            base_offset,
            lsn,
            durability,
        })
    }
}

/// The command for one batch, and the progress it waits for: the topic's minimum durability, or more if
/// requested.
fn command(batch: Checked, asked: Option<Durability>) -> Result<(log::Command, Want), Error> {
    let floor = batch.floor;
    let durability = asked.unwrap_or(floor);
    if durability < floor {
        return Err(Error::new(
            ErrorCode::DurabilityBelowFloor,
            format!(
                "durability `{durability}` is below the topic's floor `{floor}`; ask for `{floor}` or for nothing"
            ),
        ));
    }
    let want = want(durability)?;
    let command = Command::Append(batch.part).encode();
    Ok((log::Command::new(command, vec![batch.batch]), want))
}
