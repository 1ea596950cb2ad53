//! Sizes and times as people write them in settings and on command lines: `512MiB`, `7d`. A plain number is a
//! number of bytes or milliseconds.

use std::time::Duration;

/// Units of [`show_milliseconds`], the largest first, in milliseconds.
const TIMES: [(&str, u64); 4] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
/// Units of [`show_bytes`], the largest first, in bytes.
const SIZES: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// Why a text is not a size or a time. The message leaves out the text: whoever shows the error also shows
/// the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a number with one of the known units.
    #[error("expected a number of bytes, such as `1024`, `16KiB` or `1MB`")]
    NotBytes,
    /// The text is neither a number nor a duration.
    #[error("expected a time, such as `250ms`, `30s` or `7d`, or a number of milliseconds")]
    NotTime,
    /// The time has a part of a millisecond.
    #[error("expected whole milliseconds")]
    NotWhole,
    /// The value does not fit in 64 bits.
    #[error("the number is too large")]
    TooLarge,
}

/// Parses a number of bytes: `1024`, `16KiB` (= `16k`), `1MB` (a million). Units are `B`, `KiB` to `TiB`,
/// `kB` to `TB` and `k` to `T`, in capitals or small letters.
///
/// # Errors
/// [`Error::NotBytes`] or [`Error::TooLarge`].
pub fn bytes(text: &str) -> Result<u64, Error> {
    let digits = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "k" | "kib" => 1 << 10,
        "mb" => 1_000_000,
        "m" | "mib" => 1 << 20,
        "gb" => 1_000_000_000,
        "g" | "gib" => 1 << 30,
        "tb" => 1_000_000_000_000,
        "t" | "tib" => 1 << 40,
        _ => return Err(Error::NotBytes),
    };
    whole(number, Error::NotBytes)?
        .checked_mul(factor)
        .ok_or(Error::TooLarge)
}

/// Parses a time in whole milliseconds: `250ms`, `30s`, `1h 30m`, `7d`, or a plain number of milliseconds.
///
/// # Errors
/// [`Error::NotTime`], [`Error::NotWhole`] or [`Error::TooLarge`].
pub fn milliseconds(text: &str) -> Result<u64, Error> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return whole(text, Error::NotTime);
    }
    let time = humantime::parse_duration(text).map_err(|error| match error {
        humantime::DurationError::NumberOverflow => Error::TooLarge,
        _ => Error::NotTime,
    })?;
    let whole = u64::try_from(time.as_millis()).map_err(|_| Error::TooLarge)?;
    if Duration::from_millis(whole) != time {
        return Err(Error::NotWhole);
    }
    Ok(whole)
}

/// A number of bytes in the largest unit that divides it, as in `512MiB`; [`bytes()`] reads it back.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    show(bytes, &SIZES, "")
}

/// A time in the largest unit that divides it, as in `7d` or `250ms`; [`milliseconds`] reads it back (if
/// it is below 500 years).
#[must_use]
pub fn show_milliseconds(milliseconds: u64) -> String {
    show(milliseconds, &TIMES, "ms")
}

fn whole(digits: &str, none: Error) -> Result<u64, Error> {
    if digits.is_empty() {
        return Err(none);
    }
    // Digits alone fail only by being too many.
    digits.parse().map_err(|_| Error::TooLarge)
}

/// Zero is the same in every unit and has none.
fn show(value: u64, units: &[(&str, u64)], smallest: &str) -> String {
    if value == 0 {
        return "0".to_owned();
    }
    let fitting = units.iter().find(|(_, size)| value.is_multiple_of(*size));
    let (unit, size) = fitting.copied().unwrap_or((smallest, 1));
    format!("{}{unit}", value / size)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_take_units() {
        assert_eq!(bytes("1024"), Ok(1024));
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!(bytes("16KiB"), Ok(16_384));
        assert_eq!(bytes("16 k"), Ok(16_384));
        assert_eq!(bytes("1MB"), Ok(1_000_000));
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("1tib"), Ok(1 << 40));
        for bad in ["", "KiB", "1 parsec", "-1", "1.5MiB", "1ms"] {
            assert_eq!(bytes(bad), Err(Error::NotBytes), "{bad}");
        }
        for large in ["99999999999999999999", "18446744073709551615k"] {
            assert_eq!(bytes(large), Err(Error::TooLarge), "{large}");
        }
    }

    #[test]
    fn times_take_units() {
        assert_eq!(milliseconds("1500"), Ok(1500));
        assert_eq!(milliseconds("0"), Ok(0));
        assert_eq!(milliseconds("250ms"), Ok(250));
        assert_eq!(milliseconds("1h 30m"), Ok(5_400_000));
        assert_eq!(milliseconds("7d"), Ok(604_800_000));
        for bad in ["", "soon", "ms", "-1", "1MiB"] {
            assert_eq!(milliseconds(bad), Err(Error::NotTime), "{bad}");
        }
        assert_eq!(milliseconds("1500us"), Err(Error::NotWhole));
        for large in [
            "99999999999999999999",
            "99999999999999999999s",
            "18446744073709551615s",
        ] {
            assert_eq!(milliseconds(large), Err(Error::TooLarge), "{large}");
        }
    }

    #[test]
    fn values_are_shown_in_the_largest_unit_that_divides_them() {
        assert_eq!(show_bytes(0), "0");
        assert_eq!(show_bytes(512 << 20), "512MiB");
        assert_eq!(show_bytes(1536), "1536");
        assert_eq!(show_milliseconds(0), "0");
        assert_eq!(show_milliseconds(604_800_000), "7d");
        assert_eq!(show_milliseconds(90_000), "90s");
        assert_eq!(show_milliseconds(250), "250ms");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(value: u64, shift in 0_u32..64) {
            let value = value >> shift;
            prop_assert_eq!(bytes(&show_bytes(value)), Ok(value));
            let time = value % (500 * 365 * 86_400_000);
            prop_assert_eq!(milliseconds(&show_milliseconds(time)), Ok(time));
        }
    }
}
