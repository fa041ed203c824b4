//! What lies under an idempotency key.
//!
//! ```text
//! token of the owner       16 bytes
//! "tki", version            4 bytes
//! checksum                  8 bytes   of the token, and of the rest of the head
//! length of the head        4 bytes   up to the body
//! state                     1 byte    pending, done, sealed, unknown
//! key                      32 bytes   its digest
//! fingerprint              32 bytes
//! attempt                   4 bytes
//! lease                     8 bytes   in microseconds
//! phase                     1 byte    none if done or sealed
//! length of the label       2 bytes
//! label
//!
//! if done:
//! status                    2 bytes
//! coding of the body        1 byte
//! number of fields          4 bytes
//! length of the body        8 bytes   as it lies here
//! length of the body        8 bytes   as it is served
//! fields
//! body
//!
//! if sealed:
//! status                    2 bytes
//! reason                    1 byte
//! whether there is a location
//!                           1 byte
//! location                  a length of 1 byte or more, and its bytes
//! ```
//!
//! Numbers are big-endian. The token comes first, for that is where a lease looks for it. The body
//! and the values of the fields are not copied: they are slices of what the storage gave. Decoding
//! is total.
//!
//! The checksum is of the head alone. It is against accidents: whoever can write to the storage can
//! also write a response.

#[cfg(test)]
mod tests;

use std::{borrow::Cow, fmt, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::fingerprint::Fingerprint;
pub(super) use crate::envelope::{DecodeError, body::Compression};
use crate::{
    checksum::checksum,
    envelope::{self, Fixed, Reader},
    lease::Token,
};

const TOKEN: usize = 16;
const MAGIC: [u8; 3] = *b"tki";
const VERSION: u8 = 1;
const CHECKSUM: usize = TOKEN + 4;
const CHECKED_FROM: usize = CHECKSUM + 8;
/// Up to the label.
const FIXED: usize = CHECKED_FROM + 4 + 1 + 32 + 32 + 4 + 8 + 1 + 2;
/// What a response has before its fields.
const FIXED_OF_RESPONSE: usize = 2 + 1 + 4 + 8 + 8;
/// What a sealed one has before its location.
const FIXED_OF_SEALED: usize = 2 + 1 + 1;

const LONGEST_LABEL: usize = 256;

const PENDING: u8 = 1;
const DONE: u8 = 2;
const SEALED: u8 = 3;
const UNKNOWN: u8 = 4;

const NO_PHASE: u8 = 0;

/// What is known of one key.
#[derive(Clone, PartialEq)]
pub(super) struct Record {
    /// Of the owner that wrote it, drawn at random for each attempt.
    pub(super) token: Token,
    pub(super) fingerprint: Fingerprint,
    /// 1 for the first.
    pub(super) attempt: u32,
    /// For how long the owner's silence means nothing; kept to the microsecond.
    pub(super) lease: Duration,
    /// What operators see of the request, such as `POST /api/payments`; the first 256 bytes are kept.
    pub(super) label: Box<str>,
    pub(super) state: State,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    /// The handler is at it, as long as its owner gives signs of life.
    Pending(Phase),
    Done(StoredResponse),
    /// Executed, but the response is not there to be given again.
    Sealed(Sealed),
    /// The owner has vanished, and nobody knows how far the handler came.
    Unknown(Phase),
}

impl State {
    /// How far the handler has come, if that is not over.
    pub(super) fn phase(&self) -> Option<Phase> {
        match self {
            Self::Pending(phase) | Self::Unknown(phase) => Some(*phase),
            Self::Done(_) | Self::Sealed(_) => None,
        }
    }
}

/// Whether the handler has passed its commit point, if the policy says that it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The policy says nothing of a commit point.
    Undeclared,
    BeforeCommit,
    AfterCommit,
    /// Not the handler but the recovery is at it.
    Recovering,
}

#[derive(Clone, PartialEq)]
pub(super) struct StoredResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

#[derive(Clone, PartialEq)]
pub(super) struct Sealed {
    pub(super) status: StatusCode,
    pub(super) location: Option<HeaderValue>,
    pub(super) reason: SealReason,
}

/// Why the response of a request that was executed is not kept.
///
/// The key stays used: the request is not executed again, and who repeats it is told the status that
/// it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SealReason {
    /// Its body is larger than the policy allows.
    TooLarge,
    /// Its body is a stream that is not to be held back.
    Streaming,
    /// Its body broke off.
    Failed,
    /// It has trailers, which cannot be given again.
    Trailers,
    /// The handler asked for it.
    ByHandler,
    /// The scope has as much stored as it may have.
    OverQuota,
    /// An operator said so.
    ByOperator,
}

