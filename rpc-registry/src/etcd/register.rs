//! The registrar: one task that holds one lease for the process and keeps every wish fulfilled under it.
//!
//! It never gives up: when etcd is away it tries again with growing waits; when the lease is lost it takes a
//! new one and puts every key again. It only ever deletes a key whose lease is its own.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{
    Compare, CompareOp, GetOptions, LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::lease::{Answer, LeaseClock};
use super::link::{Connection, Link, Trouble, answered, within};
use super::wishes::{Step, Wishes};
use crate::backoff::{Backoff, jittered};

/// How often the keys are checked: one may have been deleted by hand.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Time-out for revoking the lease at the end.
const REVOKE_WITHIN: Duration = Duration::from_secs(2);

/// All wishes, and the signal that wakes the registrar.
#[derive(Debug, Default)]
pub(super) struct WishList {
    wishes: Mutex<Wishes>,
    changed: Notify,
}

impl WishList {
    pub(super) fn lock(&self) -> MutexGuard<'_, Wishes> {
        // A panic under this lock would at worst leave a step to be repeated.
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the registrar; call this after every change of the wishes.
    pub(super) fn ring(&self) {
        self.changed.notify_one();
    }
}

/// A lease that etcd granted.
struct Lease {
    id: i64,
    clock: LeaseClock,
}

/// Why a session ended.
enum End {
    /// The lease is gone, with its keys.
    Lost,
    Trouble(Trouble),
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> Self {
        if trouble.is_lease_gone() {
            Self::Lost
        } else {
            Self::Trouble(trouble)
        }
    }
}

pub(super) struct Registrar<'a> {
    link: &'a Link,
    list: &'a WishList,
    /// The requested time to live; etcd may grant more.
    ttl: Duration,
    lease: Option<Lease>,
    backoff: Backoff,
}

impl<'a> Registrar<'a> {
    pub(super) fn new(link: &'a Link, list: &'a WishList, ttl: Duration) -> Self {
        Self {
            link,
            list,
            ttl,
            lease: None,
            // Several attempts must fit into the rest of a lease.
            backoff: Backoff::new((ttl / 5).min(Duration::from_secs(2))),
        }
    }

    /// Works until `stop`, then revokes the lease, and with it every key.
    pub(super) async fn run(mut self, stop: &CancellationToken) {
        stop.run_until_cancelled(self.work()).await;
        let Some(lease) = self.lease.take() else { return };
        let revoked = async {
            let mut connection = self.link.connection().await?;
            within(REVOKE_WITHIN, connection.client.lease_revoke(lease.id)).await
        };
        match revoked.await {
            Ok(_) => tracing::debug!(lease = lease.id, "revoked the lease"),
            Err(trouble) => {
                tracing::warn!(lease = lease.id, %trouble, "could not revoke the lease; it expires by itself");
            }
        }
    }

    async fn work(&mut self) {
        loop {
            while self.lease.is_none() && self.list.lock().is_empty() {
                self.list.changed.notified().await;
            }
            let end = match self.link.connection().await {
                Ok(mut connection) => {
                    let end = self.session(&mut connection).await;
                    if matches!(end, End::Trouble(_)) {
                        self.link.forget(&connection);
                    }
                    end
                }
                Err(trouble) => End::Trouble(trouble),
            };
            match end {
                End::Lost => {
                    tracing::warn!(registry = %self.link.endpoints(), "lease lost; taking a new one and registering again");
                    self.lease = None;
                }
                End::Trouble(trouble) => {
                    tracing::warn!(registry = %self.link.endpoints(), %trouble, "trouble with the registry; trying again");
                    self.list.lock().delayed(&trouble.to_string());
                }
            }
            // Also after a lost lease: a server that loses every lease must not be asked in a tight loop.
            tokio::time::sleep(self.backoff.delay()).await;
        }
    }

    /// One connection's worth of work; the lease outlives it if possible.
    async fn session(&mut self, connection: &mut Connection) -> End {
        self.lease
            .take_if(|lease| lease.clock.deadline() <= Instant::now());
        let outcome = match self.lease.take() {
            Some(lease) => Ok(lease),
            None => grant(connection, self.ttl).await,
        };
        let lease = match outcome {
            Ok(lease) => self.lease.insert(lease),
            Err(trouble) => return End::Trouble(trouble),
        };
        match keep(self.list, lease, connection, &mut self.backoff).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }
}

