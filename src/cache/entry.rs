//! What the cache stores: an envelope of a head and a body.
//!
//! ```text
//! "tkc", version            4 bytes
//! checksum                  8 bytes   of the rest of the head
//! kind                      1 byte    response, variants, value
//! coding of the body        1 byte
//! flags of the freshness    1 byte
//! status                    2 bytes
//! number of fields or lists 4 bytes
//! length of the key         4 bytes
//! length of the tags        4 bytes
//! length of the head        4 bytes   up to the body
//! length of the body        8 bytes   as it lies here
//! length of the body        8 bytes   as it is served
//! five durations            8 bytes   each, in milliseconds
//! key, tags, fields or lists
//! body
//! ```
//!
//! Numbers are big-endian. The head is read without the body, and nothing of either is copied: what
//! is decoded are slices of what the storage gave. Decoding is total.
//!
//! The checksum is of the head alone. It is against accidents: whoever can write to the storage can
//! also write a body.

#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode};

use super::{control::Freshness, key::CacheKey, tags::TagList};
pub(crate) use crate::envelope::{DecodeError, body::Compression};
use crate::{
    checksum::checksum,
    envelope::{self, Fixed, Reader, put_length, put_name},
};

const MAGIC: [u8; 3] = *b"tkc";
const VERSION: u8 = 1;
const CHECKED_FROM: usize = 12;
const FIXED: usize = 12 + 1 + 1 + 1 + 2 + 4 * 4 + 2 * 8 + 5 * 8;

const RESPONSE: u8 = 1;
const VARIANTS: u8 = 2;
const VALUE: u8 = 3;

const MOST_VARY_LISTS: usize = 8;

/// What lies under a key.
#[derive(Clone, PartialEq)]
pub(crate) enum Stored {
    /// An answer, under the key of its request or variant.
    Response(StoredResponse),
    /// Under the key of a request whose answers have `Vary`: the lists of fields under which
    /// variants lie, the newest first. At most 8 are kept.
    Variants(Vec<Box<[HeaderName]>>),
    /// What `get_or_fill` has filled in.
    Value(StoredValue),
}

#[derive(Clone, PartialEq)]
pub(crate) struct StoredResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) freshness: Freshness,
    /// How long the handler took.
    pub(crate) fill_time: Duration,
    /// The response's own tags.
    pub(crate) tags: TagList,
    pub(crate) body: Bytes,
}

#[derive(Clone, PartialEq)]
pub(crate) struct StoredValue {
    pub(crate) freshness: Freshness,
    /// How long it took to make the value.
    pub(crate) fill_time: Duration,
    pub(crate) tags: TagList,
    pub(crate) bytes: Bytes,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Response(response) => response.fmt(f),
            Self::Variants(lists) => f.debug_tuple("Variants").field(lists).finish(),
            Self::Value(value) => value.fmt(f),
        }
    }
}

