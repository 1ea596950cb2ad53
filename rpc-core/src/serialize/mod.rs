//! Serializers: how one value becomes bytes.
//!
//! | name | a struct is | for |
//! |---|---|---|
//! | `msgpack` (default) | an array: fields are only ever appended | Rust on both sides: the shortest and fastest |
//! | `msgpack-named` | a map of its fields' names | peers in other languages or of other versions: fields may be added |
//! | `json` | an object, in hc-rpc's own envelope | Java hc-rpc peers, and people |
//! | `raw` | refused: the one value is `Bytes`, text or nothing | bytes that are already encoded |
//!
//! `msgpack` and `json` are matched to static code; all others are plug-ins over `erased-serde`. Your own
//! serializer should pass the same [`contract`] as these. An invoker has one serializer
//! (`Invoker::builder().serializer("json")`), a client may have another ([`SerializerRef::named`],
//! `GreeterClient::serializer`), and a provider answers in that of the request.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::plugin::{PluginError, Settings};

pub mod contract;
mod json;
mod msgpack;
mod msgpack_named;
mod plugins;
mod raw;

crate::plugin_kind! {
    /// A serializer that can be named, as in `.serializer("msgpack")`. The name is sent in every frame.
    pub struct SerializerPlugin for dyn Serializer as "serializer"
}

/// Why a value cannot be serialized or deserialized.
#[derive(Debug, thiserror::Error)]
#[error("{serializer}: {reason}")]
pub struct SerializeError {
    /// The serializer.
    pub serializer: String,
    /// The reason.
    pub reason: String,
}

/// The callback to which [`Serializer::deserialize`] passes its deserializer; it reads exactly one value.
pub type Visit<'a> =
    dyn FnMut(&mut dyn erased_serde::Deserializer<'_>) -> Result<(), erased_serde::Error> + 'a;

/// Turns one value into bytes and back. It must refuse input nested deeper than [`crate::limits::NESTING_DEPTH_MAX`]
/// and must not allocate by a length it has not checked.
pub trait Serializer: Send + Sync + fmt::Debug + 'static {
    /// The name sent in the frame, at most 32 bytes.
    fn name(&self) -> &str;

    /// Appends the serialized `value` to `out`.
    ///
    /// # Errors
    /// The value cannot be expressed; the caller then discards `out`.
    fn serialize(
        &self,
        value: &dyn erased_serde::Serialize,
        out: &mut BytesMut,
    ) -> Result<(), SerializeError>;

    /// Passes a deserializer over `bytes` to `visit`.
    ///
    /// # Errors
    /// The bytes are not one value of this serializer, or not of the requested type.
    fn deserialize(&self, bytes: &[u8], visit: &mut Visit<'_>) -> Result<(), SerializeError>;
}

/// One instance of every linked serializer.
type ByName = BTreeMap<&'static str, Arc<dyn Serializer>>;

/// The serializer of a call.
#[derive(Debug, Clone)]
pub enum SerializerRef {
    /// MessagePack, structs as arrays.
    Msgpack,
    /// JSON in hc-rpc's own envelope.
    Json,
    /// A plug-in.
    Named(Arc<dyn Serializer>),
}

impl SerializerRef {
    /// The serializer of this name, with its default settings; one instance per process, so that the look-up
    /// for each request is cheap.
    ///
    /// # Errors
    /// No linked serializer has the name, or two claim it.
    pub fn named(name: &str) -> Result<Self, PluginError> {
        static NAMED: OnceLock<Option<ByName>> = OnceLock::new();
        match name {
            "msgpack" => return Ok(Self::Msgpack),
            "json" => return Ok(Self::Json),
            _ => {}
        }
        let all = NAMED.get_or_init(|| {
            let table = SerializerPlugin::table().ok()?;
            let build = |name| Some((name, table.build(name, &Settings::new()).ok()?));
            table.names().into_iter().map(build).collect()
        });
        match all.as_ref().and_then(|all| all.get(name)) {
            Some(serializer) => Ok(Self::from(Arc::clone(serializer))),
            // Reports the cause: an unknown name, or a table that cannot be built.
            None => SerializerPlugin::build(name, &Settings::new()).map(Self::from),
        }
    }

    /// The name sent in the frame.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Msgpack => msgpack::NAME,
            Self::Json => json::NAME,
            Self::Named(serializer) => serializer.name(),
        }
    }

    /// Appends the serialized `value` to `out`.
    ///
    /// # Errors
    /// The value cannot be expressed; the appended bytes are invalid.
    pub fn encode<T: Serialize + ?Sized>(&self, value: &T, out: &mut BytesMut) -> Result<(), SerializeError> {
        match self {
            Self::Msgpack => msgpack::encode(value, out),
            Self::Json => json::encode(value, out),
            Self::Named(serializer) => serializer.serialize(&value, out),
        }
    }

    /// Reads the one value in `bytes`.
    ///
    /// # Errors
    /// The bytes are damaged, nested too deeply, or not of the requested type.
    pub fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, SerializeError> {
        match self {
            Self::Msgpack => msgpack::decode(bytes),
            Self::Json => json::decode(bytes),
            Self::Named(serializer) => {
                let mut value = None;
                serializer.deserialize(bytes, &mut |deserializer| {
                    value = Some(erased_serde::deserialize(deserializer)?);
                    Ok(())
                })?;
                value.ok_or_else(|| SerializeError::new(serializer.name(), "it returned no value"))
            }
        }
    }
}

