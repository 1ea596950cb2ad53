//! The built-in serializers as plug-ins. Calls with `msgpack` and `json` never use them
//! ([`super::SerializerRef`] knows both by name); they are in the table so that it is complete.

use std::sync::Arc;

use bytes::{BufMut as _, BytesMut};

use super::msgpack_named::MsgpackNamed;
use super::raw::Raw;
use super::{SerializeError, Serializer, SerializerPlugin, Visit, json, msgpack};
use crate::envelope::guard;

/// [`super::SerializerRef::Msgpack`] as an object.
#[derive(Debug)]
struct Msgpack;

impl Serializer for Msgpack {
    fn name(&self) -> &str {
        msgpack::NAME
    }

    fn serialize(
        &self,
        value: &dyn erased_serde::Serialize,
        out: &mut BytesMut,
    ) -> Result<(), SerializeError> {
        msgpack::encode(value, out)
    }

    fn deserialize(&self, bytes: &[u8], visit: &mut Visit<'_>) -> Result<(), SerializeError> {
        let mut deserializer = msgpack::deserializer(bytes)?;
        visit(&mut <dyn erased_serde::Deserializer<'_>>::erase(
            &mut deserializer,
        ))
        .map_err(|error| SerializeError::new(msgpack::NAME, error))
    }
}

/// [`super::SerializerRef::Json`] as an object.
#[derive(Debug)]
struct Json;

impl Serializer for Json {
    fn name(&self) -> &str {
        json::NAME
    }

    fn serialize(
        &self,
        value: &dyn erased_serde::Serialize,
        out: &mut BytesMut,
    ) -> Result<(), SerializeError> {
        serde_json::to_writer(out.writer(), value).map_err(|error| SerializeError::new(json::NAME, error))
    }

    fn deserialize(&self, bytes: &[u8], visit: &mut Visit<'_>) -> Result<(), SerializeError> {
        guard::json(bytes).map_err(|error| SerializeError::new(json::NAME, error))?;
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        visit(&mut <dyn erased_serde::Deserializer<'_>>::erase(
            &mut deserializer,
        ))
        .map_err(|error| SerializeError::new(json::NAME, error))?;
        deserializer
            .end()
            .map_err(|error| SerializeError::new(json::NAME, error))
    }
}

crate::plugin!(SerializerPlugin, "msgpack", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(Msgpack))
});

crate::plugin!(SerializerPlugin, "json", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(Json))
});

crate::plugin!(SerializerPlugin, "msgpack-named", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(MsgpackNamed))
});

crate::plugin!(SerializerPlugin, "raw", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(Raw))
});
