//! MessagePack with structs as maps of their fields' names: longer than `msgpack`, but fields may be added,
//! omitted (with `#[serde(default)]`) or reordered without changing the other side, and other languages see
//! names.

use bytes::{BufMut as _, BytesMut};

use super::{SerializeError, Serializer, Visit, msgpack};

const NAME: &str = "msgpack-named";

/// The serializer `msgpack-named`.
#[derive(Debug)]
pub(super) struct MsgpackNamed;

impl Serializer for MsgpackNamed {
    fn name(&self) -> &str {
        NAME
    }

    fn serialize(
        &self,
        value: &dyn erased_serde::Serialize,
        out: &mut BytesMut,
    ) -> Result<(), SerializeError> {
        rmp_serde::encode::write_named(&mut out.writer(), value)
            .map_err(|error| SerializeError::new(NAME, error))
    }

    fn deserialize(&self, bytes: &[u8], visit: &mut Visit<'_>) -> Result<(), SerializeError> {
        let mut deserializer =
            msgpack::deserializer(bytes).map_err(|error| SerializeError::new(NAME, error.reason))?;
        visit(&mut <dyn erased_serde::Deserializer<'_>>::erase(
            &mut deserializer,
        ))
        .map_err(|error| SerializeError::new(NAME, error))
    }
}
