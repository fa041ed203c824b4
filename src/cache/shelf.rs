//! Where responses and values are kept: the storage, and what this process remembers of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName};
use quick_cache::sync::Cache;
use tokio::time::Instant;

use super::{
    control::{self, Freshness, Reuse, Wishes},
    entry::{self, DecodeError, Stored, StoredResponse, StoredValue},
    key::CacheKey,
    near::{Known, Near, Trust},
};
use crate::storage::{
    AnyStorage, Fence, Get, Identity, Key, Lookup, Name, Put, PutOutcome, Result, Storage, Tag,
};

/// For how many targets it is remembered by which fields their responses vary.
const VARYING: usize = 16_384;
/// From how many bytes on a value is asked for as a large one, and for how many keys it is remembered
/// that theirs is.
const LARGE: usize = 32 << 10;
const REMEMBERED_LARGE: usize = 16_384;
/// How long the entry that lists the fields lives at least.
const SPECS_LIFE: Duration = Duration::from_secs(86_400);
/// By how many lists of fields the responses of one target may vary.
const MOST_SPECS: usize = 8;

pub(super) struct Shelf {
    pub(super) storage: AnyStorage,
    pub(super) namespace: Name,
    detail: Name,
    pub(super) near: Option<Near>,
    varying: Cache<CacheKey, Specs>,
    /// Whether there ever was something in it: where nothing varies, no hit has to look.
    varies: AtomicBool,
    /// Whose values were large when this process met them last.
    large: Cache<CacheKey, ()>,
    compress: Option<entry::Compression>,
}

/// The lists of fields by which the responses of one target vary, newest first.
type Specs = Arc<[Box<[HeaderName]>]>;

/// An entry that is alive.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) stored: Arc<Stored>,
    /// How long it had been in the storage at `at`.
    resident: Duration,
    at: Instant,
    /// Invalidated softly.
    pub(super) stale: bool,
}

impl Found {
    /// What was made just now.
    pub(super) fn new(stored: Arc<Stored>) -> Self {
        Self { stored, resident: Duration::ZERO, at: Instant::now(), stale: false }
    }

    /// How long it has been in the storage.
    pub(super) fn resident(&self) -> Duration {
        self.resident + self.at.elapsed()
    }

    pub(super) fn response(&self) -> Option<&StoredResponse> {
        match &*self.stored {
            Stored::Response(response) => Some(response),
            _ => None,
        }
    }

    /// Whole seconds that a stale response is past its end, as a negative time to live.
    pub(super) fn stale_ttl(&self) -> Option<i64> {
        Some(self.response()?.freshness.ttl_seconds(self.resident()).min(0))
    }

    pub(super) fn value(&self) -> Option<&StoredValue> {
        match &*self.stored {
            Stored::Value(value) => Some(value),
            _ => None,
        }
    }

    fn freshness(&self) -> Option<&Freshness> {
        match &*self.stored {
            Stored::Response(response) => Some(&response.freshness),
            Stored::Value(value) => Some(&value.freshness),
            Stored::Variants(_) => None,
        }
    }

    /// Whether it can be given to anybody as it is.
    fn is_fresh(&self) -> bool {
        let Some(freshness) = self.freshness() else { return true };
        matches!(
            freshness.reuse(self.resident(), self.stale, &Wishes::default()),
            Reuse::Fresh { .. }
        )
    }
}

/// What a near cache counts an entry for.
pub(super) fn weight(stored: &Stored) -> usize {
    const FIELD: usize = 64;
    match stored {
        Stored::Response(response) => {
            let fields = response.headers.iter().map(|(_, value)| FIELD + value.len());
            256 + response.body.len() + response.tags.encoded().len() + fields.sum::<usize>()
        }
        Stored::Variants(specs) => 128 + specs.iter().map(|spec| FIELD * spec.len()).sum::<usize>(),
        Stored::Value(value) => 256 + value.bytes.len() + value.tags.encoded().len(),
    }
}

/// What a lookup has found out.
pub(super) struct Looked {
    pub(super) found: Option<Found>,
    /// Before anything is made anew: whatever is invalidated from here on ends it.
    pub(super) fence: Option<Fence>,
    /// The key of the entry, or of the one that is missing.
    pub(super) key: CacheKey,
}

impl Looked {
    /// How long what was found has been in the storage.
    pub(super) fn resident(&self) -> Duration {
        self.found.as_ref().map(Found::resident).unwrap_or_default()
    }

    /// The same, for who has just looked: the clock is slow to ask.
    pub(super) fn resident_when_read(&self) -> Duration {
        self.found.as_ref().map(|found| found.resident).unwrap_or_default()
    }
}

struct Fetched {
    found: Option<Found>,
    fence: Option<Fence>,
}

impl Shelf {
    pub(super) fn new(
        storage: AnyStorage,
        namespace: Name,
        near: Option<Near>,
        compress: Option<entry::Compression>,
    ) -> Self {
        Self {
            storage,
            namespace,
            detail: Name::new("r"),
            near,
            varying: Cache::new(VARYING),
            varies: AtomicBool::new(false),
            large: Cache::new(REMEMBERED_LARGE),
            compress,
        }
    }

