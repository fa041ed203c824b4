//! What lies under the key of a session.
//!
//! ```text
//! "tks", version        4 bytes
//! checksum              8 bytes   of all that follows
//! kind                  1 byte    live, moved
//! flags                 1 byte    what of the optional is there
//!
//! of a live session:
//! schema                4 bytes
//! handle               16 bytes
//! born, rotated, authenticated
//!                       8 bytes   each, in microseconds
//! predecessor          32 bytes   if there is one
//! principal             a length of 1 byte or more, and text, if there is one
//! user agent, network   likewise
//! fields                up to the end
//!
//! of a moved session:
//! successor            32 bytes   if there is one
//! sealed token         32 bytes   if there is one
//! ```
//!
//! Numbers are big-endian. The values of the fields are not copied: they are slices of what the
//! storage gave. Decoding is total. The checksum is against accidents: whoever can write to the
//! storage can also write a session.

#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::{
    device::Device,
    fields::{Fields, put_text, take},
    token::TokenDigest,
};
use crate::checksum::checksum;

const MAGIC: [u8; 3] = *b"tks";
const VERSION: u8 = 1;
const CHECKED_FROM: usize = 12;
/// Of a live session, without what is optional.
const FIXED: usize = CHECKED_FROM + 1 + 1 + 4 + 16 + 4 * 8;

const LIVE: u8 = 1;
const MOVED: u8 = 2;

const AUTHENTICATED: u8 = 1;
const PREDECESSOR: u8 = 2;
const PRINCIPAL: u8 = 4;
const USER_AGENT: u8 = 8;
const NETWORK: u8 = 16;

const SUCCESSOR: u8 = 1;
const SEALED: u8 = 2;
const DEAD: u8 = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Live(Live),
    Moved(Moved),
}

/// A session.
///
/// Moments are told by the life that was left then, until the absolute deadline, so that no clock is
/// needed; to the microsecond.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Live {
    /// The application's version of the data.
    pub(crate) schema: u32,
    /// The public name of the session, which survives rotation.
    pub(crate) handle: Uuid,
    /// When it began.
    pub(crate) born: Duration,
    /// When its token was last replaced.
    pub(crate) rotated: Duration,
    /// When its user last proved who he is.
    pub(crate) authenticated: Option<Duration>,
    /// Who that is.
    pub(crate) principal: Option<Box<str>>,
    pub(crate) device: Device,
    /// The id that this one has replaced by a periodic rotation, until this one is first used.
    pub(crate) predecessor: Option<TokenDigest>,
    pub(crate) fields: Fields,
}

/// What tells where a session went.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// By a rotation. The client may not have its new token yet, so it lies here, under a pad.
    Rotated { successor: TokenDigest, sealed: [u8; 32] },
    /// By a rotation, and the new token has been used.
    Retired { successor: TokenDigest },
    /// At a change of privileges: the old id is dead.
    Replaced { successor: Option<TokenDigest> },
}

/// Why the bytes under a key are no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// Written by another version of this crate: left for those who can read it.
    OtherVersion,
    /// Not what was written.
    Damaged,
}

/// Neither who it is nor what he keeps.
impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("schema", &self.schema)
            .field("born", &self.born)
            .field("rotated", &self.rotated)
            .field("authenticated", &self.authenticated)
            .field("has_principal", &self.principal.is_some())
            .field("has_predecessor", &self.predecessor.is_some())
            .field("fields", &self.fields)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rotated { .. } => "Rotated",
            Self::Retired { .. } => "Retired",
            Self::Replaced { .. } => "Replaced",
        })
    }
}

impl Record {
    pub(crate) fn encode(&self) -> Bytes {
        match self {
            Self::Live(live) => live.to_bytes(),
            Self::Moved(moved) => finished(moved.encode()),
        }
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        use DecodeError::{Damaged, OtherVersion};

        match bytes.split_first_chunk() {
            Some((&MAGIC, [VERSION, ..])) => {}
            Some((&MAGIC, [_, ..])) => return Err(OtherVersion),
            _ => return Err(Damaged),
        }
        let mut rest = Rest(&bytes[4..]);
        if u64::from_be_bytes(rest.array()?) != checksum(rest.0) {
            return Err(Damaged);
        }
        match rest.array()? {
            [LIVE, flags] => Live::decode(flags, rest, &bytes).map(Self::Live),
            [MOVED, flags] => Moved::decode(flags, rest).map(Self::Moved),
            _ => Err(OtherVersion),
        }
    }
}

/// The beginning, with room for the checksum.
fn begin(room: usize, kind: u8, flags: [(bool, u8); 5]) -> BytesMut {
    let mut out = BytesMut::with_capacity(room);
    out.put_slice(&MAGIC);
    out.put_u8(VERSION);
    out.put_u64(0);
    out.put_u8(kind);
    out.put_u8(flags.iter().map(|(set, flag)| if *set { *flag } else { 0 }).sum());
    out
}

/// With the checksum, for which [`begin`] has left room.
fn finished(mut out: BytesMut) -> Bytes {
    let checksum = checksum(&out[CHECKED_FROM..]);
    out[4..CHECKED_FROM].copy_from_slice(&checksum.to_be_bytes());
    out.freeze()
}

