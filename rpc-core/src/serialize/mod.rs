//! Serializers: how one value becomes bytes. `msgpack` (default) and `json` are matched to static code; any other is a
//! plug-in over `erased-serde`.

use std::fmt;
use std::sync::Arc;

use bytes::BytesMut;

crate::plugin_kind! {
    /// A serializer that can be named, as in `.serializer("msgpack")`. The name travels in every frame.
    pub struct SerializerPlugin for dyn Serializer as "serializer"
}

/// Why a value cannot be serialized or read back.
#[derive(Debug, thiserror::Error)]
#[error("{serializer}: {reason}")]
pub struct SerializeError {
    /// Which serializer.
    pub serializer: String,
    /// What it said.
    pub reason: String,
}

/// What [`Serializer::deserialize`] hands its deserializer to; it reads exactly one value.
pub type Visit<'a> =
    dyn FnMut(&mut dyn erased_serde::Deserializer<'_>) -> Result<(), erased_serde::Error> + 'a;

/// Turns one value into bytes and back. It must refuse input nested deeper than [`crate::limits::NESTING_DEPTH_MAX`]
/// and must not allocate by a length it has not checked.
pub trait Serializer: Send + Sync + fmt::Debug + 'static {
    /// The name that travels in the frame, at most 32 bytes.
    fn name(&self) -> &str;

    /// Appends the serialized `value` to `out`.
    ///
    /// # Errors
    /// The value cannot be expressed; `out` is then discarded by the caller.
    fn serialize(
        &self,
        value: &dyn erased_serde::Serialize,
        out: &mut BytesMut,
    ) -> Result<(), SerializeError>;

    /// Hands `visit` a deserializer over `bytes`.
    ///
    /// # Errors
    /// The bytes are not one value of this serializer, or not of the type wanted.
    fn deserialize(&self, bytes: &[u8], visit: &mut Visit<'_>) -> Result<(), SerializeError>;
}

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
