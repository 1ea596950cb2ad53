//! The serializer `checked_json`: a checksum (FNV-1a, 4 bytes, big-endian) followed by the value as JSON
//! text.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use rpc_core::limits::NESTING_DEPTH_MAX;
use rpc_core::serialize::{SerializeError, Serializer, SerializerPlugin, Visit};

rpc_core::plugin!(SerializerPlugin, "checked_json", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(CheckedJson))
});

const NAME: &str = "checked_json";

/// JSON that detects damage.
#[derive(Debug, Clone, Copy)]
pub struct CheckedJson;

impl Serializer for CheckedJson {
    fn name(&self) -> &str {
        NAME
    }

    fn serialize(
        &self,
        value: &dyn erased_serde::Serialize,
        out: &mut BytesMut,
    ) -> Result<(), SerializeError> {
        let text = serde_json::to_vec(value).map_err(|error| SerializeError::new(NAME, error))?;
        out.put_u32(checksum(&text));
        out.put_slice(&text);
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8], visit: &mut Visit<'_>) -> Result<(), SerializeError> {
        let fail = |reason: String| Err(SerializeError::new(NAME, reason));
        let Some((sum, text)) = bytes.split_first_chunk::<4>() else {
            return fail(format!("{} bytes; expected at least 4", bytes.len()));
        };
        if u32::from_be_bytes(*sum) != checksum(text) {
            return fail("the checksum does not match: the bytes were damaged in transit".to_owned());
        }
        if depth(text) > NESTING_DEPTH_MAX {
            return fail(format!("nested deeper than {NESTING_DEPTH_MAX}"));
        }
        let mut json = serde_json::Deserializer::from_slice(text);
        visit(&mut <dyn erased_serde::Deserializer<'_>>::erase(&mut json))
            .map_err(|error| SerializeError::new(NAME, error))?;
        json.end().map_err(|error| SerializeError::new(NAME, error))
    }
}

/// FNV-1a over 32 bits.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| {
        (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

/// Levels of nesting; brackets inside strings do not count.
fn depth(text: &[u8]) -> usize {
    let (mut deepest, mut now, mut in_string, mut escaped) = (0_usize, 0_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                now += 1;
                deepest = deepest.max(now);
            }
            b']' | b'}' if !in_string => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use rpc_core::serialize::SerializerRef;
    use rpc_core::serialize::contract::{self, Shapes};

    use super::*;

    #[test]
    fn a_value_survives_and_a_flipped_bit_does_not() {
        let serializer = SerializerRef::named("checked_json").unwrap();
        let mut bytes = BytesMut::new();
        let value = ("a\"[".to_owned(), vec![1_u32, 2, 3], Some(true));
        serializer.encode(&value, &mut bytes).unwrap();
        assert_eq!(
            serializer
                .decode::<(String, Vec<u32>, Option<bool>)>(&bytes)
                .unwrap(),
            value
        );
        for index in 0..bytes.len() {
            bytes[index] ^= 1;
            assert!(
                serializer
                    .decode::<(String, Vec<u32>, Option<bool>)>(&bytes)
                    .is_err(),
                "byte {index}"
            );
            bytes[index] ^= 1;
        }
        assert!(serializer.decode::<u8>(b"ab").is_err());
    }

    #[test]
    fn it_keeps_the_contract_of_serializers() {
        let serializer = SerializerRef::named("checked_json").unwrap();
        contract::check(&serializer, Shapes::Values, 7);
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = "[".repeat(NESTING_DEPTH_MAX + 1) + &"]".repeat(NESTING_DEPTH_MAX + 1);
        let mut bytes = checksum(text.as_bytes()).to_be_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        let outcome = CheckedJson.deserialize(&bytes, &mut |_| Ok(()));
        assert!(outcome.is_err_and(|error| error.reason.contains("nested")));
        assert_eq!(depth(br#"{"a":"[[[\"{{","b":[1]}"#), 2);
    }
}
