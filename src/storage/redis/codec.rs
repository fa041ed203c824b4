//! The bytes of arguments and replies. Each script's head in `lua/` says the same in words.
//!
//! Decoding is total: whatever else arrives is [`ErrorKind::Corrupt`].

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use redis::Value;

use crate::{
    quota::Algorithm,
    storage::{
        Charge, Entry, Error, ErrorKind, HashKey, Receipt, Result, Spend, TagDigest, Touch,
        Verdict, Version, When, micros,
    },
};

/// What every counter begins with: a letter and the version of the format.
const COUNTER: [u8; 2] = *b"k\x01";

const PEEK: u8 = 0;
const TAKE: u8 = 1;
const FORCE: u8 = 2;
const REFUND: u8 = 3;
const RESET: u8 = 4;

const ALLOWED: u8 = 1;
const NEVER: u8 = 2;
const RECEIPT: u8 = 4;

/// Eight bytes that a reply repeats, so that one that belongs to another call is noticed.
pub(super) fn new_check() -> [u8; 8] {
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| {
        let [a, b, c, d, e, f, g, h, ..] = HashKey::random().digest(&[]);
        AtomicU64::new(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    });
    NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes()
}

pub(super) fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "the reply is not the answer to this call")
}

pub(super) fn foreign() -> Error {
    Error::new(ErrorKind::Corrupt, "what lies under the key is not an entry of this key")
}

/// What the value of a charge's counter begins with; `digest` is that of its key.
pub(super) fn counter_head(charge: &Charge<'_>, digest: [u8; 16]) -> [u8; 11] {
    let mut head = [0; 11];
    head[..2].copy_from_slice(&COUNTER);
    head[2..10].copy_from_slice(&digest[..8]);
    head[10] = match charge.quota.algorithm() {
        Algorithm::SlidingWindow => b's',
        Algorithm::FixedWindow | Algorithm::CalendarDay | Algorithm::CalendarMonth => b'f',
        Algorithm::TokenBucket { .. } => b'b',
        Algorithm::StrictWindow { .. } => b'w',
        Algorithm::SlidingLog => b'l',
    };
    head
}

/// The argument of one charge; `digest` is that of its key.
pub(super) fn charge(charge: &Charge<'_>, digest: [u8; 16]) -> Vec<u8> {
    let quota = &charge.quota;
    let period = quota.period().as_micros() as u64; // at most 366 days
    let (ticked, plain) = (quota.ticks(), (period, 0));
    let (letter, extra, (tick, ticks)) = match quota.algorithm() {
        Algorithm::SlidingWindow => (b's', 0, ticked),
        Algorithm::FixedWindow => (b'f', 0, plain),
        Algorithm::CalendarDay => (b'd', 0, plain),
        Algorithm::CalendarMonth => (b'm', 0, plain),
        Algorithm::TokenBucket { burst } => (b'b', burst, ticked),
        Algorithm::StrictWindow { slots } => {
            (b'w', slots.into(), (period.div_ceil(slots.into()), 0))
        }
        Algorithm::SlidingLog => (b'l', 0, plain),
    };
    let (spend, units, receipt) = match charge.spend {
        Spend::Take(0) | Spend::Force(0) => (PEEK, 0, None),
        Spend::Peek => (PEEK, 1, None),
        Spend::Take(units) => (TAKE, units, None),
        Spend::Force(units) => (FORCE, units, None),
        Spend::Refund { units, receipt } => (REFUND, units.min(receipt.units), Some(receipt)),
        Spend::Reset => (RESET, 0, None),
    };
    let mut bytes = Vec::with_capacity(42 + 32);
    bytes.extend_from_slice(&counter_head(charge, digest));
    bytes.extend_from_slice(&[letter, spend, charge.enforce.into()]);
    for number in [quota.limit(), extra, units] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    for number in [tick, ticks] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    if let Some(receipt) = receipt {
        for number in [receipt.birth, receipt.mark, receipt.position, receipt.returned] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
    }
    bytes
}

