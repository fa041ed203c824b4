//! What each operation sends, and what it makes of the reply.

use std::{sync::Arc, time::Duration};

use redis::Value;

use super::{
    RedisStorage,
    call::Call,
    codec::{self, Condition, MOST_TAGS, Reader, Status},
    keys::Keys,
    lanes::Class,
};
use crate::storage::{
    AnyStorage, Capabilities, Charge, Error, ErrorKind, Fence, Get, HashKey, Invalidation, Key,
    Lookup, Name, Put, PutOutcome, Result, Storage, TagDigest, Tags, Verdict, Version, When,
    check_charges, check_put, micros,
};

/// Bodies above this would hold up the decisions behind them.
const LARGE: usize = 32 * 1024;
/// Lua's stack is small.
const MOST_CHARGES: usize = 4_000;

#[deny(clippy::missing_trait_methods)]
impl Storage for RedisStorage {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        let mut ticket = self.inner.lanes.enter(Class::Entry).await?;
        let (check, epoch) = (codec::new_check(), ticket.epoch());
        let digest = key.digest(ticket.hash_key());
        let keys = self.entry_keys(key, digest, ticket.hash_key());
        if let Some(reading) = self.inner.seen.reading(digest, get, mark(ticket.hash_key())) {
            let commands = reading.commands(&self.inner.scripts.clock, &keys[0], &keys[1]);
            let (reply, again) = ticket.read(&commands, get.large_value).await?;
            match reading.judge(reply, epoch) {
                Ok(None) => ticket = again,
                Ok(Some(lookup)) => {
                    again.finish();
                    return Ok(lookup);
                }
                Err(error) => {
                    again.finish();
                    return Err(error);
                }
            }
        }
        let (touch, slack) =
            get.touch.map_or((0, 0), |touch| (micros(touch.ttl), micros(touch.slack)));
        let mut args = Vec::with_capacity(65);
        args.extend_from_slice(&check);
        args.extend_from_slice(&digest);
        args.extend_from_slice(&touch.to_be_bytes());
        args.extend_from_slice(&slack.to_be_bytes());
        args.push(get.fence.into());
        args.extend_from_slice(&new_generation(get.fence, ticket.hash_key()));
        args.extend_from_slice(&get.known.map_or(0, Version::as_u64).to_be_bytes());
        let call = Call {
            script: &self.inner.scripts.get,
            keys,
            args: vec![args],
            repeatable: true,
            large: get.large_value,
        };
        let (head, stored) = codec::head_and_entry(ticket.run(&call).await?)?;

