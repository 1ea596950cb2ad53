//! Trace context: the trace that a call belongs to, as in W3C Trace Context
//! (<https://www.w3.org/TR/trace-context/>), in the metadata `traceparent` and `tracestate`. Pure, except for
//! the random ids of a new trace.
//!
//! This crate records no spans. An incoming context is propagated to nested calls unchanged, as the standard
//! requires of systems that only pass it on; a system that records spans sets the metadata of a call itself.
//! A context that violates the standard is replaced by a new trace, and never fails a call.

use std::fmt;

use crate::message::Meta;

/// The key of the trace's and the parent's ids.
pub(crate) const PARENT: &str = "traceparent";
/// The key of vendor-specific data.
pub(crate) const STATE: &str = "tracestate";
/// Bytes of a version 00 `traceparent`.
const PARENT_BYTES: usize = 55;
/// Entries that a `tracestate` may have.
const STATE_ENTRIES_MAX: usize = 32;
/// Most bytes of a `tracestate` that are propagated; the standard requires at least 512.
const STATE_BYTES_MAX: usize = 2048;

/// A call's position in a trace.
///
/// ```
/// use rpc_core::TraceContext;
///
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let trace = TraceContext::parse(text).unwrap();
/// assert_eq!((trace.trace_id(), trace.is_sampled()), (0x4bf92f3577b34da6a3ce929d0e0e4736, true));
/// assert_eq!(trace.to_string(), text);
/// assert_eq!(TraceContext::parse("00-00000000000000000000000000000000-00f067aa0ba902b7-01"), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: u128,
    parent_id: u64,
    flags: u8,
}

impl TraceContext {
    /// Parses a `traceparent`; `None` if it is not one. Of a version above 00, only the fields of 00 are
    /// read.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (version, rest) = (hex(text.get(..2)?)?, text.get(2..)?);
        // ff is forbidden; version 00 has nothing after the flags, later ones may have more fields.
        let fits = match version {
            0xff => false,
            0 => text.len() == PARENT_BYTES,
            _ => text.len() == PARENT_BYTES || text.as_bytes().get(PARENT_BYTES) == Some(&b'-'),
        };
        let mut fields = rest.get(..PARENT_BYTES - 2)?.split('-');
        if !fits || fields.next() != Some("") {
            return None;
        }
        let field = |text: Option<&str>, digits: usize| hex(text.filter(|text| text.len() == digits)?);
        let trace_id = field(fields.next(), 32)?;
        let parent_id = u64::try_from(field(fields.next(), 16)?).ok()?;
        let flags = u8::try_from(field(fields.next(), 2)?).ok()?;
        let whole = fields.next().is_none() && trace_id != 0 && parent_id != 0;
        whole.then_some(Self {
            trace_id,
            parent_id,
            flags,
        })
    }

    /// A new trace, not sampled.
    #[must_use]
    pub fn start() -> Self {
        Self {
            trace_id: fastrand::u128(1..),
            parent_id: fastrand::u64(1..),
            flags: 0,
        }
    }

    /// The id of the trace.
    #[must_use]
    pub const fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// The id of the caller's span.
    #[must_use]
    pub const fn parent_id(&self) -> u64 {
        self.parent_id
    }

    /// Whether the caller may have recorded it.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// As a `traceparent` of version 00.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Flags unknown to version 00 are written as zero; it knows the lowest two.
        let flags = self.flags & 0b11;
        write!(f, "00-{:032x}-{:016x}-{flags:02x}", self.trace_id, self.parent_id)
    }
}

