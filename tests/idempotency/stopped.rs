//! A storage that stops at one operation, for good: so a process is known to be there when it is
//! killed.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use tower_keep::{
    Storage,
    storage::{
        AnyStorage, Capabilities, Charge, Get, Invalidation, Key, Lookup, Name, Put, PutOutcome,
        Result, Tags, Verdict, When,
    },
};

/// Where it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Nowhere,
    /// Before a write, or when it is applied and not yet answered.
    Before,
    After,
}

#[derive(Debug, Clone)]
pub(crate) struct Stopped {
    inner: AnyStorage,
    stop: Stop,
    /// It stops at the next write.
    armed: Arc<AtomicBool>,
}

impl Stopped {
    pub(crate) fn new(inner: AnyStorage, stop: Stop, armed: &Arc<AtomicBool>) -> Self {
        Self { inner, stop, armed: Arc::clone(armed) }
    }

    async fn at(&self, place: Stop) {
        if self.stop == place && self.armed.load(SeqCst) {
            println!("reached");
            pending::<()>().await;
        }
    }
}

impl Storage for Stopped {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        self.inner.get(key, get).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        self.at(Stop::Before).await;
        let outcome = self.inner.put(key, put).await;
        self.at(Stop::After).await;
        outcome
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        self.at(Stop::Before).await;
        let deleted = self.inner.delete(key, when).await;
        self.at(Stop::After).await;
        deleted
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.inner.invalidate(namespace, tags, how).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        self.inner.acquire(charges).await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn erase(self) -> AnyStorage {
        AnyStorage::new(self)
    }
}
