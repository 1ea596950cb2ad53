//! Refuses values that are nested too deeply, before any recursive decoder sees them, and finds where a value
//! ends. Walks the markers in a loop with a fixed stack: nothing is allocated and nothing recurses, whatever
//! the bytes contain.

use crate::limits::NESTING_DEPTH_MAX;

/// Why bytes are not one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// A length exceeds the remaining bytes.
    #[error("the bytes end within a value")]
    Truncated,
    /// There are bytes after the value.
    #[error("{bytes} bytes follow the value")]
    Trailing { bytes: usize },
    /// More levels than [`NESTING_DEPTH_MAX`].
    #[error("nested deeper than {NESTING_DEPTH_MAX} levels")]
    TooDeep,
    /// 0xc1, which msgpack never uses.
    #[error("0xc1 is not a msgpack marker")]
    Reserved,
}

/// Checks that `bytes` are exactly one msgpack value, not too deep.
pub(crate) fn msgpack(bytes: &[u8]) -> Result<(), Malformed> {
    match msgpack_end(bytes, 0)? {
        end if end == bytes.len() => Ok(()),
        end => Err(Malformed::Trailing {
            bytes: bytes.len() - end,
        }),
    }
}

/// The position after the msgpack value that starts at `start`.
pub(crate) fn msgpack_end(bytes: &[u8], start: usize) -> Result<usize, Malformed> {
    // Most values are scalars or flat lists of scalars: those need no stack, and clearing one costs more than
    // the walk.
    let (mut at, children) = step(bytes, start)?;
    for _ in 0..children.unwrap_or(0) {
        let (next, inner) = step(bytes, at)?;
        if inner.is_some() {
            return nested_end(bytes, start);
        }
        at = next;
    }
    Ok(at)
}

/// The same for any value.
fn nested_end(bytes: &[u8], start: usize) -> Result<usize, Malformed> {
    // Values still expected at each level.
    let mut left = [0_u64; NESTING_DEPTH_MAX];
    let mut depth = 0;
    let mut at = start;
    loop {
        let (next, children) = step(bytes, at)?;
        at = next;
        if let Some(children) = children {
            *left.get_mut(depth).ok_or(Malformed::TooDeep)? = children;
            depth += 1;
        }
        // Close every level that is complete.
        loop {
            let Some(level) = depth.checked_sub(1) else {
                return Ok(at);
            };
            match left[level] {
                0 => depth = level,
                more => {
                    left[level] = more - 1;
                    break;
                }
            }
        }
    }
}

/// The position after a value's marker, length and payload, and the number of values within it (of an array
/// or map).
fn step(bytes: &[u8], at: usize) -> Result<(usize, Option<u64>), Malformed> {
    let (head, payload, children) = head(bytes, at)?;
    let at = at
        .checked_add(head)
        .and_then(|at| at.checked_add(payload))
        .ok_or(Malformed::Truncated)?;
    // Every value takes at least one byte, so a higher count is false.
    let room = bytes.len().checked_sub(at).ok_or(Malformed::Truncated)?;
    if children.is_some_and(|children| children > room as u64) {
        return Err(Malformed::Truncated);
    }
    Ok((at, children))
}

/// Bytes of the marker with its length, bytes of payload, number of values within (of an array or map).
fn head(bytes: &[u8], at: usize) -> Result<(usize, usize, Option<u64>), Malformed> {
    let marker = *bytes.get(at).ok_or(Malformed::Truncated)?;
    let scalar = |payload| Ok((1, payload, None));
    let sized = |length_bytes: usize, extra: usize| {
        let payload = length(bytes, at + 1, length_bytes)?;
        let payload = usize::try_from(payload).map_err(|_| Malformed::Truncated)?;
        Ok((
            1 + length_bytes,
            payload.checked_add(extra).ok_or(Malformed::Truncated)?,
            None,
        ))
    };
    let container = |length_bytes: usize, each: u64| {
        let children = length(bytes, at + 1, length_bytes)?;
        Ok((1 + length_bytes, 0, Some(children * each)))
    };
    match marker {
        0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => scalar(0),
        0x80..=0x8f => Ok((1, 0, Some(u64::from(marker & 0x0f) * 2))),
        0x90..=0x9f => Ok((1, 0, Some(u64::from(marker & 0x0f)))),
        0xa0..=0xbf => scalar(usize::from(marker & 0x1f)),
        0xc1 => Err(Malformed::Reserved),
        0xc4 | 0xd9 => sized(1, 0),
        0xc5 | 0xda => sized(2, 0),
        0xc6 | 0xdb => sized(4, 0),
        0xc7 => sized(1, 1),
        0xc8 => sized(2, 1),
        0xc9 => sized(4, 1),
        0xcc | 0xd0 => scalar(1),
        0xcd | 0xd1 | 0xd4 => scalar(2),
        0xd5 => scalar(3),
        0xca | 0xce | 0xd2 => scalar(4),
        0xd6 => scalar(5),
        0xcb | 0xcf | 0xd3 => scalar(8),
        0xd7 => scalar(9),
        0xd8 => scalar(17),
        0xdc => container(2, 1),
        0xdd => container(4, 1),
        0xde => container(2, 2),
        0xdf => container(4, 2),
    }
}

