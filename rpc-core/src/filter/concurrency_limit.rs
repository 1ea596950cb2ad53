//! So many calls at once and no more, for each method, each peer or all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Filter, FilterPlugin, Next, Per, Side};
use crate::BoxFuture;
use crate::carrier::Answer;
use crate::error::{Code, Executed, RpcError};
use crate::message::Request;
use crate::plugin::{PluginError, Settings};

/// Answers calls `Overloaded`, not executed, while so many run already. A call that answers with a stream runs until the
/// stream ends. By name: `concurrency_limit?max=8&per=peer`, where `per` (`all`, `method` or `peer`; default `method`) may
/// be left out.
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
    max: usize,
    per: Per,
    /// As many as run, and none of those that do not.
    running: Mutex<HashMap<Box<str>, usize>>,
}

/// One call's place.
struct Place<'a> {
    limit: &'a ConcurrencyLimit,
    key: Box<str>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut running = self.limit.running();
        if let Some(count) = running.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.key);
            }
        }
    }
}

impl ConcurrencyLimit {
    /// `max` calls of each method at once.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max,
            per: Per::default(),
            running: Mutex::default(),
        }
    }

    /// Counts by this.
    #[must_use]
    pub fn per(mut self, per: Per) -> Self {
        self.per = per;
        self
    }

    fn from_settings(settings: &Settings) -> Result<Self, PluginError> {
        settings.only(&["max", "per"])?;
        match settings.parse("max", 0)? {
            0 => Err(PluginError::Setting {
                key: "max".to_owned(),
                reason: "expected how many calls may run at once, as in `concurrency_limit?max=8`".to_owned(),
            }),
            max => Ok(Self::new(max).per(settings.parse("per", Per::default())?)),
        }
    }

    fn enter(&self, request: &Request) -> Option<Place<'_>> {
        let key = Box::from(self.per.key(request));
        let mut running = self.running();
        let count = running.get(&key).copied().unwrap_or_default();
        if count >= self.max {
            return None;
        }
        running.insert(Box::clone(&key), count + 1);
        Some(Place { limit: self, key })
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Box<str>, usize>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filter for ConcurrencyLimit {
    fn call<'a>(&'a self, _: Side, request: Request, next: &'a dyn Next) -> BoxFuture<'a, Answer> {
        let Some(place) = self.enter(&request) else {
            let message = format!(
                "{} calls of `{}` run already, its limit",
                self.max, request.method.name
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
    use crate::testing::request;

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
        assert!(limit.running().is_empty());
    }

    #[test]
    fn settings_are_checked() {
        let build = |text: &str| {
            FilterPlugin::from_text(text)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        assert_eq!(build("concurrency_limit?max=8&per=all"), Ok(()));
        for (text, expected) in [
            (
                "concurrency_limit",
                "filter `concurrency_limit`: setting `max`: expected how many",
            ),
            ("concurrency_limit?max=0", "expected how many"),
            ("concurrency_limit?max=-1", "setting `max`: `-1`: invalid digit"),
            ("concurrency_limit?max=1&peer=all", "setting `peer`: unknown"),
        ] {
            let error = build(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
