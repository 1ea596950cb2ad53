//! One instance as a balancer sees it, with its statistics, which survive every change of the list. Not here:
//! what a balancer makes of them. Time is an argument.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::call::now;
use crate::error::{Code, RpcError};
use crate::invoker::Endpoint;
use crate::registry::Instance;

/// Within this time an answer's latency loses two thirds of its weight (brpc, Finagle and tower: 10 s).
const TAU: Duration = Duration::from_secs(10);

/// The least that a failed call counts as in a node's latency.
const FAILURE_LATENCY: Duration = Duration::from_secs(1);

/// One instance as a balancer sees it.
///
/// ```
/// # use std::{sync::Arc, time::{Duration, Instant}};
/// # use rpc_core::{balance::Node, registry::Instance};
/// # let instance: Arc<Instance> = serde_json::from_str(r#"{"address": "127.0.0.1:9090"}"#).map(Arc::new).unwrap();
/// let start = Instant::now();
/// let node = Node::seen(instance, start, 0);
/// assert_eq!(node.latency_us(start), None);
/// node.note_answer(Duration::from_millis(8), start);
/// assert_eq!(node.latency_us(start), Some(8000.0));
/// assert!(node.latency_us(start + Duration::from_secs(10)).unwrap() < 3000.0, "what is old weighs less");
/// ```
pub struct Node {
    /// Its identity and address.
    pub instance: Arc<Instance>,
    figures: Arc<Figures>,
    /// Its endpoint, once it was looked up.
    pub(crate) endpoint: OnceLock<Arc<Endpoint>>,
}

