//! A storage that is watched: what is asked of it, how long that takes, and what it is given.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tower_keep::{
    Storage,
    storage::{
        AnyStorage, Capabilities, Charge, Error, ErrorKind, Get, Invalidation, Key, Lookup, Name,
        Put, PutOutcome, Result, Tags, Verdict, When,
    },
};

#[derive(Debug, Clone)]
pub(crate) struct Watched {
    inner: AnyStorage,
    seen: Arc<Seen>,
    slowness: Duration,
}

#[derive(Debug, Default)]
struct Seen {
    operations: AtomicUsize,
    /// Operations that have written something, and lookups that have prolonged a life.
    writes: AtomicUsize,
    cut_off: AtomicBool,
    /// Every byte of every key, tag and value.
    bytes: Mutex<Vec<Vec<u8>>>,
    /// Under which keys something was put, each once.
    keys: Mutex<Vec<Key>>,
}

impl Watched {
    pub(crate) fn new(inner: impl Storage) -> Self {
        Self { inner: inner.erase(), seen: Arc::default(), slowness: Duration::ZERO }
    }

    /// With operations that take so long. With paused time, what a request takes then tells how many
    /// it has awaited one after another.
    pub(crate) fn slow(mut self, slowness: Duration) -> Self {
        self.slowness = slowness;
        self
    }

    /// How many operations there were since the last question.
    pub(crate) fn operations(&self) -> usize {
        self.seen.operations.swap(0, SeqCst)
    }

    /// How many writes there were since the last question.
    pub(crate) fn writes(&self) -> usize {
        self.seen.writes.swap(0, SeqCst)
    }

    /// From now on every operation fails, or works again.
    pub(crate) fn cut_off(&self, cut_off: bool) {
        self.seen.cut_off.store(cut_off, SeqCst);
    }

    /// Everything that the storage was given, so far.
    pub(crate) fn bytes(&self) -> Vec<Vec<u8>> {
        self.seen.bytes.lock().unwrap().clone()
    }

    /// The keys of this detail under which something was put, in order.
    pub(crate) fn keys(&self, detail: &str) -> Vec<Key> {
        let keys = self.seen.keys.lock().unwrap();
        keys.iter().filter(|key| key.detail().as_str() == detail).cloned().collect()
    }

    fn keep(&self, bytes: impl Into<Vec<u8>>) {
        self.seen.bytes.lock().unwrap().push(bytes.into());
    }

    fn keep_key(&self, key: &Key) {
        self.keep(key.namespace().as_str());
        self.keep(key.detail().as_str());
        self.keep(key.identity().as_bytes());
    }

    fn wrote(&self, wrote: bool) {
        self.seen.writes.fetch_add(usize::from(wrote), SeqCst);
    }

    async fn begin(&self) -> Result<()> {
        self.seen.operations.fetch_add(1, SeqCst);
        if !self.slowness.is_zero() {
            sleep(self.slowness).await;
        }
        if self.seen.cut_off.load(SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "cut off"));
        }
        Ok(())
    }

    /// How long an entry lives if nobody touches it.
    async fn ttl(&self, key: &Key) -> Option<Duration> {
        Some(self.inner.get(key, Get::new()).await.ok()?.entry?.ttl)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Storage for Watched {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        self.begin().await?;
        self.keep_key(key);
        let before = self.ttl(key).await;
        let lookup = self.inner.get(key, get).await;
        self.wrote(self.ttl(key).await > before);
        lookup
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        self.begin().await?;
        self.keep_key(key);
        self.keep(&*put.value);
        for tag in put.tags {
            self.keep(tag.as_bytes());
        }
        {
            let mut keys = self.seen.keys.lock().unwrap();
            if !keys.contains(key) {
                keys.push(key.clone());
            }
        }
        let outcome = self.inner.put(key, put).await;
        self.wrote(matches!(outcome, Ok(PutOutcome::Stored(_))));
        outcome
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        self.begin().await?;
        self.keep_key(key);
        let deleted = self.inner.delete(key, when).await;
        self.wrote(matches!(deleted, Ok(true)));
        deleted
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.begin().await?;
        if let Tags::Any(tags) = tags {
            for tag in tags {
                self.keep(tag.as_bytes());
            }
        }
        self.wrote(true);
        self.inner.invalidate(namespace, tags, how).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        self.begin().await?;
        self.inner.acquire(charges).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
    }

    fn erase(self) -> AnyStorage {
        AnyStorage::new(self)
    }
}

/// How many operations of this slowness, one after another, a piece of work has waited for. Time
/// must be paused.
pub(crate) async fn in_a_row<T>(slowness: Duration, work: impl Future<Output = T>) -> (T, u32) {
    let began = Instant::now();
    let outcome = work.await;
    let steps = began.elapsed().as_secs_f64() / slowness.as_secs_f64();
    // The timers of tokio are right to the millisecond.
    (outcome, steps.round() as u32)
}

/// The ways in which a token could lie somewhere: as it is in cookies, its bytes, in hex.
pub(crate) fn spellings(token: &str) -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for character in token.bytes() {
        let digit = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            other => panic!("{other} is no digit of base64url"),
        };
        (bits, count) = (bits << 6 | u32::from(digit), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    assert_eq!(bytes.len(), 32);
    let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    });
    let standard = token.replace('-', "+").replace('_', "/");
    let upper = hex.to_uppercase();
    vec![token.into(), standard.into(), bytes, hex.into(), upper.into()]
}

pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Bytes as the text of a token: base64url without padding.
pub(crate) fn as_token(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = three.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
        let number = number << (8 * (3 - three.len()));
        for digit in 0..=three.len() {
            text.push(DIGITS[number >> (18 - 6 * digit) & 63].into());
        }
    }
    text
}
