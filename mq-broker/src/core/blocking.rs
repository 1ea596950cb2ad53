//! Blocking work on a worker thread of the runtime.

/// Runs blocking work on this thread, which may be a worker of the runtime. Meanwhile another worker must
/// drive sockets and timers.
///
/// `block_in_place` would hand the worker over to a thread of the pool. That costs a lone send two thread
/// switches after its sync, because the task it wakes (the writer of its connection) then has to be picked up by
/// another worker. So this thread remains the worker, and another worker is woken, which drives sockets and
/// timers once it finds nothing else to do. That takes two tasks: the first would stay in the slot for the task
/// that this worker runs next, from which no other worker steals and for which none is woken. The second pushes
/// it out into the queue, as the first did with whatever was in the slot before.
pub(super) fn blocking<R>(work: impl FnOnce() -> R) -> R {
    use tokio::runtime::{Handle, RuntimeFlavor};

    let Ok(runtime) = Handle::try_current() else {
        return work();
    };
    match runtime.runtime_flavor() {
        RuntimeFlavor::MultiThread if runtime.metrics().num_workers() > 1 => {
            for _ in 0..2 {
                // Ends at its first poll: nothing needs to wait for it.
                drop(runtime.spawn(async {}));
            }
            work()
        }
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}