impl Live {
    /// As [`Record::encode`].
    pub(crate) fn to_bytes(&self) -> Bytes {
        finished(self.encode())
    }

    fn encode(&self) -> BytesMut {
        let texts = [&self.principal, &self.device.user_agent, &self.device.network];
        let room = texts.iter().copied().flatten().map(|text| 10 + text.len()).sum::<usize>();
        let fields = self.fields.as_bytes();
        let mut out = begin(
            FIXED + 32 + room + fields.len(),
            LIVE,
            [
                (self.authenticated.is_some(), AUTHENTICATED),
                (self.predecessor.is_some(), PREDECESSOR),
                (self.principal.is_some(), PRINCIPAL),
                (self.device.user_agent.is_some(), USER_AGENT),
                (self.device.network.is_some(), NETWORK),
            ],
        );
        out.put_u32(self.schema);
        out.put_slice(self.handle.as_bytes());
        let authenticated = self.authenticated.unwrap_or_default();
        for duration in [self.born, self.rotated, authenticated] {
            out.put_u64(duration.as_micros().try_into().unwrap_or(u64::MAX));
        }
        if let Some(predecessor) = &self.predecessor {
            out.put_slice(predecessor.as_bytes());
        }
        for text in texts.into_iter().flatten() {
            put_text(&mut out, text.as_bytes());
        }
        out.put_slice(fields);
        out
    }

    fn decode(flags: u8, mut rest: Rest<'_>, bytes: &Bytes) -> Result<Self, DecodeError> {
        if flags & !(AUTHENTICATED | PREDECESSOR | PRINCIPAL | USER_AGENT | NETWORK) != 0 {
            return Err(DecodeError::OtherVersion);
        }
        let schema = u32::from_be_bytes(rest.array()?);
        let handle = Uuid::from_bytes(rest.array()?);
        let (born, rotated) = (rest.duration()?, rest.duration()?);
        let authenticated = rest.duration()?;
        let authenticated = (flags & AUTHENTICATED != 0).then_some(authenticated);
        let predecessor = rest.digest(flags & PREDECESSOR != 0)?;
        let principal = rest.text(flags & PRINCIPAL != 0)?;
        let user_agent = rest.text(flags & USER_AGENT != 0)?;
        let network = rest.text(flags & NETWORK != 0)?;
        let device = Device { user_agent, network };
        let fields = Fields::from_bytes(bytes.slice_ref(rest.0)).ok_or(DecodeError::Damaged)?;
        Ok(Self {
            schema,
            handle,
            born,
            rotated,
            authenticated,
            principal,
            device,
            predecessor,
            fields,
        })
    }
}

impl Moved {
    fn encode(&self) -> BytesMut {
        let (successor, sealed, is_dead) = match self {
            Self::Rotated { successor, sealed } => (Some(successor), Some(sealed), false),
            Self::Retired { successor } => (Some(successor), None, false),
            Self::Replaced { successor } => (successor.as_ref(), None, true),
        };
        let flags = [
            (successor.is_some(), SUCCESSOR),
            (sealed.is_some(), SEALED),
            (is_dead, DEAD),
            (false, 0),
            (false, 0),
        ];
        let mut out = begin(CHECKED_FROM + 2 + 64, MOVED, flags);
        if let Some(successor) = successor {
            out.put_slice(successor.as_bytes());
        }
        if let Some(sealed) = sealed {
            out.put_slice(sealed);
        }
        out
    }

    fn decode(flags: u8, mut rest: Rest<'_>) -> Result<Self, DecodeError> {
        if flags & !(SUCCESSOR | SEALED | DEAD) != 0 {
            return Err(DecodeError::OtherVersion);
        }
        let successor = rest.digest(flags & SUCCESSOR != 0)?;
        let sealed = if flags & SEALED != 0 { Some(rest.array()?) } else { None };
        match (successor, sealed, flags & DEAD != 0) {
            _ if !rest.0.is_empty() => Err(DecodeError::Damaged),
            (successor, None, true) => Ok(Self::Replaced { successor }),
            (Some(successor), Some(sealed), false) => Ok(Self::Rotated { successor, sealed }),
            (Some(successor), None, false) => Ok(Self::Retired { successor }),
            _ => Err(DecodeError::Damaged),
        }
    }
}

/// What is still to be read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(DecodeError::Damaged)?;
        self.0 = rest;
        Ok(*array)
    }

    #[inline]
    fn duration(&mut self) -> Result<Duration, DecodeError> {
        self.array().map(|micros| Duration::from_micros(u64::from_be_bytes(micros)))
    }

    fn digest(&mut self, is_there: bool) -> Result<Option<TokenDigest>, DecodeError> {
        if is_there {
            self.array().map(|digest| Some(TokenDigest::from_bytes(digest)))
        } else {
            Ok(None)
        }
    }

    fn text(&mut self, is_there: bool) -> Result<Option<Box<str>>, DecodeError> {
        if !is_there {
            return Ok(None);
        }
        let text = take(&mut self.0).and_then(|text| str::from_utf8(text).ok());
        text.map(|text| Some(text.into())).ok_or(DecodeError::Damaged)
    }
}
