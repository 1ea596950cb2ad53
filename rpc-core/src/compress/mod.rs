//! Compressors: make envelopes smaller on the wire. Attachments are never touched: their content is
//! compressed already, or not worth it.
//!
//! | name | compressed form | for |
//! |---|---|---|
//! | `lz4` (feature `lz4`, on by default) | an LZ4 block | the least work, in safe Rust |
//! | `zstd` (feature `zstd`, on by default) | a Zstandard frame, level 1 | fewer bytes for more work; C code |
//!
//! Nothing is compressed until an invoker asks for it: `Invoker::builder().compressor("lz4")`. Its HELLO then
//! offers that compressor, its requests are compressed once the provider's HELLO has listed it, and the
//! provider compresses its answers. Envelopes smaller than [`PACKED_BYTES_MIN`], or that do not shrink, are
//! sent unchanged.
//!
//! Your own compressor should pass the same [`contract`] as these.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::plugin::{PluginError, Settings};

pub mod contract;
#[cfg(feature = "lz4")]
mod lz4;
#[cfg(feature = "zstd")]
mod zstd;

/// Envelopes below this size are sent unchanged: they fit one packet anyway, so nothing would be gained.
pub const PACKED_BYTES_MIN: usize = 1024;
/// The highest ratio of an envelope's plain size to its compressed size. A higher one occurs only in data
/// that nobody needs to send, and would let a few bytes from a stranger take much memory here; such an
/// envelope is refused before anything is allocated, and is never sent compressed.
pub const RATIO_MAX: usize = 1024;

crate::plugin_kind! {
    /// A compressor that can be named. The name is sent in HELLO and before each compressed envelope.
    pub struct CompressorPlugin for dyn Compressor as "compressor"
}

/// Why bytes cannot be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
#[error("{compressor}: {reason}")]
pub struct CompressError {
    /// The compressor.
    pub compressor: String,
    /// The reason.
    pub reason: String,
}

impl CompressError {
    /// An error of `compressor`.
    pub fn new(compressor: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self {
            compressor: compressor.into(),
            reason: reason.to_string(),
        }
    }
}

/// Compresses bytes and decompresses them.
pub trait Compressor: Send + Sync + fmt::Debug + 'static {
    /// The compressed form of `plain`. It need not be smaller; if it is not, it is not used.
    ///
    /// # Errors
    /// `plain` cannot be compressed; it is then sent unchanged.
    fn compress(&self, plain: &[u8]) -> Result<Vec<u8>, CompressError>;

    /// The plain form of `packed`. `plain_bytes` is the size that the sender announced, already checked
    /// against the limits: never allocate or produce more.
    ///
    /// # Errors
    /// `packed` is damaged, or its plain form does not have exactly that size.
    fn decompress(&self, packed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, CompressError>;
}

/// A compressor together with its name on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub(crate) name: &'static str,
    compressor: Arc<dyn Compressor>,
}

impl Named {
    /// The linked compressor of this name. One instance per process, so that the look-up for each request is
    /// cheap.
    pub(crate) fn linked(name: &str) -> Option<Self> {
        all().get_key_value(name).map(|(name, compressor)| Self {
            name,
            compressor: Arc::clone(compressor),
        })
    }

    /// The same for a name from a configuration.
    ///
    /// # Errors
    /// No linked compressor has the name, or two claim it.
    pub(crate) fn find(name: &str) -> Result<Self, PluginError> {
        match Self::linked(name) {
            Some(linked) => Ok(linked),
            // Reports the cause: an unknown name, or a table that cannot be built.
            None => CompressorPlugin::build(name, &Settings::new()).and_then(|_| {
                let reason = "the compressors that are linked cannot all be built".to_owned();
                let (kind, name) = (CompressorPlugin::LABEL, name.to_owned());
                Err(PluginError::Start { kind, name, reason })
            }),
        }
    }

    /// The compressed form of `envelope`, if it is worth it.
    pub(crate) fn pack(&self, envelope: &[u8]) -> Option<Vec<u8>> {
        if envelope.len() < PACKED_BYTES_MIN {
            return None;
        }
        match self.compressor.compress(envelope) {
            Ok(packed) if packed.len() >= envelope.len() => None,
            Ok(packed) if envelope.len() / packed.len().max(1) >= RATIO_MAX => None,
            Ok(packed) => Some(packed),
            Err(error) => {
                tracing::debug!(%error, "not compressed");
                None
            }
        }
    }

    /// The plain form of an envelope; `offered` returns the compressor, if the peer may use it.
    ///
    /// # Errors
    /// In words: not offered, or as for [`Named::unpack`].
    pub(crate) fn plain(
        envelope: Bytes,
        packed: Option<(String, usize)>,
        offered: impl FnOnce(&str) -> Option<Self>,
    ) -> Result<Bytes, String> {
        let Some((name, plain_bytes)) = packed else {
            return Ok(envelope);
        };
        match offered(&name) {
            Some(compressor) => compressor.unpack(&envelope, plain_bytes),
            None => Err(format!(
                "packed by `{name}`, which no HELLO has offered to the sender"
            )),
        }
    }

    /// The plain form of `packed`, which has `plain_bytes` according to the sender.
    ///
    /// # Errors
    /// In words: more than [`RATIO_MAX`] allows, or damaged.
    fn unpack(&self, packed: &[u8], plain_bytes: usize) -> Result<Bytes, String> {
        if plain_bytes / packed.len().max(1) >= RATIO_MAX {
            return Err(format!(
                "{} packed bytes that claim to be {plain_bytes}; at most {RATIO_MAX} times as many are allowed",
                packed.len()
            ));
        }
        let plain = self
            .compressor
            .decompress(packed, plain_bytes)
            .map_err(|error| error.to_string())?;
        if plain.len() == plain_bytes {
            Ok(plain.into())
        } else {
            Err(format!(
                "{} plain bytes, announced were {plain_bytes}",
                plain.len()
            ))
        }
    }
}

/// Names of all linked compressors, as a provider's HELLO announces them.
pub(crate) fn names() -> Vec<String> {
    all().keys().map(|name| (*name).to_owned()).collect()
}

/// One instance of every linked compressor. If the table cannot be built (two plug-ins of one name), it is
/// empty, and looking one up by name returns the error.
fn all() -> &'static BTreeMap<&'static str, Arc<dyn Compressor>> {
    static ALL: OnceLock<BTreeMap<&'static str, Arc<dyn Compressor>>> = OnceLock::new();
    ALL.get_or_init(|| {
        let Ok(table) = CompressorPlugin::table() else {
            return BTreeMap::new();
        };
        let build = |name| Some((name, table.build(name, &Settings::new()).ok()?));
        table.names().into_iter().filter_map(build).collect()
    })
}

#[cfg(test)]
mod tests;
