//! One record: `[varint body bytes][u8 flags][zigzag varint time delta][key][tag][properties][payload to the
//! end]`. Varints are LEB128, at most 5 bytes for lengths and 10 for times.

use bytes::BytesMut;

use super::BatchError;
use crate::ids::Timestamp;
use crate::limits::{PROPERTIES_MAX, RECORD_BYTES_MAX, TAG_BYTES_MAX};

/// Bytes of the smallest record: its length, its flags, its time.
pub(super) const RECORD_BYTES_MIN: u32 = 3;
/// The longest prefix before key, tag, properties and payload: length, flags, time.
const PREFIX_BYTES_MAX: usize = 5 + 1 + 10;

const HAS_KEY: u8 = 1;
const HAS_TAG: u8 = 2;
const HAS_PROPERTIES: u8 = 4;

/// One borrowed record: pushed into a builder, or read from a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Determines the queue; records with the same key stay in order.
    pub key: Option<&'a [u8]>,
    /// A tag that consumers may filter by, at most 127 bytes.
    pub tag: Option<&'a str>,
    /// The application's own name-value pairs, at most 64.
    pub properties: Properties<'a>,
    /// The body.
    pub payload: &'a [u8],
    /// When the application created it.
    pub time: Timestamp,
}

impl<'a> Record<'a> {
    /// A record with a payload and nothing else.
    #[must_use]
    pub const fn new(payload: &'a [u8], time: Timestamp) -> Self {
        Self {
            key: None,
            tag: None,
            properties: Properties::None,
            payload,
            time,
        }
    }

    /// Bytes of key, tag, properties and payload together, to which the record limit applies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.key.map_or(0, <[u8]>::len)
            + self.tag.map_or(0, str::len)
            + self
                .properties
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
            + self.payload.len()
    }

    /// Checks the limits of one record, as a builder does. Reading a batch does not check them: a batch that
    /// was written by another program is read as it is.
    ///
    /// # Errors
    /// `TooLarge`, `TooManyProperties`.
    pub fn check(&self) -> Result<(), BatchError> {
        self.check_parts().map(drop)
    }

    /// The same; returns the bytes of the properties.
    fn check_parts(&self) -> Result<usize, BatchError> {
        let properties_bytes = properties_bytes(&self.properties)?;
        let tag_bytes = self.tag.map_or(0, str::len);
        if tag_bytes > TAG_BYTES_MAX {
            return Err(too_large("a tag", TAG_BYTES_MAX, tag_bytes));
        }
        let key_bytes = self.key.map_or(0, <[u8]>::len);
        let content = key_bytes + tag_bytes + properties_bytes + self.payload.len();
        if content > RECORD_BYTES_MAX {
            return Err(too_large("a record", RECORD_BYTES_MAX, content));
        }
        Ok(properties_bytes)
    }
}

/// The properties of a record, not copied from where they are.
#[derive(Debug, Clone, Copy, Default)]
pub enum Properties<'a> {
    /// None.
    #[default]
    None,
    /// Borrowed pairs.
    Borrowed(&'a [(&'a str, &'a str)]),
    /// Owned pairs.
    Owned(&'a [(String, String)]),
    /// As encoded in a batch. Only created by the decoder, which has checked them.
    Encoded(EncodedProperties<'a>),
}

/// Properties as encoded in a batch.
#[derive(Debug, Clone, Copy)]
pub struct EncodedProperties<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Properties<'a> {
    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Borrowed(pairs) => pairs.len(),
            Self::Owned(pairs) => pairs.len(),
            Self::Encoded(encoded) => encoded.count,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pairs in their order.
    #[must_use]
    pub const fn iter(&self) -> PropertiesIter<'a> {
        PropertiesIter {
            properties: *self,
            next: 0,
        }
    }

    /// The first value under `name`.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&'a str> {
        self.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

impl PartialEq for Properties<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Properties<'_> {}

impl<'a> IntoIterator for Properties<'a> {
    type Item = (&'a str, &'a str);
    type IntoIter = PropertiesIter<'a>;
    fn into_iter(self) -> PropertiesIter<'a> {
        self.iter()
    }
}