/// Times are milliseconds since `first_seen`.
#[derive(Debug)]
struct Figures {
    first_seen: Instant,
    /// How long it had been up when it was first seen, according to itself.
    uptime_then: Duration,
    in_flight: AtomicU32,
    /// The average and when it was recorded, as [`pack`]; 0 = unknown. One word, so that both change
    /// together.
    latency: AtomicU64,
    tau_ms: AtomicU32,
    failures: AtomicU32,
    ejected_until: AtomicU64,
    ejections: AtomicU32,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.instance.id)
            .field("address", &self.instance.address)
            .field("weight", &self.instance.weight)
            .field("active", &self.active())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// A node that is first seen now.
    #[must_use]
    pub fn new(instance: Arc<Instance>) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::seen(
            instance,
            now(),
            u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
        )
    }

    /// A node that was first seen at `first_seen`, when the wall clock showed `wall_ms` (milliseconds since
    /// the epoch).
    #[must_use]
    pub fn seen(instance: Arc<Instance>, first_seen: Instant, wall_ms: u64) -> Self {
        // Unknown (0), or in the future because the other machine's clock is ahead: it starts now.
        let uptime_ms = match instance.started_ms {
            0 => 0,
            started_ms => wall_ms.saturating_sub(started_ms),
        };
        let figures = Figures {
            first_seen,
            uptime_then: Duration::from_millis(uptime_ms),
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new(0),
            tau_ms: AtomicU32::new(millis(TAU)),
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
        };
        Self::with(instance, Arc::new(figures))
    }

    /// The same node after its registration has changed: it shares the statistics.
    #[must_use]
    pub fn renewed(&self, instance: Arc<Instance>) -> Self {
        Self::with(instance, Arc::clone(&self.figures))
    }

    const fn with(instance: Arc<Instance>, figures: Arc<Figures>) -> Self {
        Self {
            instance,
            figures,
            endpoint: OnceLock::new(),
        }
    }

    /// Counts a call as in flight here, until [`Node::call_ended`].
    pub fn call_started(&self) {
        self.figures.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends one [`Node::call_started`].
    pub fn call_ended(&self) {
        self.figures.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Calls in flight.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.figures.in_flight.load(Ordering::Relaxed)
    }

    /// Records how a call ended after `elapsed`: `Ok` for any answer, including the method's own error.
    ///
    /// A failure of the instance is a [`Node::note_failure`]. An instance that reports that it is busy or
    /// leaving, or that rejects the request, is alive, so this does not count as a consecutive failure; but
    /// an instance that refuses at once is not a fast one, so its refusals count as at least one second in
    /// its latency.
    pub fn note(&self, outcome: Result<(), &RpcError>, elapsed: Duration, now: Instant) {
        let slow = elapsed.max(FAILURE_LATENCY);
        match outcome.map_err(|error| error.code) {
            Ok(()) => self.note_answer(elapsed, now),
            // Caused by the caller, or an answer.
            Err(Code::App | Code::Cancelled) => {}
            Err(
                Code::BadRequest
                | Code::Overloaded
                | Code::Draining
                | Code::Unauthenticated
                | Code::Forbidden
                | Code::TooLarge,
            ) => self.figures.note_latency(slow, now),
            Err(
                Code::NotFound
                | Code::BadReply
                | Code::DeadlineExceeded
                | Code::Unavailable
                | Code::Unsupported
                | Code::Internal,
            ) => self.note_failure(slow, now),
        }
    }

    /// Records an answer that took `elapsed`.
    pub fn note_answer(&self, elapsed: Duration, now: Instant) {
        self.figures.note_latency(elapsed, now);
        // Only read in the usual case: the cache line stays shared by all threads.
        if self.failures_in_row() != 0 {
            self.figures.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Records a failure of the instance, after `elapsed`.
    pub fn note_failure(&self, elapsed: Duration, now: Instant) {
        self.figures.note_latency(elapsed, now);
        let (failures, relaxed) = (&self.figures.failures, Ordering::Relaxed);
        // An error means that the counter is at its maximum.
        let _most = failures.fetch_update(relaxed, relaxed, |failures| failures.checked_add(1));
    }

    /// Records that the caller stopped waiting after `elapsed`: the answer would have taken longer, and
    /// counts if `elapsed` alone is slow.
    pub fn note_given_up(&self, elapsed: Duration, now: Instant) {
        if self.latency_us(now).is_some_and(|known| micros(elapsed) > known) {
            self.figures.note_latency(elapsed, now);
        }
    }

    /// Peak-sensitive moving average of answer times in microseconds; `None` if unknown. A slower answer
    /// counts at once, faster ones gradually, and without any answers the value decays, so that a slow node
    /// is tried again (Finagle's peak EWMA, with a time constant of 10 s unless [`Node::set_latency_tau`] was
    /// called).
    #[must_use]
    pub fn latency_us(&self, now: Instant) -> Option<f32> {
        let (latency, noted) = unpack(self.figures.latency.load(Ordering::Relaxed))?;
        Some(latency * self.figures.fading(noted, now))
    }

    /// Sets the expected latency of a node without a known one, until an answer replaces it.
    pub fn assume_latency(&self, latency_us: f32, now: Instant) {
        let assumed = pack(latency_us, self.figures.stamp(now));
        let (latency, relaxed) = (&self.figures.latency, Ordering::Relaxed);
        // An error means that an answer came first and is more accurate.
        let _known = latency.compare_exchange(0, assumed, relaxed, relaxed);
    }

    /// Sets the time within which an answer's latency loses two thirds of its weight.
    pub fn set_latency_tau(&self, tau: Duration) {
        self.figures.tau_ms.store(millis(tau).max(1), Ordering::Relaxed);
    }

    /// Failures since the last answer.
    #[must_use]
    pub fn failures_in_row(&self) -> u32 {
        self.figures.failures.load(Ordering::Relaxed)
    }

    /// How long it has been up: according to itself, or at least since it was first seen here.
    #[must_use]
    pub fn uptime(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.figures.first_seen) + self.figures.uptime_then
    }

    /// Takes it out of use until `until`; its failures remain counted until it answers or is readmitted.
    pub fn eject(&self, until: Instant) {
        let until = self.figures.millis_at(until);
        self.figures.ejected_until.store(until, Ordering::Relaxed);
        self.figures.ejections.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes it back into use, whether or not its ejection is over, and clears its failures.
    pub fn readmit(&self, now: Instant) {
        let (until, now) = (&self.figures.ejected_until, self.figures.millis_at(now));
        until.fetch_min(now, Ordering::Relaxed);
        self.figures.failures.store(0, Ordering::Relaxed);
    }

    /// Clears the number of ejections.
    pub fn forgive(&self) {
        self.figures.ejections.store(0, Ordering::Relaxed);
    }

    /// Ejections since they were last cleared.
    #[must_use]
    pub fn ejections(&self) -> u32 {
        self.figures.ejections.load(Ordering::Relaxed)
    }

    /// How much longer it is out of use; zero = it is in use.
    #[must_use]
    pub fn ejected_for(&self, now: Instant) -> Duration {
        let until = self.figures.ejected_until.load(Ordering::Relaxed);
        Duration::from_millis(until.saturating_sub(self.figures.millis_at(now)))
    }

    /// How long ago its last ejection ended; `None` if it is out of use, or was never ejected.
    #[must_use]
    pub fn back_for(&self, now: Instant) -> Option<Duration> {
        let until = self.figures.ejected_until.load(Ordering::Relaxed);
        let back = self.figures.millis_at(now).checked_sub(until)?;
        (until != 0).then(|| Duration::from_millis(back))
    }

    /// Whether the last attempt to connect to it failed, and none has succeeded since.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.endpoint.get().is_some_and(|endpoint| endpoint.is_down())
    }
}

impl Figures {
    /// Two threads may overwrite each other: an average tolerates the loss of a sample.
    fn note_latency(&self, elapsed: Duration, now: Instant) {
        let sample = micros(elapsed);
        let average = match unpack(self.latency.load(Ordering::Relaxed)) {
            Some((known, noted)) if sample < known => {
                let old = self.fading(noted, now);
                known * old + sample * (1.0 - old)
            }
            _ => sample,
        };
        self.latency
            .store(pack(average, self.stamp(now)), Ordering::Relaxed);
    }

    /// The remaining weight at `now` of a value recorded at `noted`: e^(-elapsed/tau).
    fn fading(&self, noted: u32, now: Instant) -> f32 {
        // Wraps with the stamp, after 49 days. A stamp ahead of `now` was set by another thread a moment ago.
        let elapsed_ms = self.stamp(now).wrapping_sub(noted);
        let elapsed_ms = if elapsed_ms > u32::MAX / 2 { 0 } else { elapsed_ms };
        let tau_ms = self.tau_ms.load(Ordering::Relaxed);
        (-single(elapsed_ms) / single(tau_ms)).exp()
    }

    fn millis_at(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.first_seen).as_millis();
        u64::try_from(elapsed).unwrap_or(u64::MAX)
    }

    /// [`Figures::millis_at`], which wraps after 49 days.
    fn stamp(&self, now: Instant) -> u32 {
        u32::try_from(self.millis_at(now) & u64::from(u32::MAX)).unwrap_or(0)
    }
}