impl SealReason {
    /// As one word, for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::Streaming => "streaming",
            Self::Failed => "failed",
            Self::Trailers => "trailers",
            Self::ByHandler => "by-handler",
            Self::OverQuota => "over-quota",
            Self::ByOperator => "by-operator",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::TooLarge => 1,
            Self::Streaming => 2,
            Self::Failed => 3,
            Self::Trailers => 4,
            Self::ByHandler => 5,
            Self::OverQuota => 6,
            Self::ByOperator => 7,
        }
    }

    const fn from_code(code: u8) -> Result<Self, DecodeError> {
        Ok(match code {
            1 => Self::TooLarge,
            2 => Self::Streaming,
            3 => Self::Failed,
            4 => Self::Trailers,
            5 => Self::ByHandler,
            6 => Self::OverQuota,
            7 => Self::ByOperator,
            // One that a later release has added.
            _ => return Err(DecodeError::OtherVersion),
        })
    }
}

impl fmt::Display for SealReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Phase {
    const fn code(self) -> u8 {
        match self {
            Self::Undeclared => 1,
            Self::BeforeCommit => 2,
            Self::AfterCommit => 3,
            Self::Recovering => 4,
        }
    }

    const fn from_code(code: u8) -> Result<Self, DecodeError> {
        Ok(match code {
            1 => Self::Undeclared,
            2 => Self::BeforeCommit,
            3 => Self::AfterCommit,
            4 => Self::Recovering,
            NO_PHASE => return Err(DecodeError::Damaged),
            _ => return Err(DecodeError::OtherVersion),
        })
    }
}

