//! A storage that behaves like one across a network: it can be counted, delayed and cut off.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tower_keep::{
    MemoryStorage, Storage,
    storage::{
        AnyStorage, Capabilities, Charge, Error, ErrorKind, Get, Invalidation, Key, Lookup, Name,
        Put, PutOutcome, Result, Tags, Verdict, When,
    },
};

#[derive(Debug, Clone, Default)]
pub(crate) struct Remote {
    memory: MemoryStorage,
    calls: Arc<AtomicUsize>,
    cut: Arc<AtomicBool>,
    /// How often a call yields before and after it is applied.
    yields: usize,
    /// How long a call is under way before it is applied.
    lag: Duration,
    /// Whether it says that it is in the process, as one behind an asynchronous lock may.
    local: bool,
}

impl Remote {
    /// One whose calls yield that often on the way there and back.
    pub(crate) fn slow(yields: usize) -> Self {
        Self { yields, ..Self::default() }
    }

    /// One in the process that has to be waited for all the same.
    pub(crate) fn slow_and_local(yields: usize) -> Self {
        Self { local: true, ..Self::slow(yields) }
    }

    /// One that is that far away.
    pub(crate) fn distant(lag: Duration) -> Self {
        Self { lag, ..Self::default() }
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    pub(crate) fn cut_off(&self, cut: bool) {
        self.cut.store(cut, SeqCst);
    }

    async fn way(&self) {
        for _ in 0..self.yields {
            tokio::task::yield_now().await;
        }
    }
}

impl Storage for Remote {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        self.memory.get(key, get).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        self.memory.put(key, put).await
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        self.memory.delete(key, when).await
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.memory.invalidate(namespace, tags, how).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        self.calls.fetch_add(1, SeqCst);
        self.way().await;
        if !self.lag.is_zero() {
            tokio::time::sleep(self.lag).await;
        }
        if self.cut.load(SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "cut off"));
        }
        let verdicts = self.memory.acquire(charges).await;
        self.way().await;
        verdicts
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new().with_atomic_across_identities();
        capabilities.local = self.local;
        capabilities
    }

    fn erase(self) -> AnyStorage {
        AnyStorage::new(self)
    }
}
