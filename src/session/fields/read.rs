//! Values out of fields.

use std::fmt;

use serde::{
    de::{
        self, DeserializeOwned, DeserializeSeed, Deserializer, Visitor,
        value::BorrowedStrDeserializer,
    },
    forward_to_deserialize_any,
    ser::Serialize,
};

use super::{
    All, Class, EMPTY, Field, Fields, FieldsError, Kind, MAP, VALUE, changes, depth, write,
};

/// The value that [`encode`](super::encode) has made these fields of.
///
/// Fields that the type does not know are passed over, so that several types may share a session. If
/// one is missing that the type cannot do without, it is as in the default value, and if there are
/// none at all, all are.
pub(crate) fn decode<T>(fields: &Fields) -> Result<T, FieldsError>
where
    T: DeserializeOwned + Default + Serialize,
{
    if fields.all().all(|field| field.class == Class::Flash) {
        return Ok(T::default());
    }
    let Failure(error) = match T::deserialize(Top { fields }) {
        Ok(value) => return Ok(value),
        Err(failure) => failure,
    };
    if error.kind != Kind::Missing {
        return Err(error);
    }
    complete(fields, &write::encode(&T::default())?, error)
}

/// Reads fields with those of the default value that turn out to be missing, and no others: a field
/// that is there by its former name would be there twice.
#[cold]
fn complete<T: DeserializeOwned>(
    fields: &Fields,
    default: &Fields,
    mut error: FieldsError,
) -> Result<T, FieldsError> {
    let mut fields = fields.clone();
    while error.kind == Kind::Missing {
        let completed = changes::completed(&fields, default, error.field());
        if completed == fields {
            break;
        }
        fields = completed;
        error = match T::deserialize(Top { fields: &fields }) {
            Ok(value) => return Ok(value),
            Err(Failure(error)) => error,
        };
    }
    Err(error)
}

/// The value that [`encode_value`](super::encode_value) has written.
pub(crate) fn decode_value<V: DeserializeOwned>(value: &[u8]) -> Result<V, FieldsError> {
    Value { bytes: value, name: None }
        .read(std::marker::PhantomData)
        .map_err(|Failure(error)| error)
}

/// An error without what `serde` tells of the value.
#[derive(Debug)]
struct Failure(FieldsError);

impl Failure {
    fn new(kind: Kind, field: Option<&str>) -> Self {
        Self(FieldsError::new(kind, field))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<M: fmt::Display>(_: M) -> Self {
        Self::new(Kind::Unreadable, None)
    }

    fn missing_field(name: &'static str) -> Self {
        Self::new(Kind::Missing, Some(name))
    }

    fn unknown_field(name: &str, _: &'static [&'static str]) -> Self {
        Self::new(Kind::Unknown, Some(name))
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::new(Kind::Twice, Some(name))
    }
}

/// A value in MessagePack.
struct Value<'de> {
    bytes: &'de [u8],
    name: Option<&'de str>,
}

impl<'de> Value<'de> {
    fn read<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Failure> {
        self.read_by(|reader| seed.deserialize(reader))
    }

    fn read_by<T>(
        self,
        read: impl FnOnce(&mut Reader<'de>) -> Result<T, rmp_serde::decode::Error>,
    ) -> Result<T, Failure> {
        if depth::is_too_deep(self.bytes) {
            return Err(Failure::new(Kind::TooDeep, self.name));
        }
        let mut reader = Reader::from_read_ref(self.bytes);
        read(&mut reader).map_err(|_| Failure::new(Kind::Unreadable, self.name))
    }
}

type Reader<'de> = rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'de, [u8]>>;

/// Reads fields as the one value that they were.
struct Top<'de> {
    fields: &'de Fields,
}

impl<'de> Top<'de> {
    fn whole(&self, name: &str) -> Result<Value<'de>, Failure> {
        match self.fields.get(Class::Whole, name) {
            Some(bytes) => Ok(Value { bytes, name: None }),
            None => Err(Failure::new(Kind::Missing, None)),
        }
    }

    fn entries(&self) -> Entries<'de> {
        Entries { rest: self.fields.all(), value: None }
    }

    fn has_data(&self) -> bool {
        self.fields.all().next().is_some_and(|field| field.class == Class::Data)
    }
}

/// Reads what has no fields of its own.
macro_rules! values {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
        fn $name<V: Visitor<'de>>(
            self,
            $($argument: $type,)*
            visitor: V,
        ) -> Result<V::Value, Failure> {
            self.whole(VALUE)?.read_by(|reader| reader.$name($($argument,)* visitor))
        }
    )*};
}

impl<'de> Deserializer<'de> for Top<'de> {
    type Error = Failure;

    values! {
        deserialize_bool();
        deserialize_i8();
        deserialize_i16();
        deserialize_i32();
        deserialize_i64();
        deserialize_i128();
        deserialize_u8();
        deserialize_u16();
        deserialize_u32();
        deserialize_u64();
        deserialize_u128();
        deserialize_f32();
        deserialize_f64();
        deserialize_char();
        deserialize_str();
        deserialize_string();
        deserialize_bytes();
        deserialize_byte_buf();
        deserialize_option();
        deserialize_unit();
        deserialize_unit_struct(name: &'static str);
        deserialize_seq();
        deserialize_tuple(length: usize);
        deserialize_tuple_struct(name: &'static str, length: usize);
        deserialize_enum(name: &'static str, variants: &'static [&'static str]);
        deserialize_identifier();
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        if name == rmp_serde::MSGPACK_EXT_STRUCT_NAME {
            let value = self.whole(VALUE)?;
            return value.read_by(|reader| reader.deserialize_newtype_struct(name, visitor));
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        // Beside the fields of other types alone it has never been written.
        if !names.is_empty()
            && !self.fields.iter(Class::Data).any(|(name, _)| names.contains(&name))
        {
            self.whole(EMPTY)?;
        }
        visitor.visit_map(self.entries())
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.whole(MAP) {
            Ok(map) => map.read_by(|reader| reader.deserialize_map(visitor)),
            Err(_) => visitor.visit_map(self.entries()),
        }
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if !self.has_data() {
            for name in [VALUE, MAP] {
                if let Ok(value) = self.whole(name) {
                    return value.read_by(|reader| reader.deserialize_any(visitor));
                }
            }
            self.whole(EMPTY)?;
        }
        visitor.visit_map(self.entries())
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The fields of the application's data.
struct Entries<'de> {
    rest: All<'de>,
    value: Option<Value<'de>>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Failure;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failure> {
        let Some(Field { class: Class::Data, name, value }) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some(Value { bytes: value, name: Some(name) });
        seed.deserialize(Key(name)).map(Some)
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        match self.value.take() {
            Some(value) => value.read(seed),
            None => Err(Failure::new(Kind::Unreadable, None)),
        }
    }
}

/// The name of a field, as a key.
struct Key<'de>(&'de str);

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        BorrowedStrDeserializer::new(self.0).deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}
