//! Work on a thread of its own that goes on only when it is told to. It stops before each thing that it does
//! to the disk, behind each sync, and at each pause of a round; and while it goes on nobody else does. So
//! what falls between two pieces of it is the test's choice, from its seed.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use mq_broker::store::Pace;

/// What the work does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A round asks whether it may continue.
    Pause,
    Look,
    Read,
    Write,
    WriteBack,
    /// A new name, another one, or none.
    Name,
    Sync,
    /// A sync was done.
    Synced,
}

/// How it continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Go {
    On,
    /// Half of what is to be written is.
    Short,
    /// What it does next fails with this error of the system.
    Fail(i32),
}

/// In the thread that does the work.
struct Baton {
    stops: SyncSender<Stop>,
    goes: Receiver<Go>,
    /// The process is dead: no further operation is carried out.
    is_dead: Cell<bool>,
}

thread_local! {
    static BATON: RefCell<Option<Baton>> = const { RefCell::new(None) };
}

/// Stops the thread, if it does such work, until the test says how it continues.
pub(crate) fn stop(at: Stop) -> io::Result<Go> {
    BATON.with_borrow(|baton| {
        let Some(baton) = baton else { return Ok(Go::On) };
        if !baton.is_dead.get()
            && baton.stops.send(at).is_ok()
            && let Ok(go) = baton.goes.recv()
        {
            return Ok(go);
        }
        baton.is_dead.set(true);
        Err(io::Error::other("the process is dead"))
    })
}

/// Work under way. Dropped before its end it dies with its process: all that it still does fails.
#[derive(Debug)]
pub(crate) struct Errand<T> {
    go: Option<SyncSender<Go>>,
    stops: Receiver<Stop>,
    thread: Option<JoinHandle<T>>,
    at: Option<Stop>,
}

impl<T: Send + 'static> Errand<T> {
    /// Goes up to its first stop.
    pub(crate) fn begin(work: impl FnOnce() -> T + Send + 'static) -> Self {
        let (sender, stops) = sync_channel(0);
        let (go, goes) = sync_channel(0);
        let thread = std::thread::spawn(move || {
            BATON.set(Some(Baton {
                stops: sender,
                goes,
                is_dead: Cell::new(false),
            }));
            let done = work();
            BATON.set(None);
            done
        });
        let at = stops.recv().ok();
        Self {
            go: Some(go),
            stops,
            thread: Some(thread),
            at,
        }
    }

    /// What it does next; `None` = it is done.
    pub(crate) const fn at(&self) -> Option<Stop> {
        self.at
    }

    /// Continues to the next stop.
    pub(crate) fn go(&mut self, go: Go) {
        self.go.as_ref().unwrap().send(go).unwrap();
        self.at = self.stops.recv().ok();
    }

    /// Its result, once it is done.
    pub(crate) fn end(mut self) -> T {
        assert_eq!(self.at, None, "it is not done");
        let done = self.thread.take().unwrap().join();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl<T> Drop for Errand<T> {
    fn drop(&mut self) {
        drop(self.go.take());
        if let Some(thread) = self.thread.take() {
            // Whatever the dead came to.
            drop(thread.join());
        }
    }
}

/// Stops at each pause of a round; a failure there is the word to stop for good.
pub(crate) struct Stopping;

impl Pace for Stopping {
    fn pause(&mut self, _took: Duration) -> bool {
        matches!(stop(Stop::Pause), Ok(Go::On | Go::Short))
    }
}

#[test]
fn an_errand_advances_only_on_request_and_dies_when_it_is_dropped() {
    let done = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let notes = std::sync::Arc::clone(&done);
    let work = move || {
        for at in [Stop::Read, Stop::Write, Stop::Sync] {
            let went = stop(at).map_err(|error| error.to_string());
            notes.lock().unwrap().push(went);
        }
    };
    let mut errand = Errand::begin(work);
    assert_eq!(errand.at(), Some(Stop::Read));
    assert!(done.lock().unwrap().is_empty());
    errand.go(Go::Fail(libc::EIO));
    assert_eq!(errand.at(), Some(Stop::Write));
    assert_eq!(*done.lock().unwrap(), [Ok(Go::Fail(libc::EIO))]);
    drop(errand);
    let dead = Err("the process is dead".to_owned());
    assert_eq!(done.lock().unwrap()[1..], [dead.clone(), dead]);
}