    fn storage_key(&self, key: &CacheKey) -> Key {
        Key::new(&self.namespace, &self.detail, key.identity().clone())
    }

    fn known_specs(&self, primary: &CacheKey) -> Option<Specs> {
        // A target that another thread is adding is not known yet, as if this had come first.
        self.varies.load(Relaxed).then(|| self.varying.get(primary)).flatten()
    }

    fn remember_specs(&self, primary: &CacheKey, specs: Specs) {
        self.varying.insert(primary.clone(), specs);
        self.varies.store(true, Relaxed);
    }

    /// Finds the response to a request, whatever it varies by.
    ///
    /// One trip, if this process has met the target before; two for the first response that varies
    /// and for a variant that is not there.
    pub(super) async fn look_up(
        self: &Arc<Self>,
        primary: &CacheKey,
        request: &HeaderMap,
        max_body: usize,
    ) -> Result<Looked> {
        let remembered = self.known_specs(primary);
        let mut tried = None;
        if let Some(specs) = &remembered {
            let looked = self.look_up_variant(primary, specs, request, max_body).await?;
            if looked.found.is_some() {
                return Ok(looked);
            }
            tried = Some(looked);
        }
        let fetched = self.fetch(primary, max_body).await?;
        let specs = match fetched.found.as_ref().map(|found| &*found.stored) {
            Some(Stored::Variants(specs)) => Specs::from(specs.as_slice()),
            _ => {
                if remembered.is_some() {
                    self.varying.remove(primary);
                }
                let Fetched { found, fence } = fetched;
                return Ok(Looked { found, fence, key: primary.clone() });
            }
        };
        if let Some(looked) = tried.filter(|_| remembered.as_ref() == Some(&specs)) {
            return Ok(looked);
        }
        self.remember_specs(primary, Arc::clone(&specs));
        self.look_up_variant(primary, &specs, request, max_body).await
    }

    async fn look_up_variant(
        self: &Arc<Self>,
        primary: &CacheKey,
        specs: &Specs,
        request: &HeaderMap,
        max_body: usize,
    ) -> Result<Looked> {
        let mut missing: Option<Looked> = None;
        for spec in specs.iter() {
            let key = variant(primary, spec, request);
            let Fetched { found, fence } = self.fetch(&key, max_body).await?;
            let looked = Looked { found, fence, key };
            if looked.found.is_some() {
                return Ok(looked);
            }
            // The newest list names the key; the latest lookup has the fence.
            match &mut missing {
                Some(first) => first.fence = looked.fence,
                None => missing = Some(looked),
            }
        }
        Ok(missing.unwrap_or_else(|| Looked { found: None, fence: None, key: primary.clone() }))
    }

    /// Finds a value.
    pub(super) async fn look_up_value(
        self: &Arc<Self>,
        key: &CacheKey,
        max_body: usize,
    ) -> Result<Looked> {
        let Fetched { found, fence } = self.fetch(key, max_body).await?;
        Ok(Looked { found, fence, key: key.clone() })
    }

    /// What is large is asked for out of the way of what is not, which is slower.
    async fn get(&self, key: &CacheKey, get: Get) -> Result<Lookup> {
        if let Some(lookup) =
            self.storage.get_now((&self.namespace, &self.detail, key.identity()), get)
        {
            return Ok(lookup);
        }
        // Who knows the value is mostly told that it is still the same.
        let large = get.known.is_none() && self.large.get(key).is_some();
        let get = if large { get.with_large_value() } else { get };
        let lookup = self.storage.get(&self.storage_key(key), get).await?;
        if let Some(entry) = lookup.entry.as_ref().filter(|entry| !entry.unchanged) {
            self.note_size(key, entry.value.len());
        }
        Ok(lookup)
    }

    fn note_size(&self, key: &CacheKey, bytes: usize) {
        if bytes >= LARGE {
            self.large.insert(key.clone(), ());
        } else if self.large.get(key).is_some() {
            self.large.remove(key);
        }
    }

