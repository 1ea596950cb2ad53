//! Converts a value to raw bytes: of everything in serde, only bytes, text, nothing, and a tuple of one of
//! these.

use bytes::BytesMut;
use serde::ser::{Impossible, SerializeTuple};
use serde::{Serialize, Serializer};

use super::Refused;

/// Appends the value to the buffer.
pub(super) struct Writer<'a>(pub(super) &'a mut BytesMut);

type Done = Result<(), Refused>;
type Never = Impossible<(), Refused>;

macro_rules! refuse {
    ($($method:ident($($argument:ident: $type:ty),*) -> $ok:ty as $kind:literal;)*) => {$(
        fn $method(self, $($argument: $type),*) -> Result<$ok, Refused> {
            $(let _: $type = $argument;)*
            Err(Refused::kind($kind))
        }
    )*};
}

impl<'a> Serializer for Writer<'a> {
    type Ok = ();
    type Error = Refused;
    type SerializeSeq = Never;
    type SerializeTuple = One<'a>;
    type SerializeTupleStruct = Never;
    type SerializeTupleVariant = Never;
    type SerializeMap = Never;
    type SerializeStruct = Never;
    type SerializeStructVariant = Never;

    fn serialize_bytes(self, bytes: &[u8]) -> Done {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn serialize_str(self, text: &str) -> Done {
        self.serialize_bytes(text.as_bytes())
    }

    fn serialize_unit(self) -> Done {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Done {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Done {
        value.serialize(self)
    }

    fn serialize_tuple(self, length: usize) -> Result<One<'a>, Refused> {
        match length {
            0 | 1 => Ok(One(self.0)),
            more => Err(Refused::kind(&format!("{more} values"))),
        }
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Done {
        Err(Refused::kind("an optional value"))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Done {
        Err(Refused::kind("an enum"))
    }

    refuse! {
        serialize_bool(value: bool) -> () as "a bool";
        serialize_i8(value: i8) -> () as "a number";
        serialize_i16(value: i16) -> () as "a number";
        serialize_i32(value: i32) -> () as "a number";
        serialize_i64(value: i64) -> () as "a number";
        serialize_u8(value: u8) -> () as "a number";
        serialize_u16(value: u16) -> () as "a number";
        serialize_u32(value: u32) -> () as "a number";
        serialize_u64(value: u64) -> () as "a number";
        serialize_f32(value: f32) -> () as "a number";
        serialize_f64(value: f64) -> () as "a number";
        serialize_char(value: char) -> () as "a char";
        serialize_none() -> () as "an optional value";
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str) -> () as "an enum";
        serialize_seq(length: Option<usize>) -> Never as "a list (of bytes, say `Bytes`)";
        serialize_tuple_struct(name: &'static str, length: usize) -> Never as "a struct";
        serialize_tuple_variant(name: &'static str, index: u32, variant: &'static str, length: usize) -> Never as "an enum";
        serialize_map(length: Option<usize>) -> Never as "a map";
        serialize_struct(name: &'static str, length: usize) -> Never as "a struct";
        serialize_struct_variant(name: &'static str, index: u32, variant: &'static str, length: usize) -> Never as "an enum";
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The one value of a tuple, such as the parameters of a method.
pub(super) struct One<'a>(&'a mut BytesMut);

impl SerializeTuple for One<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        value.serialize(Writer(self.0))
    }

    fn end(self) -> Done {
        Ok(())
    }
}
