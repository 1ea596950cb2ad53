//! One log line per call.

use std::sync::Arc;

use super::{Filter, FilterPlugin, Next, Side};
use crate::BoxFuture;
use crate::call::now;
use crate::dispatch::Answer;
use crate::message::{Outcome, Request};

/// Logs every call at INFO under the target `access`: side, service, method, peer, outcome and duration.
/// Parameters and metadata are never logged.
#[derive(Debug, Clone, Copy, Default)]
pub struct AccessLog;

impl Filter for AccessLog {
    fn call<'a>(&'a self, side: Side, request: Request, next: &'a dyn Next) -> BoxFuture<'a, Answer> {
        Box::pin(async move {
            let (route, method) = (Arc::clone(&request.route), request.method.clone());
            let (peer, start) = (request.peer.clone(), now());
            let answer = next.run(request).await;
            let outcome = match &answer {
                Ok(response) if matches!(response.outcome, Outcome::Ok(_)) => "ok",
                Ok(_) => "error of the method",
                Err(_) => "failed",
            };
            let elapsed_us = u64::try_from(now().duration_since(start).as_micros()).unwrap_or(u64::MAX);
            let error = answer.as_ref().err().map(tracing::field::display);
            tracing::info!(
                target: "access",
                ?side,
                service = route.service,
                method = &*method.name,
                peer = peer.as_deref(),
                outcome,
                error,
                elapsed_us,
                "call"
            );
            answer
        })
    }
}

crate::plugin!(FilterPlugin, "access_log", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(AccessLog))
});
