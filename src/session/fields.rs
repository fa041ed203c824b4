//! A session's data as named fields, so that parallel writes are merged field by field.
//!
//! Each field is a value in MessagePack with names of fields. They lie one after another, as they do
//! in the storage: in a session's few fields a search from the first on is fast, and reading a
//! record takes no memory.
//!
//! ```text
//! class             1 byte
//! length of name    1 byte or more, seven bits a byte, the lowest first
//! name
//! length of value   1 byte or more
//! value
//! ```

mod changes;
mod depth;
mod read;
#[cfg(test)]
mod tests;

mod write;

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

pub(crate) use self::{
    changes::Changes,
    read::{decode, decode_value},
    write::{encode, encode_value},
};

/// What a name is a name of: names of different classes never collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Class {
    /// Data of the application.
    Data,
    /// Messages that are read once.
    Flash,
    /// A value that has no fields of its own, under one of three names.
    Whole,
}

/// Of [`Class::Whole`]: what is neither a struct nor a map.
const VALUE: &str = "value";
/// Of [`Class::Whole`]: a map that has a key other than text.
const MAP: &str = "map";
/// Of [`Class::Whole`]: says that a struct or map without any field was written, for that is not
/// the same as none.
const EMPTY: &str = "empty";

impl Class {
    const fn code(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Flash => 1,
            Self::Whole => 2,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Data),
            1 => Some(Self::Flash),
            2 => Some(Self::Whole),
            _ => None,
        }
    }
}

/// Named values. A clone shares them.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields(Bytes);

impl Fields {
    #[cfg(test)]
    pub(crate) const fn new() -> Self {
        Self(Bytes::new())
    }

    /// What [`as_bytes`](Self::as_bytes) has given, and `None` for anything else.
    pub(crate) fn from_bytes(bytes: Bytes) -> Option<Self> {
        let mut rest = &bytes[..];
        let mut before = None;
        while !rest.is_empty() {
            let field = Field::split_off(&mut rest)?;
            let name = Some((field.class, field.name));
            if name <= before {
                return None;
            }
            before = name;
        }
        Some(Self(bytes))
    }

    pub(crate) const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    pub(crate) fn get(&self, class: Class, name: &str) -> Option<&[u8]> {
        self.all()
            .take_while(|field| field.class <= class)
            .find(|field| field.class == class && field.name == name)
            .map(|field| field.value)
    }

    /// Names and values, by the order of their names.
    pub(crate) fn iter(&self, class: Class) -> impl Iterator<Item = (&str, &[u8])> {
        self.all()
            .skip_while(move |field| field.class < class)
            .take_while(move |field| field.class == class)
            .map(|field| (field.name, field.value))
    }

    /// Of all classes.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.all().count()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn all(&self) -> All<'_> {
        All(&self.0)
    }
}

/// Names alone: the values may be secret.
impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.all().map(|field| (field.class, field.name));
        f.debug_list().entries(names).finish()
    }
}

#[derive(Clone, Copy)]
struct Field<'a> {
    class: Class,
    name: &'a str,
    value: &'a [u8],
}

impl<'a> Field<'a> {
    #[inline]
    fn split_off(from: &mut &'a [u8]) -> Option<Self> {
        let (&code, rest) = from.split_first()?;
        *from = rest;
        let class = Class::from_code(code)?;
        let name = str::from_utf8(take(from)?).ok()?;
        Some(Self { class, name, value: take(from)? })
    }

    fn put(self, out: &mut BytesMut) {
        out.put_u8(self.class.code());
        put_text(out, self.name.as_bytes());
        put_text(out, self.value);
    }

    /// At most.
    const fn room(self) -> usize {
        1 + 10 + self.name.len() + 10 + self.value.len()
    }
}

/// Walks over fields that have been looked through before.
struct All<'a>(&'a [u8]);

impl<'a> Iterator for All<'a> {
    type Item = Field<'a>;

    #[inline]
    fn next(&mut self) -> Option<Field<'a>> {
        Field::split_off(&mut self.0)
    }
}

/// Takes off a length and so many bytes.
#[inline]
pub(super) fn take<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut length = 0;
    for shift in (0..usize::BITS - 7).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        length |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            let (taken, rest) = from.split_at_checked(length)?;
            *from = rest;
            return Some(taken);
        }
    }
    None
}

pub(super) fn put_text(out: &mut BytesMut, text: &[u8]) {
    let mut length = text.len();
    while length >= 0x80 {
        out.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
    out.put_slice(text);
}

/// Why a value cannot be kept in a session, or not be read from it.
///
/// It names the field where that is known, and never shows a value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FieldsError {
    kind: Kind,
    field: Option<Box<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unwritable,
    Twice,
    TooDeep,
    Missing,
    Unknown,
    Unreadable,
}

impl FieldsError {
    fn new(kind: Kind, field: Option<&str>) -> Self {
        Self { kind, field: field.map(Box::from) }
    }

    /// The field of the session's data that it is about.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }
}

impl fmt::Display for FieldsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(name) => write!(f, "the field {name:?} of the session ")?,
            None => f.write_str("the session's data ")?,
        }
        f.write_str(match self.kind {
            Kind::Unwritable => "cannot be serialized",
            Kind::Twice => "is there twice",
            Kind::TooDeep => "is nested too deeply",
            Kind::Missing => "is missing",
            Kind::Unknown => "is not known to the type that is read",
            Kind::Unreadable => "is not of the type that is read",
        })
    }
}

impl std::error::Error for FieldsError {}