/// The verdicts on these charges.
pub(super) fn verdicts(
    reply: Value,
    check: [u8; 8],
    charges: &[Charge<'_>],
) -> Result<Vec<Verdict>> {
    let Value::BulkString(reply) = reply else { return Err(corrupt()) };
    let mut reply = Reader::new(&reply, check)?;
    reply.u64()?; // the server's time, for the eyes of people
    let verdicts =
        charges.iter().map(|charge| verdict(&mut reply, charge)).collect::<Result<Vec<_>>>()?;
    reply.end()?;
    Ok(verdicts)
}

fn verdict(reply: &mut Reader<'_>, charge: &Charge<'_>) -> Result<Verdict> {
    let flags = reply.u8()?;
    let remaining = reply.u32()?;
    let [reset, replenish, retry, birth, mark, position, returned, taken] = reply.u64s()?;
    let (receipt, retry_after) = match (flags, charge.spend) {
        (0, _) => (None, Some(Duration::from_micros(retry))),
        (ALLOWED, _) => (None, Some(Duration::ZERO)),
        (NEVER, _) => (None, None),
        (flags, Spend::Take(units) | Spend::Force(units)) if flags == ALLOWED | RECEIPT => {
            // Of what was forced, a counter that is full takes less.
            let units = u32::try_from(taken).unwrap_or(u32::MAX).min(units);
            let receipt = Receipt { birth, mark, position, returned, units };
            (Some(receipt), Some(Duration::ZERO))
        }
        _ => return Err(corrupt()),
    };
    Ok(Verdict {
        allowed: flags & ALLOWED != 0,
        limit: charge.quota.capacity(),
        remaining,
        reset_after: Duration::from_micros(reset),
        replenish_after: Duration::from_micros(replenish),
        retry_after,
        receipt,
    })
}

/// What stands before the value of an entry, and its length without tags.
const ENTRY: [u8; 2] = *b"e\x01";
pub(super) const ENTRY_HEADER: usize = 77;
/// As in entry.lua.
pub(super) const MOST_TAGS: usize = 4_000;
/// As in prelude.lua: stored numbers from here on are not ours.
pub(super) const EXACT: u64 = 1 << 53;

/// [`When`] as the scripts know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    Always = 0,
    Absent = 1,
    Version = 2,
}

impl Condition {
    pub(super) fn of(when: When) -> (Self, u64) {
        match when {
            When::Always => (Self::Always, 0),
            When::Absent => (Self::Absent, 0),
            When::Version(version) => (Self::Version, version.as_u64()),
        }
    }
}

/// What a script found or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Absent,
    Live,
    Stale,
    Foreign,
    Done,
}

impl Status {
    pub(super) fn read(reply: &mut Reader<'_>) -> Result<Self> {
        Ok(match reply.u8()? {
            0 => Self::Absent,
            1 => Self::Live,
            2 => Self::Stale,
            3 => Self::Foreign,
            4 => Self::Done,
            _ => return Err(corrupt()),
        })
    }
}

/// The head of a reply, and the stored entry if there is one.
pub(super) fn head_and_entry(reply: Value) -> Result<(Vec<u8>, Option<Vec<u8>>)> {
    let Value::Array(parts) = reply else { return Err(corrupt()) };
    let mut parts = parts.into_iter();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(Value::BulkString(head)), None, _) => Ok((head, None)),
        (Some(Value::BulkString(head)), Some(Value::BulkString(entry)), None) => {
            Ok((head, Some(entry)))
        }
        _ => Err(corrupt()),
    }
}

/// The digests of the tags of an entry that a script has sent whole.
pub(super) fn tags(stored: &[u8], digest: [u8; 16]) -> Option<&[TagDigest]> {
    let size = Header::read(stored, digest).ok()?.size();
    Some(stored.get(ENTRY_HEADER..size)?.as_chunks().0)
}

