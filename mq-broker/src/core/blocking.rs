//! Blocking work on a worker thread of the runtime.

/// Runs what blocks on this thread, which may be a worker of the runtime: another one must look after the sockets and
/// timers meanwhile.
///
/// `block_in_place` would give this worker's place to a thread of the pool. That costs a lone send two changes of threads
/// behind its sync, because what it wakes (its connection's writer) then has to be taken up by another worker. So the
/// worker keeps its place, and another worker is woken, which looks after the driver once it finds nothing else to do. Two
/// tasks are needed for that: the first one would stay in the place for the task that this worker runs next, from where
/// nobody takes it and nobody is woken for it, and so would what stands in that place already.
pub(super) fn blocking<R>(work: impl FnOnce() -> R) -> R {
    use tokio::runtime::{Handle, RuntimeFlavor};

    let Ok(runtime) = Handle::try_current() else {
        return work();
    };
    match runtime.runtime_flavor() {
        RuntimeFlavor::MultiThread if runtime.metrics().num_workers() > 1 => {
            for _ in 0..2 {
                // Ends at its first poll: nobody needs to wait for it.
                drop(runtime.spawn(async {}));
            }
            work()
        }
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}
