//! The outcomes of the messages: counted, printed one by one if requested, summed up at the end.

use std::time::Instant;

use mq_client::{Outcome as SendOutcome, RouteError, SendError, SendReceipt};
use mq_common::ErrorCode;

use crate::args::Format;
use crate::fail::{Failure, Outcome, sending};
use crate::output::{Output, Record, remark};

/// How many errors are printed; further ones are only counted.
const ERRORS_SHOWN: u64 = 5;

/// The counts.
#[derive(Debug)]
pub(super) struct Tally {
    begun: Instant,
    verbose: bool,
    sent: u64,
    acked: u64,
    failed: u64,
    unknown: u64,
}

impl Tally {
    /// All counts are zero; starts the clock.
    pub(super) fn new(verbose: bool) -> Self {
        Self {
            begun: Instant::now(),
            verbose,
            sent: 0,
            acked: 0,
            failed: 0,
            unknown: 0,
        }
    }

    /// `count` more messages were given to the producer.
    pub(super) const fn sent(&mut self, count: u64) {
        self.sent += count;
    }

    /// `count` messages were refused or dropped by the producer.
    pub(super) const fn dropped(&mut self, count: u64) {
        self.failed += count;
    }

    /// Counts the outcome of one message. An error that all further messages would also get ends the command.
    pub(super) fn outcome(
        &mut self,
        outcome: &Result<SendReceipt, SendError>,
        output: &mut Output,
    ) -> Outcome {
        match outcome {
            Ok(receipt) => {
                self.acked += 1;
                if self.verbose {
                    output.line(&row(receipt))?;
                }
                return Ok(());
            }
            Err(error) if error.outcome() == SendOutcome::Unknown => self.unknown += 1,
            Err(_) => self.failed += 1,
        }
        if let Err(error) = outcome {
            if is_lasting(error) {
                return Err(Failure::new(words(error)));
            }
            if self.failed + self.unknown <= ERRORS_SHOWN {
                remark(&format!("mq: {}", words(error)));
            }
        }
        Ok(())
    }

    /// `count` messages did not become visible, or it is unknown whether they did.
    pub(super) const fn not_visible(&mut self, count: u64, outcome: SendOutcome) {
        match outcome {
            SendOutcome::Definite => self.failed += count,
            SendOutcome::Unknown => self.unknown += count,
        }
    }

    /// All of a transaction became visible.
    pub(super) fn committed(&mut self, count: u64, receipts: &[SendReceipt], output: &mut Output) -> Outcome {
        self.acked += count;
        for receipt in receipts.iter().filter(|_| self.verbose) {
            output.line(&row(receipt))?;
        }
        Ok(())
    }

    /// Whether nothing was given to the producer.
    pub(super) const fn is_empty(&self) -> bool {
        self.sent == 0
    }

    /// Whether everything sent so far has a receipt.
    pub(super) const fn all_acked(&self) -> bool {
        self.acked == self.sent
    }

    /// Whether nothing sent so far is known to have failed.
    pub(super) const fn none_failed(&self) -> bool {
        self.failed == 0 && self.unknown == 0
    }

    /// Prints the summary: as the last line of stdout, but to stderr if stdout is a table of receipts.
    pub(super) fn summary(&self, output: &mut Output) -> Outcome {
        let seconds = (self.begun.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        if self.verbose && output.format() == Format::Table {
            output.flush()?;
            let Self {
                sent,
                acked,
                failed,
                unknown,
                ..
            } = self;
            remark(&format!(
                "sent {sent}, acked {acked}, failed {failed}, unknown {unknown}, {seconds} s"
            ));
            return Ok(());
        }
        let record = Record::new()
            .with("sent", self.sent)
            .with("acked", self.acked)
            .with("failed", self.failed)
            .with("unknown", self.unknown)
            .with("seconds", seconds);
        output.list(&[record], "")?;
        Ok(())
    }
}

fn row(receipt: &SendReceipt) -> Record {
    Record::new()
        .with("topic", receipt.topic.as_str())
        .with("queue", receipt.queue.0)
        .with("offset", receipt.base_offset.0)
        .with("durability", receipt.durability.to_string())
}

/// The column names of receipts.
pub(super) const RECEIPT_NAMES: [&str; 4] = ["topic", "queue", "offset", "durability"];

/// The error in words for people.
pub(super) fn words(error: &SendError) -> String {
    let text = sending(error);
    match error.outcome() {
        SendOutcome::Unknown => {
            format!("{text}; it may still have been appended, and is not sent again")
        }
        SendOutcome::Definite => text,
    }
}

/// Whether the next message would fail in the same way.
fn is_lasting(error: &SendError) -> bool {
    let broker = matches!(
        error.code(),
        Some(ErrorCode::UnknownTopic | ErrorCode::DurabilityBelowFloor | ErrorCode::Unauthenticated)
    );
    let rpc = matches!(error, SendError::Rpc(error) if error.code == rpc_core::Code::Unauthenticated);
    broker
        || rpc
        || matches!(
            error,
            SendError::Route(RouteError::UnknownTopic { .. } | RouteError::UnknownQueue { .. })
        )
}