/// Corrects the trace context of a request: an invalid or repeated `traceparent` is replaced by that of a new
/// trace, and its `tracestate` is removed; a `tracestate` that is invalid, or without a parent, is removed on
/// its own.
pub(crate) fn mend(meta: &mut Meta) {
    let count = |wanted: &str| meta.0.iter().filter(|(key, _)| key == wanted).count();
    let (parents, states) = (count(PARENT), count(STATE));
    if parents == 0 && states == 0 {
        return;
    }
    let valid = parents == 1
        && meta
            .value(PARENT)
            .is_some_and(|text| TraceContext::parse(text).is_some());
    if !valid {
        meta.0.retain(|(key, _)| key != PARENT && key != STATE);
        if parents > 0 {
            meta.0
                .push((PARENT.to_owned(), TraceContext::start().to_string()));
        }
    } else if states > 0 && !meta.0.iter().all(|(key, value)| key != STATE || is_state(value)) {
        meta.0.retain(|(key, _)| key != STATE);
    }
}

/// Whether it is a list of `key=value`; the vendors' own rules are not checked.
fn is_state(text: &str) -> bool {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let well_formed = |entry: &str| {
        entry.split_once('=').is_some_and(|(key, value)| {
            let printable = |text: &str| text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
            !key.is_empty()
                && !key.contains(' ')
                && printable(key)
                && printable(value)
                && !value.contains('=')
        })
    };
    text.len() <= STATE_BYTES_MAX
        && entries.clone().count() <= STATE_ENTRIES_MAX
        && entries.clone().all(well_formed)
}

/// Parses lower-case hexadecimal digits, as the standard requires.
fn hex(text: &str) -> Option<u128> {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (!text.is_empty() && text.bytes().all(digit))
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn meta(pairs: &[(&str, &str)]) -> Meta {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Meta(pairs.iter().map(owned).collect())
    }

    fn mended(pairs: &[(&str, &str)]) -> Meta {
        let mut meta = meta(pairs);
        mend(&mut meta);
        meta
    }

    /// The cases of the standard's own test suite (w3c/trace-context, test/test.py).
    #[test]
    fn what_is_no_parent_is_none() {
        for bad in [
            "",
            "00",
            "foo",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-010",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
            "0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.later",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
        for later in ["cc", "01"] {
            let text = format!("{later}{}-later-fields", &GOOD[2..]);
            assert_eq!(TraceContext::parse(&text).unwrap().to_string(), GOOD);
        }
    }

    #[test]
    fn good_context_is_passed_on_as_it_is() {
        let pairs = [
            ("tenant", "a"),
            (PARENT, GOOD),
            (STATE, "rojo=00f067aa0ba902b7, congo=t61"),
        ];
        assert_eq!(mended(&pairs), meta(&pairs));
        assert_eq!(mended(&[("tenant", "a")]), meta(&[("tenant", "a")]));
    }

    #[test]
    fn bad_parent_becomes_a_new_trace_without_state() {
        for bad in [
            &[(PARENT, "bad"), (STATE, "a=b")][..],
            &[(PARENT, GOOD), (STATE, "a=b"), (PARENT, GOOD)],
        ] {
            let mended = mended(bad);
            assert_eq!(mended.0.len(), 1);
            let trace = TraceContext::parse(mended.value(PARENT).unwrap()).unwrap();
            assert_ne!(trace.to_string(), GOOD);
            assert!(!trace.is_sampled());
        }
        assert_eq!(mended(&[(STATE, "a=b")]), meta(&[]));
    }

    #[test]
    fn bad_state_goes_alone() {
        let many = vec!["a=b"; 33].join(",");
        let long = format!("a={}", "b".repeat(3000));
        for bad in ["a", "=b", "a b=c", "a=b=c", "a=\u{e9}", &many, &long] {
            let pairs = [(PARENT, GOOD), (STATE, bad)];
            assert_eq!(mended(&pairs), meta(&pairs[..1]), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics_and_what_is_read_is_written(text in "\\PC{0,70}", tail in "[0-9a-f-]{40,60}") {
            for text in [text, format!("00-{tail}"), format!("{}{tail}", &GOOD[..20])] {
                if let Some(trace) = TraceContext::parse(&text) {
                    prop_assert_eq!(TraceContext::parse(&trace.to_string()).map(|again| again.trace_id), Some(trace.trace_id));
                }
                mend(&mut meta(&[(PARENT, &text), (STATE, &text)]));
            }
        }
    }
}
