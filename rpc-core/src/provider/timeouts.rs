//! The time-outs of a peer: for showing its token, for silence, and for a frame that makes too little
//! progress.
//!
//! Pure: the time is an argument. A frame without progress is noticed after one to two times `frame_timeout`,
//! since progress is checked once in that time and not with every frame.

use std::time::{Duration, Instant};

use super::bounds::ProviderLimits;
use crate::limits::FRAME_PROGRESS_BYTES_MIN;

/// What a connection has read so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// When the newest bytes came.
    pub(super) heard: Instant,
    /// Bytes read in all.
    pub(super) bytes: u64,
    /// Whole frames read in all.
    pub(super) frames: u64,
    /// Whether a frame has begun and is not complete.
    pub(super) in_frame: bool,
    /// If memory is reserved for the frame: bytes it must gain in each [`PROGRESS_INTERVAL`], 0 unless others
    /// wait for memory.
    pub(super) min_progress_bytes: Option<u64>,
}

/// How often a frame with reserved memory is checked.
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// The time-outs of one peer.
#[derive(Debug)]
pub(super) struct PeerTimeouts {
    opened: Instant,
    /// When the current frame was last checked, and the frames and bytes read by then.
    mark: Option<(Instant, u64, u64)>,
    /// The same for a frame with reserved memory, without the number of frames.
    reserved_mark: Option<(Instant, u64)>,
}

impl PeerTimeouts {
    pub(super) const fn new(opened: Instant) -> Self {
        Self {
            opened,
            mark: None,
            reserved_mark: None,
        }
    }

    /// A frame has begun: returns when to check its progress.
    pub(super) fn watch(&mut self, limits: &ProviderLimits, progress: &Progress) -> Instant {
        let (at, ..) = *self
            .mark
            .insert((progress.heard, progress.frames, progress.bytes));
        at + limits.frame_timeout
    }

    /// Restarts the checks of progress: nothing was read for a while, but not because of the peer.
    pub(super) const fn reset_progress(&mut self) {
        self.mark = None;
        self.reserved_mark = None;
    }

    /// When to check again; an error with the reason if a time-out has expired.
    pub(super) fn check(
        &mut self,
        limits: &ProviderLimits,
        authenticated: bool,
        progress: &Progress,
        now: Instant,
    ) -> Result<Instant, String> {
        let mut again = if authenticated {
            progress.heard + limits.idle_timeout
        } else {
            self.opened + limits.handshake_timeout
        };
        if now >= again {
            return Err(if authenticated {
                format!("nothing was heard for {:?}", now - progress.heard)
            } else {
                format!("no token was shown for {:?}", now - self.opened)
            });
        }
        if !progress.in_frame {
            self.reset_progress();
            return Ok(again);
        }
        if let Some(look) = self.check_progress(progress, now)? {
            again = again.min(look);
        }
        let mark = self.mark.filter(|(_, frames, _)| *frames == progress.frames);
        let look = match mark {
            Some((at, _, bytes)) if now >= at + limits.frame_timeout => {
                let gained = progress.bytes - bytes;
                if gained < FRAME_PROGRESS_BYTES_MIN {
                    return Err(format!("a frame gained {gained} bytes in {:?}", now - at));
                }
                None
            }
            Some((at, ..)) => Some(at + limits.frame_timeout),
            None => None,
        };
        again = again.min(look.unwrap_or_else(|| {
            self.mark = Some((now, progress.frames, progress.bytes));
            now + limits.frame_timeout
        }));
        Ok(again)
    }

