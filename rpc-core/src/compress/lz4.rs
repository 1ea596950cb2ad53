//! `lz4`: one LZ4 block, without a frame, length or checksum around it (the frame has the length, TCP the
//! checksum).

use std::sync::Arc;

use super::{CompressError, Compressor, CompressorPlugin};

/// A byte of a block expands to at most this many plain bytes.
const EXPANSION_MAX: usize = 255;

/// The compressor `lz4`.
#[derive(Debug)]
struct Lz4;

impl Compressor for Lz4 {
    fn compress(&self, plain: &[u8]) -> Result<Vec<u8>, CompressError> {
        Ok(lz4_flex::block::compress(plain))
    }

    fn decompress(&self, packed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, CompressError> {
        if plain_bytes / EXPANSION_MAX > packed.len() {
            let reason = format!("{} bytes cannot hold {plain_bytes} plain ones", packed.len());
            return Err(CompressError::new("lz4", reason));
        }
        let mut plain = vec![0; plain_bytes];
        // Into a buffer of exactly that size: more output is an error, not more memory.
        let written = lz4_flex::block::decompress_into(packed, &mut plain)
            .map_err(|error| CompressError::new("lz4", error))?;
        plain.truncate(written);
        Ok(plain)
    }
}

crate::plugin!(CompressorPlugin, "lz4", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(Lz4))
});