    async fn fetch(self: &Arc<Self>, key: &CacheKey, max_body: usize) -> Result<Fetched> {
        let Some(near) = &self.near else {
            let lookup = self.get(key, wanted()).await?;
            let at = Instant::now();
            let found = lookup.entry.and_then(|entry| {
                Some(Found {
                    stored: Arc::new(decode(entry.value, key, max_body)?),
                    resident: entry.age,
                    at,
                    stale: entry.stale,
                })
            });
            return Ok(Fetched { found, fence: lookup.fence });
        };
        let sent = Instant::now();
        let known = near.get(key);
        if let Some(known) = &known
            && known.found.is_fresh()
            && let Trust::Alive { ask } = near.trust(known, sent)
        {
            if ask {
                // Owed to nobody: the next lookup asks as well.
                tokio::spawn(Arc::clone(self).ask_record());
            }
            return Ok(Fetched { found: Some(known.found.clone()), fence: Some(known.fence) });
        }
        let mut get = wanted();
        if let Some(known) = &known {
            get = get.with_known(known.version);
        }
        let mut lookup = self.get(key, get).await?;
        let is_another = |known: &Known| lookup.fence.is_none_or(|fence| !known.is_of(fence));
        let is_unchanged = lookup.entry.as_ref().is_some_and(|entry| entry.unchanged);
        if is_unchanged && known.as_ref().is_none_or(is_another) {
            lookup = self.get(key, wanted()).await?;
        }
        if let Some(fence) = lookup.fence {
            near.observe(fence, sent);
        }
        let (at, fence) = (Instant::now(), lookup.fence);
        let found = lookup.entry.and_then(|entry| {
            let stored = match &known {
                Some(known) if entry.unchanged => known.found.stored.clone(),
                _ => Arc::new(decode(entry.value, key, max_body)?),
            };
            let found = Found { stored, resident: entry.age, at, stale: entry.stale };
            if let Some(fence) = fence {
                let known = Known { found: found.clone(), version: entry.version, fence };
                near.insert(key, known);
            }
            Some(found)
        });
        if found.is_none() && known.is_some() {
            near.remove(key);
        }
        Ok(Fetched { found, fence })
    }

    /// Sees whether anything was invalidated: only the fence of this lookup matters.
    async fn ask_record(self: Arc<Self>) {
        let Some(near) = &self.near else { return };
        let key = Key::new(&self.namespace, &Name::new("record"), Identity::global());
        let sent = Instant::now();
        if let Ok(lookup) = self.storage.get(&key, Get::new().with_fence()).await
            && let Some(fence) = lookup.fence
        {
            near.observe(fence, sent);
        }
        near.asked();
    }

    /// Stores something that was made after the fence, unless it was invalidated since.
    pub(super) async fn put(
        &self,
        key: &CacheKey,
        stored: &Arc<Stored>,
        keep: Duration,
        fence: Fence,
        tags: &[Tag],
    ) -> Result<bool> {
        let value = entry::encode(stored, key, self.compress);
        if !self.storage.answers_at_once() {
            self.note_size(key, value.len());
        }
        let put = Put::new(value, keep)
            .with_max_lifetime(keep)
            .with_tags(tags)
            .with_fence(fence)
            .with_eviction();
        let outcome = self.storage.put(&self.storage_key(key), put).await?;
        let PutOutcome::Stored(version) = outcome else { return Ok(false) };
        if let Some(near) = &self.near {
            near.insert(key, Known { found: Found::new(Arc::clone(stored)), version, fence });
        }
        Ok(true)
    }

    /// Stores a response under its target, or under its variant and the list of variants' fields
    /// under the target.
    #[expect(clippy::too_many_arguments, reason = "all of it is the response")]
    pub(super) async fn put_response(
        &self,
        primary: &CacheKey,
        stored: &Arc<Stored>,
        vary: &[HeaderName],
        request: &HeaderMap,
        keep: Duration,
        fence: Fence,
        (uri, tags): (&Tag, &[Tag]),
    ) -> Result<bool> {
        if vary.is_empty() {
            if self.known_specs(primary).is_some() {
                self.varying.remove(primary);
            }
            return self.put(primary, stored, keep, fence, tags).await;
        }
        if !self.put(&variant(primary, vary, request), stored, keep, fence, tags).await? {
            return Ok(false);
        }
        let known = self.known_specs(primary).unwrap_or_default();
        if known.first().is_some_and(|newest| **newest == *vary) {
            // It may end before this variant, which costs a miss.
            return Ok(true);
        }
        let others = known.iter().filter(|spec| ***spec != *vary).cloned();
        let specs: Vec<_> = [vary.into()].into_iter().chain(others).take(MOST_SPECS).collect();
        let marker = Arc::new(Stored::Variants(specs.clone()));
        // Without it the variants cannot be found, so it lives longer than this one.
        let keep = keep.max(SPECS_LIFE);
        let stored = self.put(primary, &marker, keep, fence, std::slice::from_ref(uri)).await?;
        self.remember_specs(primary, specs.into());
        Ok(stored)
    }
}

fn wanted() -> Get {
    Get::new().with_fence()
}

/// What is not an entry of this key, or of another format, is a miss; it is overwritten, never
/// served, and not deleted: another version of this program may read it.
fn decode(value: bytes::Bytes, key: &CacheKey, max_body: usize) -> Option<Stored> {
    let told = |error: &DecodeError| {
        event!(debug, ?error, "a stored entry cannot be used");
    };
    entry::decode(value, key, max_body).inspect_err(told).ok()
}

/// The key of the variant that this request wants.
pub(super) fn variant(primary: &CacheKey, spec: &[HeaderName], request: &HeaderMap) -> CacheKey {
    primary.variant(spec, |name, out| control::variant_value(name, request, out))
}