async fn grant(connection: &mut Connection, ttl: Duration) -> Result<Lease, Trouble> {
    let asked_s = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
    let sent = Instant::now();
    let granted = answered(connection.client.lease_grant(asked_s, None)).await?;
    let granted_s = u64::try_from(granted.ttl()).unwrap_or(0).max(1);
    tracing::debug!(lease = granted.id(), ttl_s = granted_s, "got a lease");
    Ok(Lease {
        id: granted.id(),
        clock: LeaseClock::granted(sent, Duration::from_secs(granted_s)),
    })
}

/// Keeps the lease alive and the wishes fulfilled until that fails.
async fn keep(
    list: &WishList,
    lease: &mut Lease,
    connection: &mut Connection,
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, End> {
    lease.clock.reconnected();
    lease.clock.pinged(Instant::now());
    let opened = answered(connection.client.lease_keep_alive(lease.id)).await;
    let (mut keeper, mut answers) = opened?;
    // The client checks the first answer itself and only reports that the lease is alive.
    lease.clock.confirmed();
    let mut next_look = Instant::now() + jittered(LOOK_EVERY);
    loop {
        let step = list.lock().next_step(lease.id);
        if let Some(step) = step {
            let taking = take(list, step, lease.id, connection);
            match pinging(taking, lease, &mut keeper, &mut answers).await? {
                Ok(()) => backoff.reset(),
                Err(trouble) => return Err(trouble.into()),
            }
            continue;
        }
        backoff.reset();
        let idle = async {
            tokio::select! {
                () = list.changed.notified() => false,
                () = tokio::time::sleep_until(next_look.into()) => true,
            }
        };
        if pinging(idle, lease, &mut keeper, &mut answers).await? {
            next_look = Instant::now() + jittered(LOOK_EVERY);
            let looking = look(list, lease.id, connection);
            pinging(looking, lease, &mut keeper, &mut answers).await??;
        }
    }
}

/// Runs `work` while the lease is kept alive, so that a slow answer to one does not delay the other.
async fn pinging<T>(
    work: impl Future<Output = T>,
    lease: &mut Lease,
    keeper: &mut LeaseKeeper,
    answers: &mut LeaseKeepAliveStream,
) -> Result<T, End> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            answer = answers.message() => {
                let answer = answer.map_err(Trouble::from)?.ok_or(Trouble::Ended)?;
                if lease.clock.answered(answer.ttl()) == Answer::Lost {
                    return Err(End::Lost);
                }
            }
            () = tokio::time::sleep_until(lease.clock.next_ping().into()) => {
                lease.clock.pinged(Instant::now());
                answered(keeper.keep_alive()).await?;
            }
            () = tokio::time::sleep_until(lease.clock.deadline().into()) => return Err(End::Lost),
        }
    }
}

/// Takes one step. A refusal of this step alone is reported to its waiter, and is not a failure of the
/// session.
async fn take(list: &WishList, step: Step, lease: i64, connection: &mut Connection) -> Result<(), Trouble> {
    let client = &mut connection.client;
    let (key, change, outcome) = match step {
        Step::Put { key, value, change } => {
            let put = client.put(key.as_str(), value, Some(PutOptions::new().with_lease(lease)));
            let outcome = answered(put).await.map(drop);
            (key, change, outcome)
        }
        Step::Delete { key, change } => {
            let mine = Compare::lease(key.as_str(), CompareOp::Equal, lease);
            let delete = TxnOp::delete(key.as_str(), None);
            let outcome = answered(client.txn(Txn::new().when([mine]).and_then([delete]))).await;
            (key, change, outcome.map(drop))
        }
    };
    match outcome {
        Ok(()) => list.lock().taken(&key, change),
        Err(trouble) if trouble.is_forbidden() => {
            tracing::error!(key, %trouble, "the registry refuses this key");
            list.lock().refused(&key, change, &trouble.to_string());
        }
        Err(trouble) => return Err(trouble),
    }
    Ok(())
}

/// Finds keys that should exist under our lease and do not.
async fn look(list: &WishList, lease: i64, connection: &mut Connection) -> Result<(), Trouble> {
    let keys = list.lock().announced();
    for key in keys {
        let found = answered(
            connection
                .client
                .get(key.as_str(), Some(GetOptions::new().with_keys_only())),
        );
        let found = found.await?;
        if found.kvs().first().is_none_or(|found| found.lease() != lease) {
            tracing::warn!(key, "the key was deleted or not ours; putting it again");
            list.lock().vanished(&key);
        }
    }
    Ok(())
}
