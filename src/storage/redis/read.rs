//! A lookup of plain commands in one trip: half of what the script costs.
//!
//! `PING check`, the time, the entry and the record of tags are asked for at once, and what the
//! script would say is worked out here. Commands of others may run in between, so an answer is given
//! only where it is the one of a single instant, and the script is asked otherwise:
//!
//! - *The time comes first.* An entry that is alive by an earlier time and is still read after it was
//!   alive at that time, or was put since; either is an instant at which it was there. One that is
//!   dead by the earlier time is dead when it is read. The time after the entry would be no better:
//!   an entry that was alive when it was read might be dead by it, while the next one, put in
//!   between, is alive.
//! - *The record comes last*, so that it is never older than the entry that it judges: one that was
//!   read before could not know of a purge that was acknowledged before the entry was read.
//! - *A touch is judged by that time too*, by the arithmetic of get.lua. One that is not due does
//!   nothing, nor does one of an entry that is dead, so an answer without it is that of the script
//!   at the same instant; the life in the header and that of the key stay as they were last set,
//!   together. An entry that another put or touched after the time was read has its age, its life
//!   and its touch told as by a clock that is behind by less than the trip: it may fall short of the
//!   slack by as much before it is prolonged, and lives for as long as the answer says. A touch that
//!   is due writes, which only the script does in the instant in which it judges.
//! - *Nothing was invalidated in between*: stamps are never behind the clock, so a last stamp before
//!   the time that was read means that the record is the one of then. Otherwise a fence might be
//!   newer than the value that was read beside it. A new generation has no stamp; it leaves nothing
//!   alive that has a fence, and to a value without one no fence is given here.
//!
//! The fields of the record are those of the tags that the entry had when this process last saw it.
//! If it has others now, the script is asked.
//!
//! The check is for replies that belong to another call: an entry bears the digest of its key, but
//! neither "nothing there" nor the record says whose it is.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::{Weighter, sync::Cache};
use redis::{Cmd, Pipeline, Value};

use super::codec::{self, EXACT, Header};
use crate::storage::{Fence, Get, Lookup, Result, TagDigest};

/// An entry of more tags is left to the script.
const MOST_TAGS: usize = 64;
/// Read at once when the value is not wanted: a header with at least so many tags.
const WINDOW: usize = 16;
/// How many bytes the tags that are remembered may take.
const MEMORY: u64 = 4 << 20;

/// The tags that entries had when they were last seen, by the digests of their keys.
pub(super) struct SeenTags {
    tags: Cache<[u8; 16], Arc<[TagDigest]>, ByWeight>,
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<[u8; 16], Arc<[TagDigest]>> for ByWeight {
    fn weight(&self, _: &[u8; 16], tags: &Arc<[TagDigest]>) -> u64 {
        // With what the cache and the reference count take.
        96 + size_of_val(&**tags) as u64
    }
}

impl SeenTags {
    pub(super) fn new() -> Self {
        Self { tags: Cache::with_weighter(MEMORY as usize / 128, MEMORY, ByWeight) }
    }

    /// Notes the tags with which the entry of this key was seen or put, if there are not too many.
    pub(super) fn note(&self, digest: [u8; 16], tags: &[TagDigest]) {
        if tags.len() > MOST_TAGS {
            self.tags.remove(&digest);
        } else if self.tags.get(&digest).is_none_or(|seen| *seen != *tags) {
            self.tags.insert(digest, tags.into());
        }
    }

    /// Notes that there is no entry, to expect one with the tags of the last or else without any.
    pub(super) fn note_absent(&self, digest: [u8; 16]) {
        if self.tags.get(&digest).is_none() {
            self.tags.insert(digest, Arc::default());
        }
    }

