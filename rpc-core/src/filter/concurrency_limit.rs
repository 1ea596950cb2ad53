//! Limits the calls that run at once, for each method, each peer or all together.

use std::sync::Arc;

use super::{Filter, FilterPlugin, Next, Per, Side};
use crate::BoxFuture;
use crate::dispatch::Answer;
use crate::error::{Code, Executed, RpcError};
use crate::keyed_limit::KeyedLimit;
use crate::message::Request;
use crate::plugin::{PluginError, Settings};

/// Answers calls with `Overloaded`, not executed, while `max` calls are running. A call that returns a stream
/// runs until the stream ends. By name: `concurrency_limit?max=8&per=peer`, where `per` (`all`, `method` or
/// `peer`; default `method`) is optional.
///
/// ```
/// use std::sync::Arc;
/// use rpc_core::filter::{ConcurrencyLimit, Per};
/// use rpc_core::{Invoker, Provider};
///
/// let by_value = Provider::builder().filter(Arc::new(ConcurrencyLimit::new(8).per(Per::Peer)));
/// let by_name = Invoker::builder().filter("concurrency_limit?max=8");
/// # drop((by_value, by_name));
/// ```
#[derive(Debug)]
pub struct ConcurrencyLimit {
    places: KeyedLimit,
    per: Per,
}

/// The permit of one call.
struct Permit<'a> {
    limit: &'a ConcurrencyLimit,
    key: Box<str>,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.limit.places.leave(&self.key);
    }
}

impl ConcurrencyLimit {
    /// `max` calls of each method at once.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            places: KeyedLimit::new(max),
            per: Per::default(),
        }
    }

    /// Sets what is counted together. Default: each method.
    #[must_use]
    pub fn per(mut self, per: Per) -> Self {
        self.per = per;
        self
    }

    fn from_settings(settings: &Settings) -> Result<Self, PluginError> {
        settings.only(&["max", "per"])?;
        match settings.parse("max", 0)? {
            0 => Err(PluginError::setting(
                "max",
                "expected how many calls may run at once, as in `concurrency_limit?max=8`",
            )),
            max => Ok(Self::new(max).per(settings.parse("per", Per::default())?)),
        }
    }

    fn enter(&self, request: &Request) -> Option<Permit<'_>> {
        let key = Box::from(self.per.key(request));
        self.places.enter(&key).then(|| Permit { limit: self, key })
    }
}

impl Filter for ConcurrencyLimit {
    fn call<'a>(&'a self, _: Side, request: Request, next: &'a dyn Next) -> BoxFuture<'a, Answer> {
        let Some(place) = self.enter(&request) else {
            let message = format!(
                "{} calls of `{}` are already running, which is its limit",
                self.places.max(),
                request.method.name
            );
            let error = RpcError::new(Code::Overloaded, Executed::No, message);
            return Box::pin(std::future::ready(Err(error)));
        };
        Box::pin(async move {
            let _place = place;
            next.run(request).await
        })
    }
}

crate::plugin!(FilterPlugin, "concurrency_limit", |settings| {
    Ok(Arc::new(ConcurrencyLimit::from_settings(settings)?))
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{request, settings_are_checked_by};

    #[test]
    fn places_come_back_and_leave_nothing_behind() {
        let limit = ConcurrencyLimit::new(2);
        let request = request();
        let first = limit.enter(&request).unwrap();
        let second = limit.enter(&request).unwrap();
        assert!(limit.enter(&request).is_none());
        drop(first);
        let third = limit.enter(&request).unwrap();
        drop((second, third));
        assert_eq!(limit.places.keys(), 0);
    }

    #[test]
    fn settings_are_checked() {
        settings_are_checked_by(
            FilterPlugin::from_text,
            "concurrency_limit?max=8&per=all",
            &[
                (
                    "concurrency_limit",
                    "filter `concurrency_limit`: setting `max`: expected how many",
                ),
                ("concurrency_limit?max=0", "expected how many"),
                ("concurrency_limit?max=-1", "setting `max`: `-1`: invalid digit"),
                ("concurrency_limit?max=1&peer=all", "setting `peer`: unknown"),
            ],
        );
    }
}
