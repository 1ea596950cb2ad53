//! One address: its connections, made when first needed and re-established after they end, with growing
//! pauses.
//!
//! A call waits for a connection under its own deadline; the connection attempt belongs to the endpoint and
//! continues when the call has given up.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::builder::Settings;
use super::connection::Connection;
use super::reader;
use crate::call::now;
use crate::dispatch::shut_down;
use crate::error::{Code, Executed, RpcError};
use crate::message::{Request, Response};
use crate::transport::Transport;

/// A connection attempt that takes longer has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after the first failure; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A connection that ends sooner, and without a HELLO, counts as a failure: the peer accepts and hangs up.
const LIVED: Duration = Duration::from_secs(1);

/// What all endpoints of one invoker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) settings: Settings,
    pub(crate) tracker: TaskTracker,
    pub(crate) runtime: Handle,
    pub(crate) stop: CancellationToken,
    /// Endpoints known to be down: while it is 0, no endpoint has to be checked.
    pub(crate) down: AtomicUsize,
}

/// One address and its connections.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: Arc<str>,
    slots: Vec<Arc<ConnectionSlot>>,
    next: AtomicUsize,
    /// Whether an instance with this address is listed: if so, the endpoint reconnects without waiting for a
    /// call.
    listed: AtomicBool,
    used: AtomicBool,
    /// No new call finds it: its connections only serve calls that already hold it.
    retired: AtomicBool,
    shared: Arc<Shared>,
}

/// One of an endpoint's connections, and the task that maintains it.
#[derive(Debug)]
struct ConnectionSlot {
    up: ArcSwapOption<Connection>,
    state: watch::Sender<Owned>,
    attempts: AtomicU64,
    down: AtomicBool,
}

/// The state of a slot, and the number of the task that may change it: when a connection is asked to go away,
/// a new task takes over the slot and the old one only completes the last calls.
#[derive(Debug, Clone)]
struct Owned {
    owner: u64,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// No task: no call has asked for a connection.
    Idle,
    /// A connection attempt is under way.
    Connecting,
    /// There is a connection, in `up`.
    Up,
    /// An attempt failed; the next one follows.
    Failed { attempt: u64, reason: Arc<str> },
    /// The invoker was shut down.
    Stopped,
}

impl Endpoint {
    pub(super) fn new(address: &str, listed: bool, shared: Arc<Shared>) -> Self {
        let slot = || {
            Arc::new(ConnectionSlot {
                up: ArcSwapOption::empty(),
                state: watch::Sender::new(Owned {
                    owner: 0,
                    state: State::Idle,
                }),
                attempts: AtomicU64::new(0),
                down: AtomicBool::new(false),
            })
        };
        Self {
            address: Arc::from(address),
            slots: (0..shared.settings.connections_per_endpoint)
                .map(|_| slot())
                .collect(),
            next: AtomicUsize::new(0),
            listed: AtomicBool::new(listed),
            used: AtomicBool::new(true),
            retired: AtomicBool::new(false),
            shared,
        }
    }

    /// Makes one call, connecting first if necessary, all under the call's deadline; a oneway call is only
    /// sent.
    ///
    /// # Errors
    /// The framework's; `executed` is `No` if the request did not leave this process.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call and notifies the provider if the request was sent.
    pub(crate) async fn call(self: &Arc<Self>, request: &Request) -> Result<Response, RpcError> {
        self.used.store(true, Ordering::Relaxed);
        let slot = self.slot();
        let (connection, time) = match slot.ready() {
            Some(connection) => (connection, request.started),
            None => (
                Box::pin(self.connect_in_time(slot, request.deadline)).await?,
                now(),
            ),
        };
        if request.oneway {
            connection.send(request, time).await.map(|()| Response::empty())
        } else {
            connection.call(request, time).await
        }
    }

    /// Whether the last connection attempt failed and none has succeeded since.
    pub(crate) fn is_down(&self) -> bool {
        self.slots.iter().all(|slot| slot.down.load(Ordering::Acquire))
    }

    /// Sets whether an instance with this address is listed.
    pub(super) fn list(&self, listed: bool) {
        self.listed.store(listed, Ordering::Release);
    }

    pub(super) fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    /// Whether it was called since the last time this was asked.
    pub(super) fn was_used(&self) -> bool {
        self.used.swap(false, Ordering::AcqRel)
    }