    /// The lookup of this key without the script, if it has a chance.
    pub(super) fn reading(&self, digest: [u8; 16], get: Get, mark: [u8; 8]) -> Option<Reading> {
        // Without slack, a touch is due at every lookup.
        if get.touch.is_some_and(|touch| touch.slack.is_zero()) {
            return None;
        }
        Some(Reading {
            check: codec::new_check(),
            digest,
            get,
            mark,
            tags: self.tags.get(&digest)?,
        })
    }
}

/// One lookup of plain commands.
pub(super) struct Reading {
    check: [u8; 8],
    digest: [u8; 16],
    get: Get,
    mark: [u8; 8],
    /// Those that the record is asked for.
    tags: Arc<[TagDigest]>,
}

impl Reading {
    pub(super) fn commands(&self, clock: &[String], entry: &[u8], record: &[u8]) -> Pipeline {
        let mut commands = Pipeline::with_capacity(4);
        let mut ping = Cmd::with_capacity(2, 12);
        ping.arg("PING").arg(&self.check);
        let mut time = Cmd::with_capacity(clock.len(), 64);
        time.arg(clock);
        let mut read = Cmd::with_capacity(4, 32 + entry.len());
        match self.get.known {
            None => read.arg("GET").arg(entry),
            Some(_) => {
                let last = codec::ENTRY_HEADER + 16 * self.tags.len().max(WINDOW) - 1;
                read.arg("GETRANGE").arg(entry).arg(0).arg(last)
            }
        };
        let count = 6 + self.tags.len();
        let mut fields = Cmd::with_capacity(count, 16 + record.len() + 16 * count);
        fields.arg("HMGET").arg(record).arg("g").arg("l").arg("f").arg("m");
        for tag in &*self.tags {
            fields.arg(tag.as_slice());
        }
        commands.add_command(ping).add_command(time).add_command(read).add_command(fields);
        commands
    }

    /// The answer, or `None` if it takes the script to tell.
    ///
    /// # Errors
    ///
    /// `Corrupt`.
    pub(super) fn judge(&self, reply: Value, epoch: u64) -> Result<Option<Lookup>> {
        let Value::Array(parts) = reply else { return Err(codec::corrupt()) };
        let Ok([check, time, entry, record]) = <[Value; 4]>::try_from(parts) else {
            return Err(codec::corrupt());
        };
        if !matches!(check, Value::BulkString(check) if check == self.check) {
            return Err(codec::corrupt());
        }
        let now = time_of(&time).ok_or_else(codec::corrupt)?;
        let stored = match entry {
            Value::Nil => Bytes::new(),
            Value::BulkString(entry) => Bytes::from(entry),
            _ => return Err(codec::corrupt()),
        };
        let record = Record::of(&record, self.tags.len()).filter(|record| record.last < now);
        let fence = match &record {
            Some(record)
                if self.get.fence && record.generation as u64 == u64::from_be_bytes(self.mark) =>
            {
                Some(Fence::new(record.generation, record.last, epoch))
            }
            _ if self.get.fence => return Ok(None),
            _ => None,
        };
        let absent = Ok(Some(Lookup::new(None, fence)));
        if stored.is_empty() {
            return absent;
        }
        let header = Header::read(&stored, self.digest)?;
        if stored.len() < header.size() {
            return match self.get.known {
                // There are more tags than were asked for.
                Some(_) => Ok(None),
                None => Err(codec::foreign()),
            };
        }
        if now >= header.expires {
            return absent;
        }
        let mut stale = false;
        if header.fenced {
            let Some(record) = record.filter(|record| record.generation == header.generation)
            else {
                return Ok(None);
            };
            let tags = stored[codec::ENTRY_HEADER..header.size()].as_chunks().0;
            let Some((hard, soft)) = record.newest(&self.tags, tags) else { return Ok(None) };
            if !(record.floor..=record.last).contains(&header.stamp) || hard > header.stamp {
                return absent;
            }
            stale = soft > header.stamp;
        } else if self.get.fence {
            return Ok(None);
        }
        if self.get.known.is_some_and(|known| known != header.version) {
            return Ok(None);
        }
        if self.get.touch.is_some_and(|touch| header.is_due(touch, now)) {
            return Ok(None);
        }
        let value = match self.get.known {
            None => stored.slice(header.size()..),
            Some(_) => Bytes::new(),
        };
        let mut entry = header.entry(value, now);
        (entry.stale, entry.unchanged) = (stale, self.get.known.is_some());
        Ok(Some(Lookup::new(Some(entry), fence)))
    }
}

/// What was read of a record of tags.
struct Record<'a> {
    generation: u128,
    last: u64,
    floor: u64,
    stamps: &'a [Value],
}

