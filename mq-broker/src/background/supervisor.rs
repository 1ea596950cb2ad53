//! Supervises background tasks for the lifetime of the broker: a task that panics is restarted after a pause.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::disk_watch;
use super::scrub::Scrub;
use crate::config::Config;
use crate::core::Core;
use crate::retention::Retention;
use crate::telemetry::Metrics;

/// The pause before a restart, so that a panic that repeats at once does not flood the log.
const AGAIN: Duration = Duration::from_secs(60);

/// Starts the watch over the free space of the data folder.
pub(crate) fn watch_disk(
    config: &Config,
    core: &Arc<Core>,
    metrics: &Metrics,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    let every = Duration::from_millis(config.disk.check_ms);
    let (core, metrics, ends) = (Arc::clone(core), metrics.clone(), stop.clone());
    let watch = move || disk_watch::watch(Arc::clone(&core), metrics.clone(), every, ends.clone());
    tasks.spawn(run("the watch of the disk", stop.clone(), watch));
}

/// Starts retention, which trims queues as their topics' settings say.
pub(crate) fn start_retention(
    config: &Config,
    core: &Arc<Core>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    let (config, core, ends) = (config.retention.clone(), Arc::clone(core), stop.clone());
    let retention = move || Retention::new(&config, &core).run(ends.clone());
    tasks.spawn(run("retention", stop.clone(), retention));
}

/// Starts the scrub.
pub(crate) fn start_scrub(
    config: &Config,
    core: &Arc<Core>,
    metrics: &Metrics,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    let (core, metrics) = (Arc::clone(core), metrics.clone());
    let (config, ends) = (config.scrub.clone(), stop.clone());
    let scrub = move || Scrub::new(Arc::clone(&core), config.clone(), metrics.clone()).run(ends.clone());
    tasks.spawn(run("the scrub", stop.clone(), scrub));
}

/// Runs the task that `begin` creates until it ends by itself or is stopped.
async fn run<F>(what: &'static str, stop: CancellationToken, begin: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let mut tasks = JoinSet::new();
        tasks.spawn(begin());
        match tasks.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(what, %error, again = ?AGAIN, "a background task panicked; it will be restarted");
            }
            _ => return,
        }
        let waited = stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
        if waited.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_panics_is_begun_again_until_it_ends_by_itself_or_is_stopped() {
        let begun = Arc::new(AtomicU32::new(0));
        let begin = |panics: u32| {
            let begun = Arc::clone(&begun);
            move || {
                let before = begun.fetch_add(1, Ordering::Relaxed);
                async move { assert!(before >= panics, "intended") }
            }
        };
        let stop = CancellationToken::new();
        run("a test", stop.clone(), begin(3)).await;
        assert_eq!(begun.swap(0, Ordering::Relaxed), 4);
        stop.cancel();
        run("a test", stop, begin(3)).await;
        assert_eq!(begun.load(Ordering::Relaxed), 1);
    }
}