    /// Checks a frame with reserved memory.
    fn check_progress(&mut self, progress: &Progress, now: Instant) -> Result<Option<Instant>, String> {
        let Some(least) = progress.min_progress_bytes else {
            self.reserved_mark = None;
            return Ok(None);
        };
        let (at, bytes) = *self.reserved_mark.get_or_insert((now, progress.bytes));
        if now < at + PROGRESS_INTERVAL {
            return Ok(Some(at + PROGRESS_INTERVAL));
        }
        let gained = progress.bytes - bytes;
        if gained < least {
            return Err(format!(
                "a frame gained {gained} bytes in {:?} while others waited for its memory",
                now - at
            ));
        }
        self.reserved_mark = Some((now, progress.bytes));
        Ok(Some(now + PROGRESS_INTERVAL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn quiet(heard: Instant) -> Progress {
        Progress {
            heard,
            bytes: 0,
            frames: 0,
            in_frame: false,
            min_progress_bytes: None,
        }
    }

    #[test]
    fn silence_ends_at_the_idle_timeout_and_not_sooner() {
        let (limits, start) = (ProviderLimits::default(), Instant::now());
        let mut timeouts = PeerTimeouts::new(start);
        let heard = start + 100 * SECOND;
        let until = timeouts.check(&limits, true, &quiet(heard), heard + 59 * SECOND);
        assert_eq!(until, Ok(heard + 60 * SECOND));
        let ended = timeouts.check(&limits, true, &quiet(heard), heard + 60 * SECOND);
        assert_eq!(ended, Err("nothing was heard for 60s".to_owned()));
    }

    #[test]
    fn token_has_to_be_shown_within_ten_seconds_however_much_is_said() {
        let (limits, start) = (ProviderLimits::default(), Instant::now());
        let mut timeouts = PeerTimeouts::new(start);
        for second in 0..10 {
            let now = start + second * SECOND;
            assert!(timeouts.check(&limits, false, &quiet(now), now).is_ok());
        }
        let end = start + 10 * SECOND;
        assert!(timeouts.check(&limits, false, &quiet(end), end).is_err());
    }

    #[test]
    fn frame_that_dawdles_is_given_up_and_one_that_grows_is_not() {
        let (limits, start) = (ProviderLimits::default(), Instant::now());
        for (bytes_per_second, given_up) in [(1, true), (102, true), (103, false), (100_000, false)] {
            let mut timeouts = PeerTimeouts::new(start);
            let progress = |second: u32| Progress {
                heard: start + second * SECOND,
                bytes: u64::from(second) * bytes_per_second,
                frames: 7,
                in_frame: true,
                min_progress_bytes: None,
            };
            let mut again = timeouts.watch(&limits, &progress(0));
            let mut ended = None;
            for second in 1..59 {
                let now = start + second * SECOND;
                if now < again {
                    continue;
                }
                match timeouts.check(&limits, true, &progress(second), now) {
                    Ok(next) => again = next,
                    Err(_) => {
                        ended = Some(second);
                        break;
                    }
                }
            }
            assert_eq!(ended, given_up.then_some(10), "{bytes_per_second}");
        }
    }

    #[test]
    fn next_frame_has_its_own_time() {
        let (limits, start) = (ProviderLimits::default(), Instant::now());
        let mut timeouts = PeerTimeouts::new(start);
        let progress = |frames| Progress {
            heard: start,
            bytes: 5,
            frames,
            in_frame: true,
            min_progress_bytes: None,
        };
        timeouts.watch(&limits, &progress(0));
        let ten = start + 10 * SECOND;
        assert_eq!(
            timeouts.check(&limits, true, &progress(1), ten),
            Ok(start + 20 * SECOND)
        );
        timeouts.reset_progress();
        let twenty = start + 20 * SECOND;
        assert_eq!(
            timeouts.check(&limits, true, &progress(1), twenty),
            Ok(start + 30 * SECOND)
        );
        assert!(
            timeouts
                .check(&limits, true, &progress(1), start + 30 * SECOND)
                .is_err()
        );
    }

    #[test]
    fn frame_that_holds_memory_has_to_hurry_while_others_wait_for_it() {
        let (limits, start) = (ProviderLimits::default(), Instant::now());
        let progress = |second: u32, bytes, min_progress_bytes| Progress {
            heard: start + second * SECOND,
            bytes,
            frames: 0,
            in_frame: true,
            min_progress_bytes,
        };
        let mut timeouts = PeerTimeouts::new(start);
        let mut check = |second, bytes, min_progress_bytes| {
            timeouts.check(
                &limits,
                true,
                &progress(second, bytes, min_progress_bytes),
                start + second * SECOND,
            )
        };
        assert_eq!(check(0, 0, Some(0)), Ok(start + SECOND));
        assert_eq!(check(1, 0, Some(0)), Ok(start + 2 * SECOND), "nobody waits");
        assert_eq!(check(2, 1000, Some(1000)), Ok(start + 3 * SECOND));
        assert!(check(3, 1999, Some(1000)).unwrap_err().contains("999 bytes"));
        assert_eq!(
            check(4, 1999, None),
            Ok(start + 10 * SECOND),
            "the next one has none"
        );
    }
}
