//! The compression seam: how an envelope is made smaller. No compressor is built in yet; one that a crate adds is
//! announced in HELLO and may then be used by name.

use std::fmt;

crate::plugin_kind! {
    /// A compressor that can be named.
    pub struct CompressorPlugin for dyn Compressor as "compressor"
}

/// Makes bytes smaller and undoes it.
pub trait Compressor: Send + Sync + fmt::Debug + 'static {
    /// The compressed form of `plain`.
    fn compress(&self, plain: &[u8]) -> Vec<u8>;

    /// The plain form, exactly `plain_bytes` long; the caller has checked that length against its limit.
    ///
    /// # Errors
    /// `packed` is damaged or has another plain length, in words.
    fn decompress(&self, packed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, String>;
}
