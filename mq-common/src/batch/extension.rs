//! The extension block of a batch: consecutive `[u16 type][u32 bytes][value]`. A reader must understand a
//! type with the highest bit set; it may skip others. Version 1 understands none: the types are listed here
//! to reserve them.

use super::BatchError;

/// Extensions in one batch.
pub(super) const EXTENSIONS_MAX: usize = 16;
/// Bytes of the extension block.
pub(super) const EXTENSION_BYTES_MAX: usize = 1024 * 1024;
/// Set in a type that must not be skipped.
const MUST_UNDERSTAND: u16 = 0x8000;
const HEAD_BYTES: usize = 6;

/// One extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extension<'a> {
    /// Its type; see the constants.
    pub kind: u16,
    /// Its bytes.
    pub value: &'a [u8],
}

impl Extension<'_> {
    /// Reserved: xxh3-64 of each record's key, 8 bytes a record, for groups that are in order per key.
    pub const KEY_HASHES: u16 = 0x0001;
    /// Reserved: not to be delivered before this time.
    pub const DELIVER_AT: u16 = 0x8002;
    /// Reserved: the transaction the batch belongs to.
    pub const TRANSACTION: u16 = 0x8003;
    /// Reserved: the origin of a batch that the broker created.
    pub const ORIGIN: u16 = 0x0004;
}

/// Iterates over the extensions of a batch, skipping none.
#[derive(Debug, Clone)]
pub struct Extensions<'a> {
    rest: &'a [u8],
}

impl<'a> Extensions<'a> {
    pub(super) const fn new(block: &'a [u8]) -> Self {
        Self { rest: block }
    }

    fn split(&mut self) -> Result<Extension<'a>, BatchError> {
        let malformed = BatchError::Malformed("the extension block of the batch does not end where it says");
        let (head, rest) = self
            .rest
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or_else(|| malformed.clone())?;
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let bytes = u32::from_be_bytes([head[2], head[3], head[4], head[5]]);
        let (value, rest) = rest.split_at_checked(bytes as usize).ok_or(malformed)?;
        self.rest = rest;
        Ok(Extension { kind, value })
    }
}

impl<'a> Iterator for Extensions<'a> {
    type Item = Result<Extension<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let next = self.split();
        if next.is_err() {
            self.rest = &[];
        }
        Some(next)
    }
}

/// Checks the block in one pass: it is well formed, has not too many extensions, and none that is required
/// but not understood.
pub(super) fn check(block: &[u8]) -> Result<(), BatchError> {
    if block.len() > EXTENSION_BYTES_MAX {
        return Err(BatchError::TooLarge {
            what: "the extension block of the batch",
            limit: EXTENSION_BYTES_MAX,
            actual: block.len(),
        });
    }
    for (index, extension) in Extensions::new(block).enumerate() {
        let extension = extension?;
        if index == EXTENSIONS_MAX {
            return Err(BatchError::Malformed("the batch has more than 16 extensions"));
        }
        if extension.kind & MUST_UNDERSTAND != 0 {
            return Err(BatchError::UnknownExtension { kind: extension.kind });
        }
    }
    Ok(())
}
