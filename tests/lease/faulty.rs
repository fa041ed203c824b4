//! Memory at the end of a network that fails as a test plans it.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{task::yield_now, time::sleep};
use tower_keep::{
    MemoryStorage, Storage,
    storage::{
        AnyStorage, Capabilities, Charge, Error, ErrorKind, Get, Invalidation, Key, Lookup, Name,
        Put, PutOutcome, Result, Tags, Verdict, When,
    },
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Get,
    Put,
    Delete,
}

/// What happens to one call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// It is not applied, and says so.
    Refused,
    /// It is applied, and nobody is told.
    ReplyLost,
    /// It is applied at once, and much later an error comes.
    TimedOut(Duration),
    /// It is applied, and the answer never comes.
    NoAnswer,
    /// It is applied at once, and the answer takes its time.
    SlowReply(Duration),
    /// It is applied that much later, if its caller is still there or not.
    Late(Duration),
}

/// Memory with a network between.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faulty {
    pub(crate) memory: MemoryStorage,
    faults: Arc<Mutex<Vec<(Op, Fault)>>>,
    down: Arc<AtomicBool>,
    /// How often a call yields before and after it is applied.
    hops: usize,
    pub(crate) calls: Arc<AtomicUsize>,
}

impl Faulty {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn with_hops(hops: usize) -> Self {
        Self { hops, ..Self::default() }
    }

    /// The next call of this kind that has no fault planned before it.
    pub(crate) fn plan(&self, op: Op, fault: Fault) {
        self.faults.lock().unwrap().push((op, fault));
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    async fn call<T: Send + 'static>(
        &self,
        op: Op,
        apply: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        for _ in 0..self.hops {
            yield_now().await;
        }
        if self.down.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unavailable, "down"));
        }
        let fault = {
            let mut faults = self.faults.lock().unwrap();
            let planned = faults.iter().position(|(planned, _)| *planned == op);
            planned.map(|i| faults.remove(i).1)
        };
        let lost = || Err(Error::new(ErrorKind::Timeout, "no answer"));
        match fault {
            Some(Fault::Refused) => return Err(Error::new(ErrorKind::Unavailable, "refused")),
            Some(Fault::Late(delay)) => {
                tokio::spawn(async move {
                    sleep(delay).await;
                    apply.await
                });
                return lost();
            }
            _ => {}
        }
        let reply = apply.await;
        match fault {
            Some(Fault::ReplyLost) => return lost(),
            Some(Fault::TimedOut(after)) => {
                sleep(after).await;
                return lost();
            }
            Some(Fault::NoAnswer) => std::future::pending().await,
            Some(Fault::SlowReply(delay)) => sleep(delay).await,
            _ => {}
        }
        for _ in 0..self.hops {
            yield_now().await;
        }
        reply
    }
}

#[deny(clippy::missing_trait_methods)]
impl Storage for Faulty {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        let (memory, key) = (self.memory.clone(), key.clone());
        self.call(Op::Get, async move { memory.get(&key, get).await }).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        let (memory, key) = (self.memory.clone(), key.clone());
        let put = Put::new(put.value, put.ttl).with_condition(put.when);
        self.call(Op::Put, async move { memory.put(&key, put).await }).await
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        let (memory, key) = (self.memory.clone(), key.clone());
        self.call(Op::Delete, async move { memory.delete(&key, when).await }).await
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.memory.invalidate(namespace, tags, how).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        self.memory.acquire(charges).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
    }

    fn erase(self) -> AnyStorage {
        AnyStorage::new(self)
    }
}
