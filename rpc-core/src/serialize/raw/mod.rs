//! `raw`: the one value of a call is bytes, which are sent unchanged. For a method with one parameter (or
//! none) and a result that are `Bytes`, text, or nothing at all; anything else is refused, on both sides.
//!
//! Its values are still part of the envelope. Large values, or values in several pieces, are better sent as
//! an [`crate::Attachment`], which is never copied.

mod read;
mod write;

use bytes::BytesMut;

use super::{SerializeError, Serializer, Visit};

const NAME: &str = "raw";

/// The serializer `raw`.
#[derive(Debug)]
pub(super) struct Raw;

impl Serializer for Raw {
    fn name(&self) -> &str {
        NAME
    }

    fn serialize(
        &self,
        value: &dyn erased_serde::Serialize,
        out: &mut BytesMut,
    ) -> Result<(), SerializeError> {
        serde::Serialize::serialize(value, write::Writer(out))
            .map_err(|error| SerializeError::new(NAME, error))
    }

    fn deserialize(&self, bytes: &[u8], visit: &mut Visit<'_>) -> Result<(), SerializeError> {
        visit(&mut <dyn erased_serde::Deserializer<'_>>::erase(read::Reader(
            bytes,
        )))
        .map_err(|error| SerializeError::new(NAME, error))
    }
}

/// Why a value cannot be raw bytes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl Refused {
    /// The refusal of a value of this kind.
    fn kind(kind: &str) -> Self {
        Self(format!(
            "it carries one piece of bytes or text, not {kind}; choose another serializer, as `msgpack`"
        ))
    }
}

impl serde::ser::Error for Refused {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl serde::de::Error for Refused {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}
