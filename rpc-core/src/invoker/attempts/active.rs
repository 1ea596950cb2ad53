//! One attempt at a node, and what the node's statistics learn from its outcome. If the balancer uses no
//! statistics, it records nothing, reads no clock and writes nothing that other threads read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Instances;
use crate::balance::Node;
use crate::call::now;
use crate::error::{Code, RpcError};
use crate::message::Request;

/// A running attempt. Dropping it before [`Active::end`] cancels it.
#[derive(Debug)]
pub(in crate::invoker) struct Active {
    node: Arc<Node>,
    /// When it started, if the balancer uses statistics.
    timed: Option<Instant>,
    oneway: bool,
    /// Whether it is a stream, whose duration says nothing about its provider.
    streamed: bool,
}

impl Active {
    pub(in crate::invoker) fn begin<I: Instances>(instances: &I, node: Arc<Node>, request: &Request) -> Self {
        let timed = instances.is_timed().then_some(request.started);
        if timed.is_some() {
            node.call_started();
        }
        Self {
            node,
            timed,
            oneway: request.oneway,
            streamed: request.items.is_some(),
        }
    }

    pub(in crate::invoker) const fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Records the outcome.
    pub(in crate::invoker) fn end(&mut self, outcome: Result<(), &RpcError>) {
        if let Some(started) = self.timed.take() {
            self.node.call_ended();
            let says_nothing = match outcome {
                Ok(()) => self.oneway || self.streamed,
                Err(error) => self.streamed && error.code == Code::DeadlineExceeded,
            };
            if !says_nothing {
                let now = now();
                let elapsed = match self.streamed {
                    false => now.saturating_duration_since(started),
                    true => Duration::ZERO,
                };
                self.node.note(outcome, elapsed, now);
            }
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if let Some(started) = self.timed {
            self.node.call_ended();
            if !self.streamed {
                let now = now();
                self.node
                    .note_given_up(now.saturating_duration_since(started), now);
            }
        }
    }
}
