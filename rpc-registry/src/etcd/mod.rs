//! The registry in etcd: one lease per process, one key per instance, one watch per service.
//!
//! `layout` defines keys and values; `lease`, `wishes` and `listing` are the pure parts; `register` and
//! `watch` are the tasks around them; `link` is the connection they share.

mod layout;
mod lease;
mod link;
mod listing;
mod register;
mod watch;
mod wishes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use rpc_core::plugin::{PluginError, Settings};
use rpc_core::registry::{
    Instance, InstanceId, Registry, RegistryError, RegistryPlugin, ServiceKey, Snapshot,
};
use tokio::sync::watch as pictures;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::link::Link;
use self::register::{Registrar, WishList};
use self::watch::Follower;
use self::wishes::Progress;
use crate::cache::{self, Followed};

rpc_core::plugin!(RegistryPlugin, "etcd", |settings| {
    let registry = EtcdBuilder::from_settings(settings)?.build();
    Ok(crate::as_set(Arc::new(registry), settings))
});

/// The default lease.
const LEASE: Duration = Duration::from_secs(10);
const DEREGISTER_WITHIN: Duration = Duration::from_secs(2);
const CLOSE_WITHIN: Duration = Duration::from_secs(3);
/// A value larger than this is a mistake; etcd itself refuses 1.5 MiB.
const VALUE_BYTES_MAX: usize = 64 * 1024;

/// Settings of an [`Etcd`] registry.
#[derive(Clone)]
pub struct EtcdBuilder {
    endpoints: Vec<String>,
    lease: Duration,
    user: Option<(String, String)>,
}

impl EtcdBuilder {
    /// The lease: how long this process may be silent before its instances disappear. Default 10 s, in whole
    /// seconds; etcd grants no less than its own election takes (2 s by default).
    #[must_use]
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// A user of etcd, with permission to read and write below `/hc-rpc/`. Default: none.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((name.into(), password.into()));
        self
    }

    /// The registry. It connects at its first use, on the tokio runtime of that use.
    #[must_use]
    pub fn build(self) -> Etcd {
        let stop = CancellationToken::new();
        Etcd {
            shared: Arc::new(Shared {
                link: Link::new(self.endpoints, self.user),
                list: WishList::default(),
                lease: self.lease,
                followed: Followed::default(),
            }),
            tasks: TaskTracker::new(),
            registrar_runs: AtomicBool::new(false),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        }
    }

    fn from_settings(settings: &Settings) -> Result<Self, PluginError> {
        settings.only(&["address", "lease_ms", "user", "password", crate::KEEP_DIR])?;
        let endpoints = cache::addresses(settings)?;
        let lease_ms: u64 = settings.parse("lease_ms", 10_000)?;
        if lease_ms < 1000 {
            return Err(PluginError::Setting {
                key: "lease_ms".into(),
                reason: format!("`{lease_ms}`: expected at least 1000; etcd counts leases in seconds"),
            });
        }
        let builder = Self {
            endpoints,
            lease: Duration::from_millis(lease_ms),
            user: None,
        };
        match (settings.text("user"), settings.text("password")) {
            (Some(user), Some(password)) => Ok(builder.user(user, password)),
            (None, None) => Ok(builder),
            (user, _) => Err(PluginError::Setting {
                key: user.map_or("user", |_| "password").into(),
                reason: "missing; `user` and `password` go together".into(),
            }),
        }
    }
}

impl std::fmt::Debug for EtcdBuilder {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdBuilder")
            .field("endpoints", &self.endpoints)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// The registry `etcd`.
///
/// All instances announced through one value share one lease; a process needs only one value. Dropping it
/// without [`Registry::close`] revokes the lease in the background, if the runtime is still running.
#[derive(Debug)]
pub struct Etcd {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    registrar_runs: AtomicBool,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// The state that the tasks share with the handle.
#[derive(Debug)]
struct Shared {
    link: Link,
    list: WishList,
    lease: Duration,
    /// The lists of all services with subscribers.
    followed: Followed,
}

impl Etcd {
    /// A registry in the etcd cluster whose members are at `endpoints`: `host:port`, several separated by commas.
    #[must_use]
    pub fn builder(endpoints: &str) -> EtcdBuilder {
        EtcdBuilder {
            endpoints: cache::split_addresses(endpoints),
            lease: LEASE,
            user: None,
        }
    }

    fn refused(&self, reason: String) -> RegistryError {
        RegistryError::Refused {
            registry: self.shared.link.endpoints(),
            reason,
        }
    }

    fn unreachable(&self, last: &Progress, waited: Duration) -> RegistryError {
        RegistryError::Unreachable {
            registry: self.shared.link.endpoints(),
            reason: match last {
                Progress::Waiting(Some(reason)) => reason.clone(),
                _ => format!("no answer within {waited:?}"),
            },
        }
    }