impl<'a> Record<'a> {
    /// `None` if there is none. What is not as this crate writes it is left to the script as well.
    fn of(fields: &'a Value, tags: usize) -> Option<Self> {
        let Value::Array(fields) = fields else { return None };
        let [Value::BulkString(generation), last, floor, longest, stamps @ ..] = &fields[..] else {
            return None;
        };
        let (last, floor, _longest) = (number(last)?, number(floor)?, number(longest)?);
        let generation = u128::from_be_bytes(generation.as_slice().try_into().ok()?);
        (floor <= last && stamps.len() == tags).then_some(Self { generation, last, floor, stamps })
    }

    /// The newest hard and soft stamp of these tags; `None` if one of them was not asked for.
    fn newest(&self, asked: &[TagDigest], tags: &[TagDigest]) -> Option<(u64, u64)> {
        let (mut hard, mut soft) = (0, 0);
        for (i, tag) in tags.iter().enumerate() {
            // As a rule they are the same.
            let at = match asked.get(i) {
                Some(same) if same == tag => i,
                _ => asked.iter().position(|asked| asked == tag)?,
            };
            let (h, s) = match &self.stamps[at] {
                Value::Nil => (0, 0),
                Value::BulkString(stamps) => stamps_of(stamps),
                _ => return None,
            };
            (hard, soft) = (hard.max(h), soft.max(s));
        }
        Some((hard, soft))
    }
}

/// A stamp that cannot be read is newer than every fence.
fn stamps_of(bytes: &[u8]) -> (u64, u64) {
    let number = |bytes: &[u8]| bytes.try_into().map_or(EXACT, u64::from_be_bytes);
    if bytes.len() == 16 { (number(&bytes[..8]), number(&bytes[8..])) } else { (EXACT, 0) }
}

fn number(value: &Value) -> Option<u64> {
    let Value::BulkString(digits) = value else { return None };
    let plain = digits.iter().all(u8::is_ascii_digit);
    let number = str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()?;
    (number < EXACT).then_some(number)
}

