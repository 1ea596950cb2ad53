//! The codecs for the records of a batch. The number of a codec is never reused.

use bytes::{Bytes, BytesMut};

use super::BatchError;
use crate::limits::BATCH_BYTES_MAX;

/// LZ4 cannot shrink data further than this factor (255 bytes for each further length byte).
const LZ4_RATIO_MAX: usize = 255;

/// The compression of the records of a batch. A batch that would not shrink is always stored plain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Uncompressed.
    #[default]
    None,
    /// One LZ4 block, without a frame; its uncompressed length is in the header.
    Lz4,
}

impl Compression {
    /// The number in the attributes, bits 0 to 2.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
        }
    }

    /// The codec of a number; `None` for one this version does not know.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Lz4),
            _ => None,
        }
    }

    /// Whether `stored` bytes can be the compressed form of `unpacked` bytes: checked before memory is
    /// allocated for them.
    pub(super) const fn can_hold(self, stored: usize, unpacked: usize) -> bool {
        match self {
            Self::None => stored == unpacked,
            Self::Lz4 => unpacked <= stored.saturating_mul(LZ4_RATIO_MAX),
        }
    }

    /// Appends `plain` in compressed form to `out`. Returns false, with `out` unchanged, if that would not be
    /// shorter.
    pub(super) fn pack(self, plain: &[u8], out: &mut BytesMut) -> bool {
        match self {
            Self::None => false,
            Self::Lz4 => {
                let start = out.len();
                out.resize(start + lz4_flex::block::get_maximum_output_size(plain.len()), 0);
                let packed = out
                    .get_mut(start..)
                    .and_then(|room| lz4_flex::block::compress_into(plain, room).ok())
                    .filter(|&packed| packed < plain.len());
                out.truncate(start + packed.unwrap_or(0));
                packed.is_some()
            }
        }
    }

    /// The uncompressed form of `stored`, which must have exactly `unpacked` bytes. The caller has checked
    /// `unpacked` against its limit.
    pub(super) fn unpack(self, stored: Bytes, unpacked: usize) -> Result<Bytes, BatchError> {
        debug_assert!(unpacked <= BATCH_BYTES_MAX, "limits come before allocation");
        match self {
            Self::None => Ok(stored),
            Self::Lz4 => {
                let mut plain = vec![0; unpacked];
                let written = lz4_flex::block::decompress_into(&stored, &mut plain)
                    .map_err(|_| BatchError::Malformed("the records of the batch are not one LZ4 block"))?;
                if written != unpacked {
                    return Err(BatchError::Length {
                        what: "the unpacked form of the records",
                        stated: unpacked as u64,
                        actual: written as u64,
                    });
                }
                Ok(Bytes::from(plain))
            }
        }
    }
}

/// A name that is not a codec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a compression; expected `none` or `lz4`")]
pub struct InvalidCompression(pub String);

impl std::str::FromStr for Compression {
    type Err = InvalidCompression;
    fn from_str(text: &str) -> Result<Self, InvalidCompression> {
        match text {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            _ => Err(InvalidCompression(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
        })
    }
}