    /// Starts the registrar at the first announcement.
    fn start_registrar(&self) -> Result<(), RegistryError> {
        let runtime = cache::runtime(&self.shared.link.endpoints())?;
        if !self.registrar_runs.swap(true, Ordering::AcqRel) {
            let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
            let task = async move {
                let registrar = Registrar::new(&shared.link, &shared.list, shared.lease);
                registrar.run(&stop).await;
            };
            self.tasks.spawn_on(task, &runtime);
        }
        Ok(())
    }

    /// Waits until the wish is fulfilled; returns its progress when the time is up.
    async fn progress(mut wish: pictures::Receiver<Progress>, wait: Duration) -> Progress {
        let ended = wish.wait_for(|progress| !matches!(progress, Progress::Waiting(_)));
        if let Ok(Ok(progress)) = tokio::time::timeout(wait, ended).await {
            return progress.clone();
        }
        wish.borrow().clone()
    }
}

impl Shared {
    /// Keeps the list of `key` up to date until it has had no subscribers for a while.
    async fn follow(&self, key: ServiceKey, shown: Arc<pictures::Sender<Snapshot>>) {
        let follower = Follower::new(&self.link, layout::prefix(&key), &shown, self.lease);
        tokio::select! {
            never = follower.run() => match never {},
            () = self.followed.until_unseen(&key, &shown) => {}
        }
    }
}

#[async_trait]
impl Registry for Etcd {
    async fn register(
        &self,
        key: &ServiceKey,
        instance: &Instance,
        wait: Duration,
    ) -> Result<(), RegistryError> {
        if self.stop.is_cancelled() {
            return Err(RegistryError::Closed);
        }
        let value = layout::value(instance).map_err(|error| self.refused(error.to_string()))?;
        if value.len() > VALUE_BYTES_MAX {
            let reason = format!(
                "an instance of {} bytes, at most {VALUE_BYTES_MAX} are allowed; shorten its metadata",
                value.len()
            );
            return Err(self.refused(reason));
        }
        self.start_registrar()?;
        let wish = self
            .shared
            .list
            .lock()
            .want(&layout::key(key, &instance.id), value);
        self.shared.list.ring();
        match Self::progress(wish, wait).await {
            Progress::Done => Ok(()),
            Progress::Refused(reason) => Err(self.refused(reason)),
            waiting @ Progress::Waiting(_) => Err(self.unreachable(&waiting, wait)),
        }
    }

    async fn deregister(&self, key: &ServiceKey, id: &InstanceId) -> Result<(), RegistryError> {
        if self.stop.is_cancelled() {
            // The lease was revoked, and all keys with it.
            return Ok(());
        }
        let Some(wish) = self.shared.list.lock().forget(&layout::key(key, id)) else {
            return Ok(());
        };
        self.shared.list.ring();
        match Self::progress(wish, DEREGISTER_WITHIN).await {
            Progress::Done => Ok(()),
            Progress::Refused(reason) => Err(self.refused(reason)),
            waiting @ Progress::Waiting(_) => Err(self.unreachable(&waiting, DEREGISTER_WITHIN)),
        }
    }

    fn subscribe(&self, key: &ServiceKey) -> Result<pictures::Receiver<Snapshot>, RegistryError> {
        if self.stop.is_cancelled() {
            return Err(RegistryError::Closed);
        }
        let runtime = cache::runtime(&self.shared.link.endpoints())?;
        let start = |shown| {
            let (shared, stop, key) = (Arc::clone(&self.shared), self.stop.clone(), key.clone());
            let task = async move {
                stop.run_until_cancelled(shared.follow(key, shown)).await;
            };
            self.tasks.spawn_on(task, &runtime);
        };
        Ok(self.shared.followed.subscribe(key, start))
    }

    async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(CLOSE_WITHIN, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(registry = %self.shared.link.endpoints(), "closing took too long; the lease expires by itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Result<EtcdBuilder, PluginError> {
        EtcdBuilder::from_settings(&Settings::from_url(url).unwrap().1)
    }

    #[test]
    fn url_says_it_all() {
        let builder = settings("etcd://a:1,b:2,[::1]:3?lease_ms=5000&user=u&password=secret").unwrap();
        assert_eq!(builder.endpoints, ["a:1", "b:2", "[::1]:3"]);
        assert_eq!(builder.lease, Duration::from_secs(5));
        assert_eq!(builder.user, Some(("u".into(), "secret".into())));
        assert_eq!(settings("etcd://a:1").unwrap().lease, LEASE);
        assert!(!format!("{builder:?} {:?}", builder.clone().build()).contains("secret"));
    }

    #[test]
    fn bad_urls_say_what_was_expected() {
        for (url, key) in [
            ("etcd://", "address"),
            ("etcd://a", "address"),
            ("etcd://a:b", "address"),
            ("etcd://a:1,b", "address"),
            ("etcd://a:1?lease=5s", "lease"),
            ("etcd://a:1?lease_ms=5", "lease_ms"),
            ("etcd://a:1?user=u", "password"),
            ("etcd://a:1?password=p", "user"),
        ] {
            let error = settings(url).expect_err(url);
            assert!(
                matches!(&error, PluginError::Setting { key: bad, .. } if bad == key),
                "{url}: {error}"
            );
        }
    }
}
