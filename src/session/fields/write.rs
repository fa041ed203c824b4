//! Values into fields.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use rmp_serde::{
    config::{DefaultConfig, StructMapConfig},
    encode::Error,
};
use serde::ser::{self, Serialize};

use super::{Class, EMPTY, Field, Fields, FieldsError, Kind, MAP, VALUE, depth::is_too_deep};

/// The fields of a value: of a struct or of a map whose keys are text, one for each of its own, and
/// for anything else a single one.
///
/// What is in `Some` or in an enum is a single one too, for its fields mean nothing without knowing
/// that it is there.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Fields, FieldsError> {
    let mut writer = rmp_serde::Serializer::new(Vec::with_capacity(128)).with_struct_map();
    let mut entries = None;
    let written = value.serialize(Top { writer: &mut writer, entries: &mut entries });
    let buffer = writer.into_inner();
    if written.is_err() {
        let failed = entries.as_ref().and_then(|entries| entries.last());
        return Err(FieldsError::new(
            Kind::Unwritable,
            failed.and_then(|entry| entry.name(&buffer)),
        ));
    }
    let Some(entries) = entries else { return whole(VALUE, &buffer) };
    if entries.is_empty() {
        return whole(EMPTY, &EMPTY_MAP);
    }
    match named(&entries, &buffer) {
        Some(fields) => joined(fields),
        None => {
            let mut map = Vec::with_capacity(buffer.len() + 5);
            let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
            map.push(MAP_32);
            map.extend_from_slice(&count.to_be_bytes());
            map.extend_from_slice(&buffer);
            whole(MAP, &map)
        }
    }
}

/// Of MessagePack: a map whose length follows in four bytes.
const MAP_32: u8 = 0xdf;
const EMPTY_MAP: [u8; 1] = [0x80];

/// A single value, for a key that is not a field of a type.
pub(crate) fn encode_value<V: Serialize + ?Sized>(value: &V) -> Result<Bytes, FieldsError> {
    let bytes =
        rmp_serde::to_vec_named(value).map_err(|_| FieldsError::new(Kind::Unwritable, None))?;
    if is_too_deep(&bytes) {
        return Err(FieldsError::new(Kind::TooDeep, None));
    }
    Ok(bytes.into())
}

fn whole(name: &str, value: &[u8]) -> Result<Fields, FieldsError> {
    if is_too_deep(value) {
        return Err(FieldsError::new(Kind::TooDeep, None));
    }
    let field = Field { class: Class::Whole, name, value };
    let mut out = BytesMut::with_capacity(field.room());
    field.put(&mut out);
    Ok(Fields(out.freeze()))
}

/// The entries as fields, if all have names.
fn named<'a>(entries: &[Entry], buffer: &'a [u8]) -> Option<Vec<Field<'a>>> {
    let field = |entry: &Entry| {
        Some(Field {
            class: Class::Data,
            name: entry.name(buffer)?,
            value: &buffer[entry.value.clone()],
        })
    };
    entries.iter().map(field).collect()
}

fn joined(mut fields: Vec<Field<'_>>) -> Result<Fields, FieldsError> {
    fields.sort_unstable_by_key(|field| field.name);
    if let Some(pair) = fields.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(FieldsError::new(Kind::Twice, Some(pair[0].name)));
    }
    let mut out = BytesMut::with_capacity(fields.iter().map(|field| field.room()).sum());
    for field in fields {
        if is_too_deep(field.value) {
            return Err(FieldsError::new(Kind::TooDeep, Some(field.name)));
        }
        field.put(&mut out);
    }
    Ok(Fields(out.freeze()))
}

/// Where an entry of a struct or map lies in what was written.
struct Entry {
    key: Range<usize>,
    value: Range<usize>,
}

impl Entry {
    /// The key, if it is text.
    fn name<'a>(&self, buffer: &'a [u8]) -> Option<&'a str> {
        let key = &buffer[self.key.clone()];
        let header = match key.first()? {
            0xa0..=0xbf => 1,
            0xd9 => 2,
            0xda => 3,
            0xdb => 5,
            _ => return None,
        };
        str::from_utf8(key.get(header..)?).ok()
    }
}

