//! What things are called in Redis.
//!
//! | what | key |
//! |---|---|
//! | counter | `prefix:namespace:{identity}:detail` |
//! | entry | `prefix:namespace:{e0}:key` |
//! | record of tags | `prefix:namespace:{e0}:tags` |
//!
//! Identity and key are 32 hexadecimal digits of a keyed hash: nothing that a client sent stands in
//! Redis in the clear. The braces are hash tags: in a cluster all counters of an identity lie in
//! one slot, and so do the entries of one shard with their record. A standalone server has one
//! shard, `e0`.

use crate::storage::{HashKey, Key, Name};

const SHARD: &[u8] = b"e0";

/// The names of one storage.
pub(super) struct Keys<'a> {
    pub(super) prefix: &'a Name,
    pub(super) hash_key: &'a HashKey,
}

impl Keys<'_> {
    pub(super) fn counter(&self, key: &Key) -> Vec<u8> {
        let identity =
            self.hash_key.digest(&[key.namespace().as_str().as_bytes(), key.identity().as_bytes()]);
        self.name(key.namespace(), &hex(identity), key.detail().as_str().as_bytes())
    }

    /// The digest is that of the key.
    pub(super) fn entry(&self, key: &Key, digest: [u8; 16]) -> Vec<u8> {
        self.name(key.namespace(), SHARD, &hex(digest))
    }

    pub(super) fn record(&self, namespace: &Name) -> Vec<u8> {
        self.name(namespace, SHARD, b"tags")
    }

    fn name(&self, namespace: &Name, slot: &[u8], last: &[u8]) -> Vec<u8> {
        let (prefix, namespace) = (self.prefix.as_str().as_bytes(), namespace.as_str().as_bytes());
        [prefix, b":", namespace, b":{", slot, b"}:", last].concat()
    }
}

fn hex(digest: [u8; 16]) -> [u8; 32] {
    let mut digits = [0; 32];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(digest) {
        pair.copy_from_slice(&[
            b"0123456789abcdef"[usize::from(byte >> 4)],
            b"0123456789abcdef"[usize::from(byte & 15)],
        ]);
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Identity;

    #[test]
    fn counters_of_one_identity_share_a_hash_tag_and_no_name_shows_it() {
        let (prefix, hash_key) = (Name::new("tk"), HashKey::derive(b"secret"));
        let keys = Keys { prefix: &prefix, hash_key: &hash_key };
        let counter = |detail: &str, identity: &str| {
            let key = Key::new(&Name::new("api"), &Name::new(detail), Identity::new(identity));
            String::from_utf8(keys.counter(&key)).unwrap()
        };
        let (a, b, other) =
            (counter("s60", "alice@x"), counter("b1", "alice@x"), counter("s60", "bob@x"));
        let tag = |name: &str| name[name.find('{').unwrap()..=name.find('}').unwrap()].to_owned();
        assert_eq!(tag(&a), tag(&b));
        assert_ne!(tag(&a), tag(&other));
        assert_eq!(a.replace(&tag(&a), "{}"), "tk:api:{}:s60");
        assert_eq!(tag(&a).len(), 34);
    }

    #[test]
    fn an_entry_lies_in_the_slot_of_its_record() {
        let (prefix, hash_key) = (Name::new("tk"), HashKey::derive(b"secret"));
        let keys = Keys { prefix: &prefix, hash_key: &hash_key };
        let key = Key::new(&Name::new("cache"), &Name::new("page"), Identity::new("/"));
        let entry = String::from_utf8(keys.entry(&key, [0xa7; 16])).unwrap();
        assert_eq!(entry, format!("tk:cache:{{e0}}:{}", "a7".repeat(16)));
        assert_eq!(keys.record(key.namespace()), b"tk:cache:{e0}:tags");
    }
}