/// Iterates over properties.
#[derive(Debug, Clone)]
pub struct PropertiesIter<'a> {
    properties: Properties<'a>,
    next: usize,
}

impl<'a> Iterator for PropertiesIter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        let pair = match &mut self.properties {
            Properties::None => None,
            Properties::Borrowed(pairs) => pairs.get(self.next).copied(),
            Properties::Owned(pairs) => pairs
                .get(self.next)
                .map(|(name, value)| (name.as_str(), value.as_str())),
            Properties::Encoded(encoded) => {
                let mut cursor = Cursor { rest: encoded.bytes };
                let pair = cursor.text().ok().zip(cursor.text().ok());
                encoded.bytes = cursor.rest;
                pair
            }
        };
        self.next += 1;
        pair
    }
}

/// Appends `record` to `out`.
///
/// # Errors
/// `TooLarge`, `TooManyProperties`; `Full` if `out` would exceed `bytes_max`. `out` is unchanged.
pub(super) fn encode(
    record: &Record<'_>,
    base_time: Timestamp,
    bytes_max: usize,
    out: &mut BytesMut,
) -> Result<(), BatchError> {
    let properties_bytes = record.check_parts()?;
    let tag_bytes = record.tag.map_or(0, str::len);
    let key_bytes = record.key.map_or(0, <[u8]>::len);
    let mut flags = 0;
    let mut body = 1 + record.payload.len();
    if record.key.is_some() {
        flags |= HAS_KEY;
        body += varint_bytes(key_bytes as u64) + key_bytes;
    }
    if record.tag.is_some() {
        flags |= HAS_TAG;
        body += 1 + tag_bytes;
    }
    if !record.properties.is_empty() {
        flags |= HAS_PROPERTIES;
        body += 1 + properties_bytes;
    }
    let delta = zigzag(record.time.0.wrapping_sub(base_time.0));
    body += varint_bytes(delta);
    if out.len() + varint_bytes(body as u64) + body > bytes_max {
        return Err(BatchError::Full);
    }
    let mut prefix = [0; PREFIX_BYTES_MAX];
    let mut at = put_varint(&mut prefix, 0, body as u64);
    prefix[at] = flags;
    at = put_varint(&mut prefix, at + 1, delta);
    out.reserve(PREFIX_BYTES_MAX + body);
    out.extend_from_slice(&prefix[..at]);
    if let Some(key) = record.key {
        extend_with_length(out, key);
    }
    if let Some(tag) = record.tag {
        extend_with_length(out, tag.as_bytes());
    }
    if !record.properties.is_empty() {
        extend_varint(out, record.properties.len() as u64);
        for (name, value) in record.properties {
            extend_with_length(out, name.as_bytes());
            extend_with_length(out, value.as_bytes());
        }
    }
    out.extend_from_slice(record.payload);
    Ok(())
}

/// Reads the first record of `bytes` and returns it with what follows it.
pub(super) fn decode(bytes: &[u8], base_time: Timestamp) -> Result<(Record<'_>, &[u8]), BatchError> {
    let mut outer = Cursor { rest: bytes };
    let mut body = Cursor {
        rest: outer.with_length()?,
    };
    let [flags] = *body.take_chunk::<1>()?;
    if flags & !(HAS_KEY | HAS_TAG | HAS_PROPERTIES) != 0 {
        return Err(BatchError::Malformed(
            "a record has flags that this program does not know",
        ));
    }
    let delta = body.varint(10)?;
    let time = Timestamp(base_time.0.wrapping_add(unzigzag(delta)));
    let key = if flags & HAS_KEY != 0 {
        Some(body.with_length()?)
    } else {
        None
    };
    let tag = if flags & HAS_TAG != 0 {
        let tag = body.text()?;
        if tag.len() > TAG_BYTES_MAX {
            return Err(too_large("a tag", TAG_BYTES_MAX, tag.len()));
        }
        Some(tag)
    } else {
        None
    };
    let properties = if flags & HAS_PROPERTIES != 0 {
        body.properties()?
    } else {
        Properties::None
    };
    let record = Record {
        key,
        tag,
        properties,
        payload: body.rest,
        time,
    };
    Ok((record, outer.rest))
}

