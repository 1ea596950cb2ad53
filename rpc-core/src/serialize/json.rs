//! JSON, for original hc-rpc peers and for people.

use bytes::{BufMut as _, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SerializeError;
use crate::envelope::guard;

pub(crate) const NAME: &str = "json";

/// Appends `value` to `out`.
pub(super) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut BytesMut) -> Result<(), SerializeError> {
    serde_json::to_writer(out.writer(), value).map_err(|error| SerializeError::new(NAME, error))
}

/// Reads the one value in `bytes`.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SerializeError> {
    guard::json(bytes).map_err(|error| SerializeError::new(NAME, error))?;
    serde_json::from_slice(bytes).map_err(|error| SerializeError::new(NAME, error))
}
