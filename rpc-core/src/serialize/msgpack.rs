//! MessagePack: structs as arrays, so that fields are only ever appended, with `#[serde(default)]`.

use bytes::{BufMut as _, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SerializeError;
use crate::envelope::guard;
use crate::limits::NESTING_DEPTH_MAX;

pub(crate) const NAME: &str = "msgpack";

/// rmp-serde also counts enums and newtypes, in addition to the levels of nesting that the guard has limited.
const DECODER_DEPTH_MAX: usize = 2 * NESTING_DEPTH_MAX + 2;

/// Appends `value` to `out`.
pub(super) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut BytesMut) -> Result<(), SerializeError> {
    rmp_serde::encode::write(&mut out.writer(), value).map_err(|error| SerializeError::new(NAME, error))
}

/// Reads the one value in `bytes`.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SerializeError> {
    T::deserialize(&mut deserializer(bytes)?).map_err(|error| SerializeError::new(NAME, error))
}

/// A deserializer over the one value in `bytes`, which has passed the guard.
pub(super) fn deserializer(
    bytes: &[u8],
) -> Result<rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'_, [u8]>>, SerializeError> {
    guard::msgpack(bytes).map_err(|error| SerializeError::new(NAME, error))?;
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(DECODER_DEPTH_MAX);
    Ok(deserializer)
}