/// A big-endian length of `size` bytes at `at`.
pub(super) fn length(bytes: &[u8], at: usize, size: usize) -> Result<u64, Malformed> {
    let end = at.checked_add(size).ok_or(Malformed::Truncated)?;
    let digits = bytes.get(at..end).ok_or(Malformed::Truncated)?;
    Ok(digits
        .iter()
        .fold(0, |length, byte| length << 8 | u64::from(*byte)))
}

/// Checks that a JSON text is not nested too deeply; whether it is valid JSON is left to the parser.
pub(crate) fn json(text: &[u8]) -> Result<(), Malformed> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > NESTING_DEPTH_MAX {
                    return Err(Malformed::TooDeep);
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn depth_is_counted_to_the_limit() {
        let nested = |levels: usize| [vec![0x91; levels], vec![0xc0]].concat();
        assert_eq!(msgpack(&nested(NESTING_DEPTH_MAX)), Ok(()));
        assert_eq!(msgpack(&nested(NESTING_DEPTH_MAX + 1)), Err(Malformed::TooDeep));
        assert_eq!(msgpack(&nested(10_000_000)), Err(Malformed::TooDeep));
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(json(nested(NESTING_DEPTH_MAX).as_bytes()), Ok(()));
        assert_eq!(
            json(nested(NESTING_DEPTH_MAX + 1).as_bytes()),
            Err(Malformed::TooDeep)
        );
    }

    #[test]
    fn brackets_in_strings_do_not_count() {
        let text = format!(r#"["{}", "\"{}"]"#, "[".repeat(100), "{".repeat(100));
        assert_eq!(json(text.as_bytes()), Ok(()));
    }

    #[test]
    fn lies_about_lengths_are_refused() {
        assert_eq!(
            msgpack(&[0xdd, 0xff, 0xff, 0xff, 0xff, 0xc0]),
            Err(Malformed::Truncated)
        );
        assert_eq!(
            msgpack(&[0xc6, 0xff, 0xff, 0xff, 0xff]),
            Err(Malformed::Truncated)
        );
        assert_eq!(msgpack(&[0x92, 0xc0]), Err(Malformed::Truncated));
        assert_eq!(msgpack(&[]), Err(Malformed::Truncated));
        assert_eq!(msgpack(&[0xc0, 0xc0]), Err(Malformed::Trailing { bytes: 1 }));
        assert_eq!(msgpack(&[0xc1]), Err(Malformed::Reserved));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(end) = msgpack_end(&bytes, 0) {
                prop_assert!(0 < end && end <= bytes.len());
                prop_assert_eq!(msgpack(&bytes[..end]), Ok(()));
                prop_assert_eq!(msgpack(&bytes[..end - 1]), Err(Malformed::Truncated));
            }
            prop_assert!(matches!(json(&bytes), Ok(()) | Err(Malformed::TooDeep)));
        }

        #[test]
        fn whole_values_pass(value in any::<(u64, i64, Vec<String>, Option<f64>, Vec<(bool, f32, char)>)>()) {
            let mut bytes = rmp_serde::to_vec(&value).unwrap();
            prop_assert_eq!(msgpack_end(&bytes, 0), Ok(bytes.len()));
            let whole = bytes.len();
            bytes.push(0xc0);
            prop_assert_eq!(msgpack_end(&bytes, 0), Ok(whole));
        }
    }
}