/// Seconds and microseconds.
fn time_of(value: &Value) -> Option<u64> {
    let Value::Array(parts) = value else { return None };
    let [seconds, micros] = &parts[..] else { return None };
    number(seconds)?.checked_mul(1_000_000)?.checked_add(number(micros)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::{ErrorKind, LONGEST_LIFE, Touch, Version};

    const TAGS: [TagDigest; 2] = [[1; 16], [2; 16]];
    const DIGEST: [u8; 16] = [7; 16];
    const CHECK: [u8; 8] = *b"checking";
    const NOW: u64 = 5_000_000;

    fn reading(get: Get) -> Reading {
        Reading { check: CHECK, digest: DIGEST, get, mark: [9; 8], tags: TAGS.into() }
    }

    fn bulk(bytes: impl AsRef<[u8]>) -> Value {
        Value::BulkString(bytes.as_ref().to_vec())
    }

    fn time() -> Value {
        Value::Array(vec![bulk("5"), bulk("0")])
    }

    /// An entry with a fence of this stamp.
    fn stored(stamp: u64, tags: &[TagDigest]) -> Value {
        let mut bytes = b"e\x01\x01".to_vec();
        bytes.extend_from_slice(&DIGEST);
        for number in [42, NOW - 1_000, NOW + 9_000, NOW + 9_000] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&[9; 16]);
        bytes.extend_from_slice(&stamp.to_be_bytes());
        bytes.extend_from_slice(&(tags.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&tags.concat());
        bytes.extend_from_slice(b"value");
        bulk(bytes)
    }

    /// A record whose second tag was invalidated.
    fn record(last: u64, hard: u64, soft: u64) -> Value {
        let stamps = [hard.to_be_bytes(), soft.to_be_bytes()].concat();
        let numbers = [last, 0, 9].map(|number| bulk(number.to_string()));
        let fields = [bulk([9; 16])].into_iter().chain(numbers);
        Value::Array(fields.chain([Value::Nil, bulk(stamps)]).collect())
    }

    fn judge(get: Get, entry: Value, record: Value) -> Option<Lookup> {
        let reply = Value::Array(vec![bulk(CHECK), time(), entry, record]);
        reading(get).judge(reply, 3).unwrap()
    }

    fn is_alive(lookup: Option<Lookup>) -> Option<bool> {
        lookup.map(|lookup| lookup.entry.is_some())
    }

    #[test]
    fn an_entry_is_alive_stale_or_dead_by_the_stamps_of_its_tags() {
        let get = Get::new().with_fence();
        let lookup = judge(get, stored(10, &TAGS), record(10, 10, 10)).unwrap();
        assert_eq!(lookup.fence, Some(Fence::new(u128::from_be_bytes([9; 16]), 10, 3)));
        let entry = lookup.entry.unwrap();
        assert_eq!((&entry.value[..], entry.version.as_u64()), (&b"value"[..], 42));
        assert!(!entry.stale && !entry.unchanged);
        let soft = judge(get, stored(10, &TAGS), record(11, 10, 11)).unwrap();
        assert!(soft.entry.unwrap().stale);
        assert_eq!(is_alive(judge(get, stored(10, &TAGS), record(11, 11, 0))), Some(false));
        let other = judge(get, stored(10, &TAGS[..1]), record(11, 11, 0));
        assert_eq!(is_alive(other), Some(true), "that tag was not invalidated");
        assert_eq!(is_alive(judge(get, stored(12, &TAGS), record(11, 0, 0))), Some(false));
    }

    #[test]
    fn what_is_not_certain_is_left_to_the_script() {
        let get = Get::new();
        let good = || record(10, 0, 0);
        let unknown = [TAGS[0], [3; 16]];
        assert_eq!(judge(get, stored(10, &unknown), good()), None, "another tag");
        assert_eq!(judge(get, stored(10, &[]), Value::Nil), None, "no record");
        assert_eq!(judge(get, stored(10, &[]), record(NOW, 0, 0)), None, "an invalidation of now");
        assert_eq!(judge(get.with_fence(), Value::Nil, record(NOW, 0, 0)), None);
        assert_eq!(judge(get.with_fence(), Value::Nil, Value::Nil), None);
        assert_eq!(is_alive(judge(get, Value::Nil, Value::Nil)), Some(false), "needs no record");
        let known = get.with_known(Version::from_u64(41));
        assert_eq!(judge(known, stored(10, &TAGS), good()), None, "the value is wanted");
        let known = get.with_known(Version::from_u64(42));
        let entry = judge(known, stored(10, &TAGS), good()).unwrap().entry.unwrap();
        assert!(entry.unchanged && entry.value.is_empty());
        let mut other = stored(10, &[]);
        if let Value::BulkString(bytes) = &mut other {
            bytes[51] ^= 1;
        }
        assert_eq!(judge(get, other, good()), None, "another generation");
    }

    /// As [`stored`], with this deadline; it expires 9 ms from now.
    fn ending(deadline: u64) -> Value {
        let Value::BulkString(mut bytes) = stored(10, &TAGS) else { unreachable!() };
        bytes[43..51].copy_from_slice(&deadline.to_be_bytes());
        bulk(bytes)
    }

    #[test]
    fn a_touch_is_left_to_the_script_only_if_it_is_due() {
        let answered = |ttl, slack, entry| {
            let [ttl, slack] = [ttl, slack].map(std::time::Duration::from_micros);
            let get = Get::new().with_fence().with_touch(Touch { ttl, slack });
            is_alive(judge(get, entry, record(11, 0, 11)))
        };
        for (deadline, slack) in [(0, 500), (NOW + 10_000, 500), (NOW + 9_501, 500), (0, 1 << 40)] {
            assert_eq!(answered(9_000 + slack, slack, ending(deadline)), Some(true), "no more");
        }
        assert_eq!(answered(9_501, 500, ending(0)), None);
        assert_eq!(answered(9_501, 500, ending(NOW + 9_501)), None);
        assert_eq!(answered(u64::MAX, 500, ending(NOW + 9_500)), Some(true), "near the deadline");
        assert_eq!(answered(u64::MAX, 500, ending(0)), None);
        assert_eq!(answered(u64::MAX, u64::MAX, ending(0)), Some(true));
        assert_eq!(answered(0, 1, ending(0)), Some(true));
        assert_eq!(answered(u64::MAX, 1, Value::Nil), Some(false));
        let get = Get::new().with_touch(Touch { ttl: LONGEST_LIFE, slack: LONGEST_LIFE / 2 });
        assert_eq!(
            is_alive(judge(get, ending(0), record(11, 11, 0))),
            Some(false),
            "it was purged"
        );
    }

    #[test]
    fn the_reply_to_another_call_is_corrupt() {
        for (check, entry) in [(*b"shifted!", Value::Nil), (CHECK, bulk([1; 100]))] {
            let reply = Value::Array(vec![bulk(check), time(), entry, record(10, 0, 0)]);
            let error = reading(Get::new()).judge(reply, 3).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            Just(Value::Okay),
            any::<i64>().prop_map(Value::Int),
            prop_oneof!["[0-9]{0,20}", "[+-]?[0-9.e]{0,9}", "nan"].prop_map(bulk),
            prop::collection::vec(any::<u8>(), 0..120).prop_map(bulk),
            Just(stored(10, &TAGS)),
        ];
        leaf.prop_recursive(1, 8, 8, |leaf| {
            prop::collection::vec(leaf, 0..8).prop_map(Value::Array)
        })
    }

    proptest! {
        #[test]
        fn any_reply_is_an_answer_or_corrupt(
            parts in prop::collection::vec(value(), 0..6),
            good in any::<[bool; 4]>(),
            cut in 0..120_usize,
            changed in any::<(prop::sample::Index, u8)>(),
            known in prop::option::of(41..43_u64),
            touch in prop::option::of(any::<[u64; 2]>()),
            fence: bool,
        ) {
            let mut entry = stored(10, &TAGS);
            if let Value::BulkString(bytes) = &mut entry {
                let at = changed.0.index(bytes.len());
                bytes[at] = changed.1;
                bytes.truncate(cut.max(19));
            }
            let mut parts = parts;
            let template = [bulk(CHECK), time(), entry, record(10, 0, 0)];
            for (i, part) in template.into_iter().enumerate().filter(|(i, _)| good[*i]) {
                if let Some(place) = parts.get_mut(i) {
                    *place = part;
                }
            }
            let mut get = Get { fence, known: known.map(Version::from_u64), ..Get::new() };
            get.touch = touch.map(|times| {
                let [ttl, slack] = times.map(std::time::Duration::from_micros);
                Touch { ttl, slack }
            });
            if let Err(error) = reading(get).judge(Value::Array(parts), 3) {
                prop_assert_eq!(error.kind(), ErrorKind::Corrupt);
            }
        }
    }
}