type Writer = rmp_serde::Serializer<Vec<u8>, StructMapConfig<DefaultConfig>>;

/// Writes a value as `rmp-serde` does, but of a struct or map the entries alone, and tells where they
/// lie.
struct Top<'a> {
    writer: &'a mut Writer,
    /// Stays `None` for what is neither a struct nor a map.
    entries: &'a mut Option<Vec<Entry>>,
}

impl<'a> Top<'a> {
    fn entries(self, count: usize) -> Entries<'a> {
        Entries { writer: self.writer, entries: self.entries.insert(Vec::with_capacity(count)) }
    }
}

/// Writes values that have no fields of their own.
macro_rules! values {
    ($($name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {$(
        #[inline]
        fn $name(self, $($argument: $type),*) -> Result<$output, Error> {
            self.writer.$name($($argument),*)
        }
    )*};
}

impl<'a> ser::Serializer for Top<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = <&'a mut Writer as ser::Serializer>::SerializeSeq;
    type SerializeTuple = <&'a mut Writer as ser::Serializer>::SerializeTuple;
    type SerializeTupleStruct = <&'a mut Writer as ser::Serializer>::SerializeTupleStruct;
    type SerializeTupleVariant = <&'a mut Writer as ser::Serializer>::SerializeTupleVariant;
    type SerializeMap = Entries<'a>;
    type SerializeStruct = Entries<'a>;
    type SerializeStructVariant = <&'a mut Writer as ser::Serializer>::SerializeStructVariant;

    values! {
        serialize_bool(v: bool) -> ();
        serialize_i8(v: i8) -> ();
        serialize_i16(v: i16) -> ();
        serialize_i32(v: i32) -> ();
        serialize_i64(v: i64) -> ();
        serialize_i128(v: i128) -> ();
        serialize_u8(v: u8) -> ();
        serialize_u16(v: u16) -> ();
        serialize_u32(v: u32) -> ();
        serialize_u64(v: u64) -> ();
        serialize_u128(v: u128) -> ();
        serialize_f32(v: f32) -> ();
        serialize_f64(v: f64) -> ();
        serialize_char(v: char) -> ();
        serialize_str(v: &str) -> ();
        serialize_bytes(v: &[u8]) -> ();
        serialize_none() -> ();
        serialize_unit() -> ();
        serialize_unit_struct(name: &'static str) -> ();
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str) -> ();
        serialize_seq(length: Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(length: usize) -> Self::SerializeTuple;
        serialize_tuple_struct(name: &'static str, length: usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(
            name: &'static str, index: u32, variant: &'static str, length: usize
        ) -> Self::SerializeTupleVariant;
        serialize_struct_variant(
            name: &'static str, index: u32, variant: &'static str, length: usize
        ) -> Self::SerializeStructVariant;
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.writer.serialize_some(value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.writer.serialize_newtype_variant(name, index, variant, value)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        if name == rmp_serde::MSGPACK_EXT_STRUCT_NAME {
            return self.writer.serialize_newtype_struct(name, value);
        }
        value.serialize(self)
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Entries<'a>, Error> {
        // The length is only a guess, and somebody else's.
        Ok(self.entries(length.unwrap_or(0).min(1024)))
    }

    fn serialize_struct(self, _: &'static str, length: usize) -> Result<Entries<'a>, Error> {
        Ok(self.entries(length))
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

struct Entries<'a> {
    writer: &'a mut Writer,
    entries: &'a mut Vec<Entry>,
}

impl Entries<'_> {
    fn key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        let start = self.writer.get_ref().len();
        key.serialize(&mut *self.writer)?;
        let end = self.writer.get_ref().len();
        self.entries.push(Entry { key: start..end, value: end..end });
        Ok(())
    }

    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        value.serialize(&mut *self.writer)?;
        if let Some(entry) = self.entries.last_mut() {
            entry.value.end = self.writer.get_ref().len();
        }
        Ok(())
    }
}

impl ser::SerializeMap for Entries<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.value(value)
    }

    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}

impl ser::SerializeStruct for Entries<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.key(name)?;
        self.value(value)
    }

    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}