/// Neither whose it is nor for what: a path may hold a secret.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("attempt", &self.attempt)
            .field("lease", &self.lease)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for StoredResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredResponse")
            .field("status", &self.status)
            .field("body", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed")
            .field("status", &self.status)
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

/// The bytes of the record of this key.
pub(super) fn encode(record: &Record, key: &[u8; 32], compression: Option<Compression>) -> Bytes {
    let label = shortened(&record.label);
    let (state, phase) = match &record.state {
        State::Pending(phase) => (PENDING, phase.code()),
        State::Done(_) => (DONE, NO_PHASE),
        State::Sealed(_) => (SEALED, NO_PHASE),
        State::Unknown(phase) => (UNKNOWN, phase.code()),
    };
    let (coding, payload) = match &record.state {
        State::Done(response) => envelope::body::encode(&response.body, compression),
        _ => (0, Cow::Borrowed(&[][..])),
    };
    let room = match &record.state {
        // Exactly, for otherwise the bytes were allocated again when they are frozen.
        State::Pending(_) | State::Unknown(_) => 0,
        State::Done(response) => FIXED_OF_RESPONSE + envelope::fields_room(&response.headers),
        State::Sealed(Sealed { location, .. }) => {
            FIXED_OF_SEALED + location.as_ref().map_or(0, |location| 8 + location.len())
        }
    };

    let mut out = BytesMut::with_capacity(FIXED + label.len() + room + payload.len());
    out.put_slice(&record.token);
    out.put_slice(&MAGIC);
    out.put_u8(VERSION);
    out.put_u64(0);
    out.put_u32(0);
    out.put_u8(state);
    out.put_slice(key);
    out.put_slice(&record.fingerprint.0);
    out.put_u32(record.attempt);
    out.put_u64(record.lease.as_micros().try_into().unwrap_or(u64::MAX));
    out.put_u8(phase);
    out.put_u16(label.len() as u16);
    out.put_slice(label.as_bytes());
    match &record.state {
        State::Pending(_) | State::Unknown(_) => {}
        State::Done(StoredResponse { status, headers, body }) => {
            out.put_u16(status.as_u16());
            out.put_u8(coding);
            out.put_u32(headers.len() as u32);
            out.put_u64(payload.len() as u64);
            out.put_u64(body.len() as u64);
            envelope::put_fields(&mut out, headers);
        }
        State::Sealed(Sealed { status, location, reason }) => {
            out.put_u16(status.as_u16());
            out.put_slice(&[reason.code(), location.is_some().into()]);
            if let Some(location) = location {
                envelope::put_value(&mut out, location);
            }
        }
    }
    let head = out.len() as u32;
    out[CHECKED_FROM..][..4].copy_from_slice(&head.to_be_bytes());
    let checksum = checksum_of(&out);
    out[CHECKSUM..CHECKED_FROM].copy_from_slice(&checksum.to_be_bytes());
    out.put_slice(&payload);
    out.freeze()
}

/// As much of the label as is kept.
fn shortened(label: &str) -> &str {
    let mut end = label.len().min(LONGEST_LABEL);
    while !label.is_char_boundary(end) {
        end -= 1;
    }
    &label[..end]
}

/// Of all of a head but the checksum itself, and what is compared anyway.
fn checksum_of(head: &[u8]) -> u64 {
    checksum(&head[..TOKEN]) ^ checksum(&head[CHECKED_FROM..])
}

/// What the bytes say of this key. A body that is longer than `max_body` is not made.
pub(super) fn decode(value: Bytes, key: &[u8; 32], max_body: usize) -> Result<Record, DecodeError> {
    use DecodeError::{Damaged, OtherKey, OtherVersion};

    let (token, rest) = value.split_first_chunk::<TOKEN>().ok_or(Damaged)?;
    match rest.split_first_chunk() {
        Some((&MAGIC, [VERSION, ..])) => {}
        Some((&MAGIC, [_, ..])) => return Err(OtherVersion),
        _ => return Err(Damaged),
    }
    let mut fixed = Fixed(value.get(CHECKSUM..FIXED).ok_or(Damaged)?);
    let (checksum, head_length) = (fixed.u64()?, fixed.u32()? as usize);
    if head_length < FIXED || head_length > value.len() {
        return Err(Damaged);
    }
    if checksum != checksum_of(&value[..head_length]) {
        return Err(Damaged);
    }
    let [state] = fixed.array()?;
    if fixed.array()? != *key {
        return Err(OtherKey);
    }
    let fingerprint = Fingerprint(fixed.array()?);
    let attempt = fixed.u32()?;
    let lease = Duration::from_micros(fixed.u64()?);
    let [phase] = fixed.array()?;
    let mut head = Reader::new(&value, FIXED, head_length);
    let label = head.bytes(fixed.u16()?.into())?;
    let label = str::from_utf8(label).map_err(|_| Damaged)?.into();

    let has_body = state == DONE;
    let state = match (state, phase) {
        (PENDING, phase) => State::Pending(Phase::from_code(phase)?),
        (UNKNOWN, phase) => State::Unknown(Phase::from_code(phase)?),
        (DONE, NO_PHASE) => State::Done(response(&mut head, value.slice(head_length..), max_body)?),
        (SEALED, NO_PHASE) => State::Sealed(sealed(&mut head)?),
        (DONE | SEALED, _) => return Err(Damaged),
        _ => return Err(OtherVersion),
    };
    if !head.is_at_end() || !has_body && head_length < value.len() {
        return Err(Damaged);
    }
    Ok(Record { token: *token, fingerprint, attempt, lease, label, state })
}

fn response(
    head: &mut Reader<'_>,
    stored: Bytes,
    max_body: usize,
) -> Result<StoredResponse, DecodeError> {
    let mut fixed = Fixed(head.bytes(FIXED_OF_RESPONSE)?);
    let status = StatusCode::from_u16(fixed.u16()?).map_err(|_| DecodeError::Damaged)?;
    let ([coding], count) = (fixed.array()?, fixed.u32()?);
    let (stored_length, length) = (fixed.u64()?, fixed.u64()?);
    if stored_length != stored.len() as u64 {
        return Err(DecodeError::Damaged);
    }
    let headers = head.fields(count as usize)?;
    let body = envelope::body::decode(coding, stored, length, max_body)?;
    Ok(StoredResponse { status, headers, body })
}

fn sealed(head: &mut Reader<'_>) -> Result<Sealed, DecodeError> {
    let mut fixed = Fixed(head.bytes(FIXED_OF_SEALED)?);
    let status = StatusCode::from_u16(fixed.u16()?).map_err(|_| DecodeError::Damaged)?;
    let [reason, has_location] = fixed.array()?;
    let location = match has_location {
        0 => None,
        1 => Some(head.value()?),
        _ => return Err(DecodeError::Damaged),
    };
    Ok(Sealed { status, location, reason: SealReason::from_code(reason)? })
}