    /// Waits for running calls to end, then closes the connections.
    pub(super) fn retire(&self) {
        self.list(false);
        // Before the slots are checked: a slot that is connecting stores its connection first and reads this
        // flag afterwards.
        self.retired.store(true, Ordering::SeqCst);
        for slot in &self.slots {
            if let Some(connection) = slot.up.load_full() {
                connection.leave();
            }
        }
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Calls in flight on all connections.
    pub(super) fn in_flight(&self) -> usize {
        let connections = self.slots.iter().filter_map(|slot| slot.up.load_full());
        connections.map(|connection| connection.in_flight()).sum()
    }

    /// Answers that arrived after their call had ended, on the current connections.
    pub(super) fn answers_dropped(&self) -> u64 {
        let connections = self.slots.iter().filter_map(|slot| slot.up.load_full());
        connections.map(|connection| connection.answers_dropped()).sum()
    }

    /// A connection, if there is one on which a call can be sent right away.
    pub(super) fn ready(&self) -> Option<Arc<Connection>> {
        let connection = self.slot().ready();
        self.used.store(true, Ordering::Relaxed);
        connection
    }

    fn slot(&self) -> &Arc<ConnectionSlot> {
        match &self.slots[..] {
            [only] => only,
            all => &all[self.next.fetch_add(1, Ordering::Relaxed) % all.len()],
        }
    }

    async fn connect_in_time(
        self: &Arc<Self>,
        slot: &Arc<ConnectionSlot>,
        deadline: Instant,
    ) -> Result<Arc<Connection>, RpcError> {
        match tokio::time::timeout_at(deadline.into(), self.connect(slot)).await {
            Ok(outcome) => outcome,
            Err(_late) => {
                let message = format!("no connection to `{}` in time", self.address);
                Err(RpcError::new(Code::DeadlineExceeded, Executed::No, message))
            }
        }
    }

    /// A connection, from the current attempt or the next one.
    async fn connect(self: &Arc<Self>, slot: &Arc<ConnectionSlot>) -> Result<Arc<Connection>, RpcError> {
        let mut changes = slot.state.subscribe();
        // A failure from before this call does not count: the next attempt may succeed.
        let seen = match &changes.borrow().state {
            State::Failed { attempt, .. } => Some(*attempt),
            _ => None,
        };
        loop {
            let state = changes.borrow_and_update().state.clone();
            match state {
                State::Up => {
                    if let Some(connection) = slot.ready() {
                        return Ok(connection);
                    }
                    self.start(slot);
                }
                State::Idle => self.start(slot),
                State::Failed { attempt, reason } if Some(attempt) != seen => {
                    let message = format!("`{}` cannot be reached: {reason}", self.address);
                    return Err(RpcError::new(Code::Unavailable, Executed::No, message));
                }
                State::Stopped => return Err(shut_down(Executed::No)),
                State::Failed { .. } | State::Connecting => {}
            }
            if changes.changed().await.is_err() {
                return Err(shut_down(Executed::No));
            }
        }
    }

    /// Starts a task for the slot, if it has none or its connection only completes its last calls.
    fn start(self: &Arc<Self>, slot: &Arc<ConnectionSlot>) {
        let mut owner = None;
        slot.state.send_if_modified(|owned| {
            let free = match owned.state {
                State::Idle => true,
                State::Up => slot.up.load().as_ref().is_some_and(|known| known.is_leaving()),
                _ => false,
            };
            if free {
                owned.owner += 1;
                owned.state = State::Connecting;
                owner = Some(owned.owner);
            }
            free
        });
        if let Some(owner) = owner {
            let task = run(Arc::clone(self), Arc::clone(slot), owner);
            drop(self.shared.tracker.spawn_on(task, &self.shared.runtime));
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        for slot in &self.slots {
            slot.mark_down(false, &self.shared);
        }
    }
}

impl ConnectionSlot {
    /// The connection, if calls may be sent on it.
    fn ready(&self) -> Option<Arc<Connection>> {
        self.up.load_full().filter(|connection| connection.is_usable())
    }

    fn mark_down(&self, down: bool, shared: &Shared) {
        if self.down.swap(down, Ordering::AcqRel) != down {
            if down {
                shared.down.fetch_add(1, Ordering::AcqRel);
            } else {
                shared.down.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}

/// A slot's task: connects, runs the connection until it ends, and repeats this while a connection is wanted.
async fn run(endpoint: Arc<Endpoint>, slot: Arc<ConnectionSlot>, owner: u64) {
    let shared = Arc::clone(&endpoint.shared);
    let mut failures = 0_u32;
    loop {
        let reason = match connect_once(&endpoint, &slot, owner).await {
            ConnectionEnd::Stopped => return,
            ConnectionEnd::Lived => {
                // The first attempt after a good connection follows at once.
                failures = 0;
                if slot.go_on(&endpoint, owner) {
                    continue;
                }
                return;
            }
            ConnectionEnd::Failed(reason) => Arc::from(reason),
        };
        let attempt = slot.attempts.fetch_add(1, Ordering::Relaxed);
        if !slot.set(owner, State::Failed { attempt, reason }) {
            return;
        }
        slot.mark_down(true, &shared);
        // The next attempt notices a shutdown.
        drop(tokio::time::timeout(pause(failures), shared.stop.cancelled()).await);
        failures = failures.saturating_add(1);
        if !slot.go_on(&endpoint, owner) {
            slot.mark_down(false, &shared);
            return;
        }
    }
}

impl ConnectionSlot {
    /// Changes the state, if the slot still belongs to this task.
    fn set(&self, owner: u64, state: State) -> bool {
        self.state.send_if_modified(|owned| {
            let mine = owned.owner == owner;
            if mine {
                owned.state = state;
            }
            mine
        })
    }

    /// Whether this task should connect again: a connection is wanted, and no other task has taken over the
    /// slot.
    fn go_on(&self, endpoint: &Endpoint, owner: u64) -> bool {
        let mut again = false;
        self.state.send_if_modified(|owned| {
            let mine = owned.owner == owner;
            if mine {
                // A waiting call has subscribed before this is decided, or else it finds the slot idle and
                // starts a task.
                again = endpoint.is_listed() || self.state.receiver_count() > 0;
                owned.state = if again { State::Connecting } else { State::Idle };
            }
            mine
        });
        again
    }
}

enum ConnectionEnd {
    /// There was no connection, or it was of no use.
    Failed(String),
    /// The connection served calls and ended.
    Lived,
    /// The invoker was shut down.
    Stopped,
}

async fn connect_once(endpoint: &Endpoint, slot: &ConnectionSlot, owner: u64) -> ConnectionEnd {
    let shared = &endpoint.shared;
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, shared.transport.connect(&endpoint.address));
    let stream = tokio::select! {
        biased;
        () = shared.stop.cancelled() => {
            slot.set(owner, State::Stopped);
            return ConnectionEnd::Stopped;
        }
        outcome = connecting => outcome,
    };
    let stream = match stream {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return ConnectionEnd::Failed(error.to_string()),
        Err(_late) => return ConnectionEnd::Failed(format!("no connection within {CONNECT_TIMEOUT:?}")),
    };
    let connection = Arc::new(Connection::new(Arc::clone(&endpoint.address), &shared.settings));
    let start = now();
    slot.mark_down(false, shared);
    // No task takes over a slot that is connecting, so it still belongs to this one.
    slot.up.store(Some(Arc::clone(&connection)));
    slot.set(owner, State::Up);
    let mut running = pin!(reader::run(
        &connection,
        stream,
        &shared.settings,
        &shared.tracker,
        &shared.stop,
    ));
    // Retired while it connected: waiting calls may still use the connection, then it closes.
    tokio::select! {
        () = &mut running => {}
        () = slot.state.closed(), if endpoint.is_retired() => {
            connection.leave();
            running.await;
        }
    }
    if shared.stop.is_cancelled() {
        slot.set(owner, State::Stopped);
        return ConnectionEnd::Stopped;
    }
    if connection.is_greeted() || now() - start >= LIVED {
        ConnectionEnd::Lived
    } else {
        ConnectionEnd::Failed("it accepts connections and closes them at once".to_owned())
    }
}

/// The pause after this many failures: doubled each time, with jitter, so that a thousand invokers do not
/// come back at once.
fn pause(failures: u32) -> Duration {
    let full = PAUSE_MIN.saturating_mul(1 << failures.min(8)).min(PAUSE_MAX);
    full.mul_f64(0.5 + fastrand::f64() / 2.0)
}
