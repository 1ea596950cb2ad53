//! The time by which the store judges how long the disk has failed. Tests can move it forward.

#[cfg(test)]
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Clones show the same time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock {
    #[cfg(test)]
    passed: Arc<Mutex<std::time::Duration>>,
}

impl Clock {
    #[cfg(not(test))]
    pub(crate) fn now(&self) -> Instant {
        Instant::now()
    }

    #[cfg(test)]
    pub(crate) fn now(&self) -> Instant {
        Instant::now() + *self.passed.lock().unwrap()
    }

    /// Moves the time forward.
    #[cfg(test)]
    pub(crate) fn pass(&self, time: std::time::Duration) {
        *self.passed.lock().unwrap() += time;
    }
}
