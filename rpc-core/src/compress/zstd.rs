//! `zstd`: one Zstandard frame (RFC 8878), without a dictionary. Level 1: a call is not the place for a long
//! search, and it is the level at which zstd compresses better than lz4 with the least work.

use std::sync::Arc;

use super::{CompressError, Compressor, CompressorPlugin};

const LEVEL: i32 = 1;

/// The compressor `zstd`.
#[derive(Debug)]
struct Zstd;

impl Compressor for Zstd {
    fn compress(&self, plain: &[u8]) -> Result<Vec<u8>, CompressError> {
        zstd::bulk::compress(plain, LEVEL).map_err(|error| CompressError::new("zstd", error))
    }

    fn decompress(&self, packed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, CompressError> {
        // Into a buffer of that size: more output is an error, not more memory. In one call, so that no
        // window is kept either.
        zstd::bulk::decompress(packed, plain_bytes).map_err(|error| CompressError::new("zstd", error))
    }
}

crate::plugin!(CompressorPlugin, "zstd", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(Zstd))
});