impl From<Arc<dyn Serializer>> for SerializerRef {
    /// The serializers with static code are recognised by their names.
    fn from(serializer: Arc<dyn Serializer>) -> Self {
        match serializer.name() {
            msgpack::NAME => Self::Msgpack,
            json::NAME => Self::Json,
            _ => Self::Named(serializer),
        }
    }
}

impl SerializeError {
    /// An error of `serializer`.
    pub fn new(serializer: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self {
            serializer: serializer.into(),
            reason: reason.to_string(),
        }
    }
}

/// Bytes that a thread allocates at once for many values.
const SLAB_BYTES: usize = 32 * 1024;
/// Up to this size, a value is expected to be as large as the previous one.
const LARGE_BYTES_MAX: usize = 256 * 1024;
/// A slab with less space is replaced before a value is written.
const SLAB_LEFT_BYTES_MIN: usize = 512;

thread_local! {
    /// The buffer for this thread's next values: one allocation for many, freed when all of them are gone.
    static SLAB: Cell<BytesMut> = Cell::new(BytesMut::new());
    /// Size of this thread's last value if it was larger than a slab but not huge; else 0.
    static LARGE_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// The serialized `value` as a piece of this thread's slab.
pub(crate) fn to_bytes<T: Serialize + ?Sized>(
    serializer: &SerializerRef,
    value: &T,
) -> Result<Bytes, SerializeError> {
    // Taken out, because a `Serialize` may itself make calls.
    let mut slab = SLAB.take();
    let expected = LARGE_BYTES.get();
    if expected > 0 {
        // The last value was larger than a slab, and such values come in series: this one gets its own buffer
        // at once.
        slab = BytesMut::with_capacity(expected);
    } else if slab.capacity() < SLAB_LEFT_BYTES_MIN {
        // Reuses the old memory if nobody holds a piece of it.
        slab.reserve(SLAB_BYTES);
    }
    let encoded = serializer.encode(value, &mut slab);
    let piece = slab.split().freeze();
    let large = SLAB_BYTES < piece.len() && piece.len() <= LARGE_BYTES_MAX;
    LARGE_BYTES.set(if large { piece.len() } else { 0 });
    // One huge value must not leave a huge slab behind.
    if slab.capacity() <= SLAB_BYTES {
        SLAB.set(slab);
    }
    encoded.map(|()| piece)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod slab_tests {
    use super::*;

    #[test]
    fn many_small_values_share_one_allocation() {
        let first = to_bytes(&SerializerRef::Msgpack, "first").unwrap();
        let second = to_bytes(&SerializerRef::Msgpack, "second").unwrap();
        assert_eq!((&first[..], &second[..]), (&b"\xa5first"[..], &b"\xa6second"[..]));
        assert_eq!(second.as_ptr() as usize, first.as_ptr() as usize + first.len());
    }

    #[test]
    fn memory_is_used_again_when_its_values_are_gone() {
        let text = "x".repeat(1000);
        let places: std::collections::BTreeSet<usize> = (0..1000)
            .map(|_| to_bytes(&SerializerRef::Msgpack, &text).unwrap().as_ptr() as usize)
            .collect();
        assert!(
            places.len() <= 2 * SLAB_BYTES / text.len(),
            "{} places",
            places.len()
        );
    }

    #[test]
    fn huge_value_leaves_no_huge_slab() {
        let huge = to_bytes(&SerializerRef::Msgpack, &"x".repeat(10 * SLAB_BYTES)).unwrap();
        assert_eq!(huge.len(), 10 * SLAB_BYTES + 5);
        let slab = SLAB.take();
        assert!(slab.capacity() <= SLAB_BYTES);
    }

    #[test]
    fn failed_value_leaves_nothing_behind() {
        let map = BTreeMap::from([((1, 2), 3)]);
        assert!(to_bytes(&SerializerRef::Json, &map).is_err());
        assert_eq!(to_bytes(&SerializerRef::Json, &1).unwrap(), "1");
    }
}
