//! MessagePack: structs as arrays, so that fields are only ever appended, with `#[serde(default)]`.

use bytes::{BufMut as _, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SerializeError;
use crate::limits::NESTING_DEPTH_MAX;

pub(crate) const NAME: &str = "msgpack";

/// Appends `value` to `out`.
pub(super) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut BytesMut) -> Result<(), SerializeError> {
    rmp_serde::encode::write(&mut out.writer(), value).map_err(|error| SerializeError::new(NAME, error))
}

/// Reads the one value in `bytes`.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SerializeError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(NESTING_DEPTH_MAX + 1);
    T::deserialize(&mut deserializer).map_err(|error| SerializeError::new(NAME, error))
}