impl fmt::Debug for StoredResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredResponse")
            .field("status", &self.status)
            .field("freshness", &self.freshness)
            .field("body", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for StoredValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredValue")
            .field("freshness", &self.freshness)
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// The envelope of what is stored under this key.
pub(crate) fn encode(stored: &Stored, key: &CacheKey, compression: Option<Compression>) -> Bytes {
    let none = (&NOT_TIMED, Duration::ZERO, &TagList::default(), &Bytes::new());
    let (kind, status, count, (freshness, fill_time, tags, body)) = match stored {
        Stored::Response(StoredResponse { status, headers, freshness, fill_time, tags, body }) => {
            let rest = (freshness, *fill_time, tags, body);
            (RESPONSE, status.as_u16(), headers.len(), rest)
        }
        Stored::Variants(lists) => (VARIANTS, 0, lists.len().min(MOST_VARY_LISTS), none),
        Stored::Value(StoredValue { freshness, fill_time, tags, bytes }) => {
            (VALUE, 0, 0, (freshness, *fill_time, tags, bytes))
        }
    };
    let (coding, payload) = envelope::body::encode(body, compression);
    let (key, tags) = (key.as_bytes(), tags.encoded());

    let fields = match stored {
        Stored::Response(response) => envelope::fields_room(&response.headers),
        Stored::Variants(_) => 256,
        Stored::Value(_) => 0,
    };
    let room = FIXED + key.len() + tags.len() + fields + payload.len();
    let mut out = BytesMut::with_capacity(room);
    out.put_slice(&MAGIC);
    out.put_u8(VERSION);
    out.put_u64(0);
    out.put_slice(&[kind, coding, flags(freshness)]);
    out.put_u16(status);
    for length in [count, key.len(), tags.len(), 0] {
        out.put_u32(length as u32);
    }
    out.put_u64(payload.len() as u64);
    out.put_u64(body.len() as u64);
    for duration in [
        freshness.lifetime,
        freshness.initial_age,
        freshness.stale_while_revalidate,
        freshness.stale_if_error,
        fill_time,
    ] {
        out.put_u64(duration.as_millis().try_into().unwrap_or(u64::MAX));
    }
    out.put_slice(key);
    out.put_slice(tags);
    match stored {
        Stored::Response(response) => envelope::put_fields(&mut out, &response.headers),
        Stored::Variants(lists) => {
            for list in &lists[..count] {
                put_length(&mut out, list.len());
                list.iter().for_each(|name| put_name(&mut out, name));
            }
        }
        Stored::Value(_) => {}
    }
    let head = out.len();
    out[HEAD_LENGTH..HEAD_LENGTH + 4].copy_from_slice(&(head as u32).to_be_bytes());
    let checksum = checksum(&out[CHECKED_FROM..]);
    out[4..CHECKED_FROM].copy_from_slice(&checksum.to_be_bytes());
    out.put_slice(&payload);
    out.freeze()
}

/// Where the length of the head stands.
const HEAD_LENGTH: usize = CHECKED_FROM + 3 + 2 + 3 * 4;

static NOT_TIMED: Freshness = Freshness {
    lifetime: Duration::ZERO,
    initial_age: Duration::ZERO,
    stale_while_revalidate: Duration::ZERO,
    stale_if_error: Duration::ZERO,
    always_revalidate: false,
    must_revalidate: false,
    authorized: false,
    heuristic: false,
};

/// What the envelope holds, if it is of this key and its body is no larger than that.
pub(crate) fn decode(value: Bytes, key: &CacheKey, max_body: usize) -> Result<Stored, DecodeError> {
    use DecodeError::{Damaged, OtherKey, OtherVersion};

    match value.split_first_chunk() {
        Some((&MAGIC, [VERSION, ..])) => {}
        Some((&MAGIC, [_, ..])) => return Err(OtherVersion),
        _ => return Err(Damaged),
    }
    let head_length =
        value.get(HEAD_LENGTH..).and_then(|rest| rest.first_chunk()).ok_or(Damaged)?;
    let head_length = u32::from_be_bytes(*head_length) as usize;
    if head_length < FIXED || head_length > value.len() {
        return Err(Damaged);
    }
    let mut fixed = Fixed(value.get(4..FIXED).ok_or(Damaged)?);
    if fixed.u64()? != checksum(&value[CHECKED_FROM..head_length]) {
        return Err(Damaged);
    }

    let [kind, coding, flags] = fixed.array()?;
    let status = fixed.u16()?;
    let (count, key_length, tags_length) = (fixed.u32()?, fixed.u32()?, fixed.u32()?);
    fixed.u32()?; // the length of the head
    let (stored_length, body_length) = (fixed.u64()?, fixed.u64()?);
    let mut duration = || fixed.u64().map(Duration::from_millis);
    let freshness = Freshness {
        lifetime: duration()?,
        initial_age: duration()?,
        stale_while_revalidate: duration()?,
        stale_if_error: duration()?,
        always_revalidate: flags & ALWAYS_REVALIDATE != 0,
        must_revalidate: flags & MUST_REVALIDATE != 0,
        authorized: flags & AUTHORIZED != 0,
        heuristic: flags & HEURISTIC != 0,
    };
    let fill_time = duration()?;
    let mut head = Reader::new(&value, FIXED, head_length);
    if head.bytes(key_length as usize)? != key.as_bytes() {
        return Err(OtherKey);
    }
    let tags = TagList::decode(head.slice(tags_length as usize)?).ok_or(Damaged)?;
    if stored_length != (value.len() - head_length) as u64 {
        return Err(Damaged);
    }
    let body = |max_body: usize| {
        envelope::body::decode(coding, value.slice(head_length..), body_length, max_body)
    };

    let stored = match kind {
        RESPONSE => {
            let status = StatusCode::from_u16(status).map_err(|_| Damaged)?;
            let headers = head.fields(count as usize)?;
            let body = body(max_body)?;
            Stored::Response(StoredResponse { status, headers, freshness, fill_time, tags, body })
        }
        VARIANTS => {
            body(0)?;
            Stored::Variants(lists(&mut head, count as usize)?)
        }
        VALUE => {
            let bytes = body(max_body)?;
            Stored::Value(StoredValue { freshness, fill_time, tags, bytes })
        }
        _ => return Err(OtherVersion),
    };
    if head.is_at_end() { Ok(stored) } else { Err(Damaged) }
}

const ALWAYS_REVALIDATE: u8 = 1;
const MUST_REVALIDATE: u8 = 2;
const AUTHORIZED: u8 = 4;
const HEURISTIC: u8 = 8;

fn flags(freshness: &Freshness) -> u8 {
    let flag = |set, flag| if set { flag } else { 0 };
    flag(freshness.always_revalidate, ALWAYS_REVALIDATE)
        | flag(freshness.must_revalidate, MUST_REVALIDATE)
        | flag(freshness.authorized, AUTHORIZED)
        | flag(freshness.heuristic, HEURISTIC)
}

fn lists(head: &mut Reader<'_>, count: usize) -> Result<Vec<Box<[HeaderName]>>, DecodeError> {
    if count > MOST_VARY_LISTS {
        return Err(DecodeError::Damaged);
    }
    (0..count)
        .map(|_| {
            let names = head.length()?;
            (0..names).map(|_| head.name()).collect()
        })
        .collect()
}
