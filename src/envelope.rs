//! What the stored bytes of several layers have in common: bodies, header fields, and how they are
//! read.
//!
//! Nothing is copied: what is read are slices of what the storage gave. Reading is total.

pub(crate) mod body;
pub(crate) mod names;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Why the bytes under a key are not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// Written by another version or other features of this crate: left for those who can read it.
    OtherVersion,
    /// Of another key.
    OtherKey,
    /// Not what was written.
    Damaged,
    /// The body is larger than the reader takes.
    TooLarge,
}

/// Whether `Connection` declares the field to concern one connection only (RFC 9110, section 7.6.1).
pub(crate) fn is_named_by_connection(name: &HeaderName, headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|line| {
        let mut options = line.as_bytes().split(|&byte| byte == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    })
}

/// About how much room the fields take.
pub(crate) fn fields_room(headers: &HeaderMap) -> usize {
    headers.iter().map(|(_, value)| 24 + value.len()).sum()
}

pub(crate) fn put_fields(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        put_name(out, name);
        put_value(out, value);
    }
}

pub(crate) fn put_name(out: &mut BytesMut, name: &HeaderName) {
    let code = names::code(name);
    out.put_u8(code);
    if code == names::SPELLED_OUT {
        put_length(out, name.as_str().len());
        out.put_slice(name.as_str().as_bytes());
    }
}

/// The lowest bit of the length tells whether the value is sensitive.
pub(crate) fn put_value(out: &mut BytesMut, value: &HeaderValue) {
    put_length(out, value.len() << 1 | usize::from(value.is_sensitive()));
    out.put_slice(value.as_bytes());
}

/// Seven bits a byte, the lowest first.
pub(crate) fn put_length(out: &mut BytesMut, mut length: usize) {
    while length >= 0x80 {
        out.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
}

/// Reads what has one place in every head. Always inlined: all lengths are then known, and nothing
/// has to be checked.
pub(crate) struct Fixed<'a>(pub(crate) &'a [u8]);

impl Fixed<'_> {
    #[inline(always)]
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(DecodeError::Damaged)?;
        self.0 = rest;
        Ok(*array)
    }

    #[inline(always)]
    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    #[inline(always)]
    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    #[inline(always)]
    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }
}

/// Reads the rest of a head, and never past its end.
pub(crate) struct Reader<'a> {
    value: &'a Bytes,
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    /// Of `value` from `at` to `end`, which is not beyond it.
    #[inline]
    pub(crate) fn new(value: &'a Bytes, at: usize, end: usize) -> Self {
        debug_assert!(at <= end && end <= value.len());
        Self { value, at, end }
    }

    #[inline]
    pub(crate) fn is_at_end(&self) -> bool {
        self.at == self.end
    }

    /// Steps over that many bytes, and says where they start.
    #[inline]
    fn skip(&mut self, count: usize) -> Result<usize, DecodeError> {
        if count > self.end - self.at {
            return Err(DecodeError::Damaged);
        }
        self.at += count;
        Ok(self.at - count)
    }

    #[inline]
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let start = self.skip(count)?;
        Ok(&self.value[start..self.at])
    }

    #[inline]
    pub(crate) fn slice(&mut self, count: usize) -> Result<Bytes, DecodeError> {
        let start = self.skip(count)?;
        Ok(self.value.slice(start..self.at))
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let at = self.skip(1)?;
        Ok(self.value[at])
    }

    #[inline]
    pub(crate) fn length(&mut self) -> Result<usize, DecodeError> {
        let mut length = 0;
        for shift in (0..usize::BITS - 7).step_by(7) {
            let byte = self.byte()?;
            length |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(length);
            }
        }
        Err(DecodeError::Damaged)
    }

    #[inline]
    pub(crate) fn name(&mut self) -> Result<HeaderName, DecodeError> {
        match self.byte()? {
            names::SPELLED_OUT => {
                let length = self.length()?;
                HeaderName::from_lowercase(self.bytes(length)?).map_err(|_| DecodeError::Damaged)
            }
            // A name that a later release has added.
            code => names::name(code).ok_or(DecodeError::OtherVersion),
        }
    }

    #[inline]
    pub(crate) fn value(&mut self) -> Result<HeaderValue, DecodeError> {
        let length = self.length()?;
        let mut value = HeaderValue::from_maybe_shared(self.slice(length >> 1)?)
            .map_err(|_| DecodeError::Damaged)?;
        value.set_sensitive(length & 1 == 1);
        Ok(value)
    }

    pub(crate) fn fields(&mut self, count: usize) -> Result<HeaderMap, DecodeError> {
        // A field takes two bytes or more.
        if count > (self.end - self.at) / 2 {
            return Err(DecodeError::Damaged);
        }
        // An answer adds a few, such as `Age`, `Content-Length` and `Cache-Status`, and should not
        // have to grow it.
        let mut headers =
            HeaderMap::try_with_capacity(count + 3).map_err(|_| DecodeError::Damaged)?;
        for _ in 0..count {
            let name = self.name()?;
            let value = self.value()?;
            headers.try_append(name, value).map_err(|_| DecodeError::Damaged)?;
        }
        Ok(headers)
    }
}