        let mut head = Reader::new(&head, check)?;
        let now = head.u64()?;
        let status = Status::read(&mut head)?;
        let expires = head.u64()?;
        let fenced = head.u8()? == 1;
        let fence = Fence::new(u128::from_be_bytes(head.bytes()?), head.u64()?, epoch);
        head.end()?;
        if fenced != get.fence {
            return Err(codec::corrupt());
        }
        match &stored {
            None => self.inner.seen.note_absent(digest),
            Some(stored) => {
                if let Some(tags) = codec::tags(stored, digest) {
                    self.inner.seen.note(digest, tags);
                }
            }
        }
        let mut entry = codec::entry(status, stored, digest, get.known, now)?;
        if let Some(entry) = &mut entry {
            entry.ttl = Duration::from_micros(expires.saturating_sub(now));
        }
        Ok(Lookup::new(entry, get.fence.then_some(fence)))
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        check_put(&put)?;
        if put.tags.len() > MOST_TAGS {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("an entry in Redis has at most {MOST_TAGS} tags"),
            ));
        }
        let ticket = self.inner.lanes.enter(Class::Entry).await?;
        let (check, digest) = (codec::new_check(), key.digest(ticket.hash_key()));
        let (condition, version) = Condition::of(put.when);
        let fence = match put.fence {
            None => 0,
            Some(fence) if fence.epoch() == ticket.epoch() => 1,
            // What the record said on a connection that is gone may have been lost with it.
            Some(_) => 2,
        };
        let lifetime = put.max_lifetime.map_or(0, micros);
        let (generation, stamp) =
            put.fence.map_or((0, 0), |fence| (fence.generation(), fence.stamp()));
        let mut args = Vec::with_capacity(74);
        args.extend_from_slice(&check);
        args.extend_from_slice(&digest);
        args.push(condition as u8);
        for number in [version, micros(put.ttl), lifetime] {
            args.extend_from_slice(&number.to_be_bytes());
        }
        args.push(fence);
        args.extend_from_slice(&generation.to_be_bytes());
        args.extend_from_slice(&stamp.to_be_bytes());
        let tags: Vec<_> =
            put.tags.iter().map(|tag| tag.digest(key.namespace(), ticket.hash_key())).collect();
        let call = Call {
            script: &self.inner.scripts.put,
            keys: self.entry_keys(key, digest, ticket.hash_key()),
            large: put.value.len() > LARGE,
            args: vec![args, tags.concat(), put.value.into()],
            repeatable: false,
        };
        let (head, stored) = codec::head_and_entry(ticket.run(&call).await?)?;

        let mut head = Reader::new(&head, check)?;
        let now = head.u64()?;
        let status = Status::read(&mut head)?;
        let version = head.u64()?;
        head.end()?;
        if status == Status::Done {
            if !matches!(condition, Condition::Version) {
                self.inner.seen.note(digest, &tags);
            }
            return Ok(PutOutcome::Stored(Version::from_u64(version)));
        }
        Ok(PutOutcome::Conflict(codec::entry(status, stored, digest, None, now)?))
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        if when == When::Absent {
            return Ok(false);
        }
        let ticket = self.inner.lanes.enter(Class::Entry).await?;
        let (check, digest) = (codec::new_check(), key.digest(ticket.hash_key()));
        let (condition, version) = Condition::of(when);
        let mut args = Vec::with_capacity(33);
        args.extend_from_slice(&check);
        args.extend_from_slice(&digest);
        args.push(condition as u8);
        args.extend_from_slice(&version.to_be_bytes());
        let call = Call {
            script: &self.inner.scripts.delete,
            keys: self.entry_keys(key, digest, ticket.hash_key()),
            args: vec![args],
            repeatable: false,
            large: false,
        };
        let Value::BulkString(reply) = ticket.run(&call).await? else {
            return Err(codec::corrupt());
        };
        let mut reply = Reader::new(&reply, check)?;
        reply.u64()?; // the server's time
        let status = Status::read(&mut reply)?;
        reply.end()?;
        match status {
            Status::Done => Ok(true),
            Status::Absent => Ok(false),
            Status::Foreign => Err(codec::foreign()),
            Status::Live | Status::Stale => Err(codec::corrupt()),
        }
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        let ticket = self.inner.lanes.enter(Class::Entry).await?;
        let check = codec::new_check();
        let (how, tags) = match (tags, how) {
            (Tags::All, _) => (2, &[][..]),
            (Tags::Any(tags), Invalidation::Hard) => (0, tags),
            (Tags::Any(tags), Invalidation::Soft) => (1, tags),
        };
        let digests: Vec<_> =
            tags.iter().map(|tag| tag.digest(namespace, ticket.hash_key())).collect();
        let mut args = Vec::with_capacity(25);
        args.extend_from_slice(&check);
        args.push(how);
        args.extend_from_slice(&new_generation(true, ticket.hash_key()));
        let keys = Keys { prefix: &self.inner.prefix, hash_key: ticket.hash_key() };
        let call = Call {
            script: &self.inner.scripts.invalidate,
            keys: vec![keys.record(namespace)],
            large: digests.len() * size_of::<TagDigest>() > LARGE,
            args: vec![args, digests.concat()],
            repeatable: true,
        };
        let Value::BulkString(reply) = ticket.run(&call).await? else {
            return Err(codec::corrupt());
        };
        let mut reply = Reader::new(&reply, check)?;
        reply.u64()?; // the server's time
        reply.end()
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        if charges.len() > MOST_CHARGES {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("a call to Redis has at most {MOST_CHARGES} charges"),
            ));
        }
        check_charges(charges)?;
        if charges.is_empty() {
            return Ok(Vec::new());
        }
        let ticket = self.inner.lanes.enter(Class::Decision).await?;
        let check = codec::new_check();
        let keys = Keys { prefix: &self.inner.prefix, hash_key: ticket.hash_key() };
        let mut args = Vec::with_capacity(1 + charges.len());
        args.push(check.to_vec());
        args.extend(
            charges.iter().map(|charge| codec::charge(charge, charge.key.digest(keys.hash_key))),
        );
        let call = Call {
            script: &self.inner.scripts.acquire,
            keys: charges.iter().map(|charge| keys.counter(charge.key)).collect(),
            args,
            repeatable: charges.iter().all(|charge| !charge.spend.changes()),
            large: false,
        };
        codec::verdicts(ticket.run(&call).await?, check, charges)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new().with_atomic_across_identities()
    }

    fn erase(self) -> AnyStorage {
        // Handles made apart of one storage learn of each other's refunds and resets.
        let shared = Arc::clone(&self.inner.shared);
        AnyStorage::with_shared(self, shared)
    }
}

impl RedisStorage {
    fn entry_keys(&self, key: &Key, digest: [u8; 16], hash_key: &HashKey) -> Vec<Vec<u8>> {
        let keys = Keys { prefix: &self.inner.prefix, hash_key };
        vec![keys.entry(key, digest), keys.record(key.namespace())]
    }
}

/// The name of a record, should one have to be made. Drawn here: the randomness of Lua starts from
/// the same seed after every restart.
fn new_generation(wanted: bool, hash_key: &HashKey) -> [u8; 16] {
    if !wanted {
        return [0; 16];
    }
    let mut generation = HashKey::random().digest(&[]);
    generation[8..].copy_from_slice(&mark(hash_key));
    generation
}

/// What a generation tells of the secret by which its tags are named.
fn mark(hash_key: &HashKey) -> [u8; 8] {
    *hash_key.digest(&[b"generation"]).first_chunk().expect("sixteen bytes")
}

#[cfg(test)]
mod tests;