/// The entry of a reply. The script has judged it, and has left out the value of a `known`
/// version; `digest` is that of the key that was asked for.
pub(super) fn entry(
    status: Status,
    stored: Option<Vec<u8>>,
    digest: [u8; 16],
    known: Option<Version>,
    now: u64,
) -> Result<Option<Entry>> {
    let stored = match (status, stored) {
        (Status::Absent, None) => return Ok(None),
        (Status::Foreign, None) => return Err(foreign()),
        (Status::Live | Status::Stale, Some(stored)) => Bytes::from(stored),
        _ => return Err(corrupt()),
    };
    let header = Header::read(&stored, digest)?;
    let unchanged = known == Some(header.version);
    if stored.len() < header.size() {
        return Err(foreign());
    }
    let value = stored.slice(header.size()..);
    if unchanged && !value.is_empty() {
        return Err(corrupt());
    }
    let mut entry = header.entry(value, now);
    (entry.stale, entry.unchanged) = (status == Status::Stale, unchanged);
    Ok(Some(entry))
}

/// What stands before the tags of an entry.
pub(super) struct Header {
    pub(super) fenced: bool,
    pub(super) version: Version,
    pub(super) expires: u64,
    pub(super) generation: u128,
    pub(super) stamp: u64,
    written: u64,
    deadline: u64,
    tags: usize,
}

impl Header {
    /// As `parse` of entry.lua, but that the tags may be cut off. `digest` is that of the key.
    ///
    /// # Errors
    ///
    /// `Corrupt` if these bytes are not an entry of this key.
    pub(super) fn read(stored: &[u8], digest: [u8; 16]) -> Result<Self> {
        let mut bytes = Reader(stored);
        let mut read = || {
            let (magic, flags, owner) = (bytes.bytes::<2>()?, bytes.u8()?, bytes.bytes::<16>()?);
            let [version, written, expires, deadline] = bytes.u64s()?;
            let (generation, stamp) = (u128::from_be_bytes(bytes.bytes()?), bytes.u64()?);
            let tags = usize::from(bytes.u16()?);
            let exact =
                [version, written, expires, deadline, stamp].iter().all(|number| *number < EXACT);
            if magic != ENTRY || owner != digest || flags > 1 || tags > MOST_TAGS || !exact {
                return Err(foreign());
            }
            let (fenced, version) = (flags == 1, Version::from_u64(version));
            Ok(Self { fenced, version, expires, generation, stamp, written, deadline, tags })
        };
        read().map_err(|_: Error| foreign())
    }

    /// How many bytes there are before the value.
    pub(super) fn size(&self) -> usize {
        ENTRY_HEADER + 16 * self.tags
    }

    /// Whether a touch at this time prolongs the life of the entry, as get.lua works it out.
    pub(super) fn is_due(&self, touch: Touch, now: u64) -> bool {
        let mut wanted = now.saturating_add(micros(touch.ttl));
        if self.deadline > 0 {
            wanted = wanted.min(self.deadline);
        }
        wanted > self.expires + micros(touch.slack)
    }

    pub(super) fn entry(&self, value: Bytes, now: u64) -> Entry {
        // After the clock was set back, what was written in the future was written now.
        let since_now = |time: u64| Duration::from_micros(time.saturating_sub(now));
        let age = Duration::from_micros(now.saturating_sub(self.written));
        let mut entry = Entry::new(value, self.version, age, since_now(self.expires));
        entry.life_left = (self.deadline > 0).then(|| since_now(self.deadline));
        entry
    }
}

/// Reads big-endian numbers.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The reply after the check that it must begin with.
    pub(super) fn new(reply: &'a [u8], check: [u8; 8]) -> Result<Self> {
        let mut reader = Self(reply);
        if reader.bytes::<8>()? != check {
            return Err(corrupt());
        }
        Ok(reader)
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or_else(corrupt)?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.bytes()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.bytes()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.bytes()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.bytes()?))
    }

    pub(super) fn u64s<const N: usize>(&mut self) -> Result<[u64; N]> {
        let mut numbers = [0; N];
        for number in &mut numbers {
            *number = self.u64()?;
        }
        Ok(numbers)
    }

    pub(super) fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(corrupt()) }
    }
}