/// Bytes of the properties as encoded, without their count.
fn properties_bytes(properties: &Properties<'_>) -> Result<usize, BatchError> {
    let actual = properties.len();
    if actual > PROPERTIES_MAX {
        return Err(BatchError::TooManyProperties {
            limit: PROPERTIES_MAX,
            actual,
        });
    }
    Ok(properties
        .iter()
        .flat_map(|(name, value)| [name.len(), value.len()])
        .map(|bytes| varint_bytes(bytes as u64) + bytes)
        .sum())
}

const fn too_large(what: &'static str, limit: usize, actual: usize) -> BatchError {
    BatchError::TooLarge { what, limit, actual }
}

const CUT: BatchError = BatchError::Malformed("a record ends before its content does");

/// Reads unchecked bytes.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take_chunk<const N: usize>(&mut self) -> Result<&'a [u8; N], BatchError> {
        let (chunk, rest) = self.rest.split_first_chunk::<N>().ok_or(CUT)?;
        self.rest = rest;
        Ok(chunk)
    }

    fn varint(&mut self, bytes_max: u32) -> Result<u64, BatchError> {
        let mut value = 0_u64;
        for index in 0..bytes_max {
            let [byte] = *self.take_chunk::<1>()?;
            let bits = u64::from(byte & 0x7f);
            let shifted = bits << (7 * index);
            if shifted >> (7 * index) != bits {
                break;
            }
            value |= shifted;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(BatchError::Malformed("a record has a number that is too long"))
    }

    fn with_length(&mut self) -> Result<&'a [u8], BatchError> {
        let bytes = usize::try_from(self.varint(5)?).map_err(|_| CUT)?;
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(CUT)?;
        self.rest = rest;
        Ok(taken)
    }

    fn text(&mut self) -> Result<&'a str, BatchError> {
        std::str::from_utf8(self.with_length()?)
            .map_err(|_| BatchError::Malformed("a tag or property of a record is not UTF-8"))
    }

    fn properties(&mut self) -> Result<Properties<'a>, BatchError> {
        let count = usize::try_from(self.varint(5)?).unwrap_or(usize::MAX);
        if count == 0 {
            return Err(BatchError::Malformed(
                "a record announces properties and has none",
            ));
        }
        if count > PROPERTIES_MAX {
            return Err(BatchError::TooManyProperties {
                limit: PROPERTIES_MAX,
                actual: count,
            });
        }
        let start = self.rest;
        for _ in 0..2 * count {
            self.text()?;
        }
        let bytes = &start[..start.len() - self.rest.len()];
        Ok(Properties::Encoded(EncodedProperties { count, bytes }))
    }
}

const fn varint_bytes(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Writes `value` at `at` and returns the position after it.
#[expect(clippy::cast_possible_truncation, reason = "the low seven bits are meant")]
fn put_varint(out: &mut [u8], mut at: usize, mut value: u64) -> usize {
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    out[at] = value as u8;
    at + 1
}

fn extend_varint(out: &mut BytesMut, value: u64) {
    let mut bytes = [0; 10];
    let end = put_varint(&mut bytes, 0, value);
    out.extend_from_slice(&bytes[..end]);
}

fn extend_with_length(out: &mut BytesMut, bytes: &[u8]) {
    extend_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Small magnitudes of either sign become small numbers.
const fn zigzag(delta: u64) -> u64 {
    (delta << 1) ^ (delta >> 63).wrapping_neg()
}

const fn unzigzag(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}
