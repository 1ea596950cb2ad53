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

/// Names of all linked compressors, as HELLO announces them.
pub(crate) fn names() -> Vec<String> {
    // A table that cannot be built (two of one name) announces none; whoever uses one by name gets the error.
    let names = CompressorPlugin::names().unwrap_or_default();
    names.into_iter().map(str::to_owned).collect()
}

/// The plain form of an envelope that was packed by `compressor` (its name and the plain length, already checked).
///
/// # Errors
/// In words: no such compressor here, or damaged bytes.
pub(crate) fn plain(
    envelope: bytes::Bytes,
    compressor: Option<(String, usize)>,
) -> Result<bytes::Bytes, String> {
    let Some((name, plain_bytes)) = compressor else {
        return Ok(envelope);
    };
    let compressor =
        CompressorPlugin::build(&name, &crate::plugin::Settings::new()).map_err(|error| error.to_string())?;
    let plain = compressor.decompress(&envelope, plain_bytes)?;
    if plain.len() == plain_bytes {
        Ok(plain.into())
    } else {
        Err(format!(
            "{} plain bytes, announced were {plain_bytes}",
            plain.len()
        ))
    }
}
