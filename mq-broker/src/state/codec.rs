//! Reading and writing the fields of commands: big-endian, every length checked before anything is allocated.
//! Pure.

use bytes::{BufMut, BytesMut};

/// Bytes that are not a command of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("the command ends inside its field `{0}`")]
    Truncated(&'static str),
    /// There are bytes after the last field.
    #[error("the command has {0} bytes after its last field")]
    Trailing(usize),
    /// Written by a version that this one does not know.
    #[error("the command has format version {0}, which this broker does not support for its kind")]
    Version(u8),
    /// A kind this version does not know.
    #[error("the command has the unknown kind {0}")]
    Kind(u8),
    /// A field holds a value that is not allowed.
    #[error("the command's field `{0}` has a value that is not allowed")]
    Invalid(&'static str),
}

/// Takes fields from the front of a byte slice.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated(field))?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|bytes| bytes[0])
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    pub(super) fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Invalid(field)),
        }
    }

    pub(super) fn text(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let length = usize::from(self.u16(field)?);
        let (head, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(DecodeError::Truncated(field))?;
        self.0 = rest;
        std::str::from_utf8(head).map_err(|_| DecodeError::Invalid(field))
    }

    /// A checked name.
    pub(super) fn name<T: TryFrom<String>>(&mut self, field: &'static str) -> Result<T, DecodeError> {
        T::try_from(self.text(field)?.to_owned()).map_err(|_| DecodeError::Invalid(field))
    }

    /// A list: its count, then its items, of which each takes at least `item_bytes_min` bytes.
    pub(super) fn list<T>(
        &mut self,
        field: &'static str,
        item_bytes_min: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = usize::try_from(self.u32(field)?).map_err(|_| DecodeError::Invalid(field))?;
        if count > self.0.len() / item_bytes_min {
            return Err(DecodeError::Truncated(field));
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    pub(super) const fn finish(self) -> Result<(), DecodeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing(self.0.len()))
        }
    }
}

/// Writes what [`Reader::text`] reads.
///
/// # Panics
/// On a text longer than a `u16` counts: names and keys are limited far below that before they get here.
pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u16(u16::try_from(text.len()).expect("names and keys are at most 127 bytes"));
    out.put_slice(text.as_bytes());
}

/// Writes what [`Reader::list`] reads.
///
/// # Panics
/// On more than 2^32 items: an entry of the log is limited to 8 MiB.
pub(super) fn put_list<T>(out: &mut BytesMut, items: &[T], mut item: impl FnMut(&mut BytesMut, &T)) {
    out.put_u32(u32::try_from(items.len()).expect("a command has fewer than 2^32 items"));
    for each in items {
        item(out, each);
    }
}