fn pack(latency_us: f32, stamp: u32) -> u64 {
    u64::from(latency_us.to_bits()) << 32 | u64::from(stamp)
}

fn unpack(packed: u64) -> Option<(f32, u32)> {
    let bits = u32::try_from(packed >> 32).ok()?;
    let stamp = u32::try_from(packed & u64::from(u32::MAX)).ok()?;
    (packed != 0).then(|| (f32::from_bits(bits), stamp))
}

/// At least one: zero means unknown.
fn micros(elapsed: Duration) -> f32 {
    single(u32::try_from(elapsed.as_micros()).unwrap_or(u32::MAX).max(1))
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "an average tolerates it")]
const fn single(number: u32) -> f32 {
    number as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Executed;

    fn node(started_ms: u64, first_seen: Instant, wall_ms: u64) -> Node {
        let mut instance = Instance::at("a:1");
        instance.started_ms = started_ms;
        Node::seen(Arc::new(instance), first_seen, wall_ms)
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn latency_ms(node: &Node, now: Instant) -> f32 {
        node.latency_us(now).unwrap() / 1000.0
    }

    #[test]
    fn slower_answer_counts_at_once_and_faster_ones_as_time_goes_by() {
        let start = now();
        let node = node(0, start, 0);
        node.note_answer(ms(10), start);
        node.note_answer(ms(100), start);
        assert_eq!(latency_ms(&node, start), 100.0);
        node.note_answer(ms(10), start);
        assert_eq!(latency_ms(&node, start), 100.0, "no time has passed");
        // Answers every millisecond: after tau, a third of the difference is left.
        for step in 1..=10_000 {
            node.note_answer(ms(10), start + ms(step));
        }
        let after_tau = latency_ms(&node, start + TAU);
        assert!((43.0..43.3).contains(&after_tau), "{after_tau}");
    }

    #[test]
    fn figure_fades_when_nothing_is_heard() {
        let start = now();
        let node = node(0, start, 0);
        node.note_failure(ms(1000), start);
        let faded = latency_ms(&node, start + TAU * 3);
        assert!((49.0..50.5).contains(&faded), "{faded}");
        // A stamp from the future, set by a faster thread, decays nothing.
        node.note_failure(ms(1000), start + TAU);
        assert_eq!(latency_ms(&node, start), 1000.0);
    }

    #[test]
    fn time_constant_can_be_chosen() {
        let start = now();
        let node = node(0, start, 0);
        node.set_latency_tau(ms(100));
        node.note_answer(ms(10), start);
        let faded = latency_ms(&node, start + ms(100));
        assert!((3.6..3.7).contains(&faded), "{faded}");
    }

    #[test]
    fn assumed_latency_never_replaces_a_known_one() {
        let start = now();
        let node = node(0, start, 0);
        node.assume_latency(7000.0, start);
        assert_eq!(latency_ms(&node, start), 7.0);
        node.note_answer(ms(9), start);
        node.assume_latency(1.0, start);
        assert_eq!(latency_ms(&node, start), 9.0);
    }

    #[test]
    fn giving_up_counts_only_if_that_was_slow() {
        let start = now();
        let node = node(0, start, 0);
        node.note_given_up(ms(50), start);
        assert_eq!(
            node.latency_us(start),
            None,
            "it says little about an unknown node"
        );
        node.note_answer(ms(10), start);
        node.note_given_up(ms(5), start);
        assert_eq!(latency_ms(&node, start), 10.0);
        node.note_given_up(ms(50), start);
        assert_eq!(latency_ms(&node, start), 50.0);
    }

    #[test]
    fn failures_are_counted_in_a_row_and_refusals_not() {
        let start = now();
        let node = node(0, start, 0);
        node.note_failure(ms(1), start);
        let busy = RpcError::new(Code::Overloaded, Executed::No, "busy");
        node.note(Err(&busy), ms(1), start);
        assert_eq!(
            latency_ms(&node, start),
            1000.0,
            "an instance that refuses at once is not fast"
        );
        node.note_failure(ms(1), start);
        assert_eq!(node.failures_in_row(), 2);
        node.note_answer(ms(1), start);
        assert_eq!(node.failures_in_row(), 0);
    }

    #[test]
    fn uptime_is_its_own_word_or_since_it_was_first_seen() {
        let start = now();
        assert_eq!(node(0, start, 9_000).uptime(start + ms(5)), ms(5), "unknown");
        assert_eq!(node(4_000, start, 9_000).uptime(start + ms(5)), ms(5005));
        assert_eq!(
            node(10_000, start, 9_000).uptime(start + ms(5)),
            ms(5),
            "a clock ahead"
        );
    }

    #[test]
    fn renewed_node_keeps_its_figures() {
        let start = now();
        let before = node(0, start, 0);
        before.note_failure(ms(1), start);
        before.call_started();
        let after = before.renewed(Arc::new(Instance::at("a:1")));
        before.call_ended();
        assert_eq!((after.active(), after.failures_in_row()), (0, 1));
    }
}
