//! A progress bar on standard error, if that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Progress in bytes.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Hidden unless standard error is a terminal.
    pub(super) fn new(bytes: u64) -> Self {
        let bar = ProgressBar::new(bytes);
        let style =
            ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar }
    }

    pub(super) fn file(&self, name: &str) {
        self.bar.set_message(name.to_owned());
    }

    pub(super) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    pub(super) fn finish(self) {
        self.bar.finish_and_clear();
    }
}
