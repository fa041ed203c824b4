//! A memory storage at the other end of a network that delays, loses and holds back.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{sync::watch, time::sleep};
use tower_keep::{
    MemoryStorage, Storage,
    storage::{
        AnyStorage, Capabilities, Charge, Error, ErrorKind, Get, Invalidation, Key, Lookup, Name,
        Put, PutOutcome, Result, Tags, Verdict, When,
    },
};

use crate::race::Dice;

/// The way of one node to the storage. Clones are the same.
///
/// What is on its way goes on when nobody waits for it any more, as with a server, and arrives in the
/// order in which it was sent, as over one connection; what is late is overtaken.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    memory: MemoryStorage,
    dice: Dice,
    lease: Duration,
    link: Arc<Link>,
    /// One after another.
    lane: Arc<tokio::sync::Mutex<()>>,
    forgery: Option<Forgery>,
}

#[derive(Debug)]
struct Link {
    /// While it is closed nothing comes through in either direction.
    open: watch::Sender<bool>,
    /// One operation in so many meets with something; 0: none.
    faults: AtomicU64,
    /// Owners who were overtaken within their lease.
    overtaken: Mutex<Vec<String>>,
}

/// A storage that does not keep its word, to show that it would be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forgery {
    /// A claim overwrites what is there.
    Claims,
    /// A write overwrites whatever was written since.
    Writes,
    /// A delete takes away whatever was written since.
    Deletes,
}

/// What an operation meets with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    LostBefore,
    LostAfter,
    /// It is answered with an error, and applied some time later.
    Late,
    /// It is applied, and never answered.
    Silence,
}

impl Link {
    async fn pass(&self) {
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

impl Remote {
    /// One operation in `faults` meets with something; 0: none.
    pub(crate) fn new(memory: &MemoryStorage, dice: &Dice, lease: Duration, faults: u64) -> Self {
        let (open, overtaken) = (watch::channel(true).0, Mutex::default());
        let link = Arc::new(Link { open, faults: faults.into(), overtaken });
        let lane = Arc::default();
        Self { memory: memory.clone(), dice: dice.clone(), lease, link, lane, forgery: None }
    }

    pub(crate) fn forging(self, forgery: Option<Forgery>) -> Self {
        Self { forgery, ..self }
    }

    fn forged(&self, when: When, writes: Forgery) -> When {
        let kind = if when == When::Absent { Forgery::Claims } else { writes };
        if self.forgery == Some(kind) { When::Always } else { when }
    }

    pub(crate) fn open(&self, open: bool) {
        self.link.open.send_replace(open);
    }

    /// No more faults.
    pub(crate) fn calm(&self) {
        self.link.faults.store(0, SeqCst);
    }

    pub(crate) fn overtaken(&self) -> Vec<String> {
        self.link.overtaken.lock().unwrap().clone()
    }

    fn fault(&self) -> Option<Fault> {
        let faults = self.link.faults.load(SeqCst);
        let kinds = [Fault::LostBefore, Fault::LostAfter, Fault::Late, Fault::Silence];
        (faults > 0 && self.dice.one_in(faults)).then(|| kinds[self.dice.below(4) as usize])
    }

    async fn act<T: Send + 'static>(
        &self,
        operation: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (dice, link, fault) = (self.dice.clone(), Arc::clone(&self.link), self.fault());
        let kind = [ErrorKind::Timeout, ErrorKind::Unavailable][dice.below(2) as usize];
        let lost = move || Err(Error::new(kind, "lost, as the dice want it"));
        let delay = self.lease.mul_f64(dice.below(200) as f64 / 100.0);
        let lane = Arc::clone(&self.lane);
        let on_its_way = tokio::spawn(async move {
            let turn = lane.lock_owned().await;
            dice.pause().await;
            link.pass().await;
            match fault {
                Some(Fault::LostBefore) => return lost(),
                Some(Fault::Late) => {
                    drop(turn);
                    sleep(delay).await;
                    return operation.await;
                }
                _ => {}
            }
            let answer = operation.await;
            drop(turn);
            link.pass().await;
            dice.pause().await;
            answer
        });
        match fault {
            Some(Fault::Late) => {
                self.dice.pause().await;
                lost()
            }
            Some(Fault::LostAfter) => {
                let _ = on_its_way.await;
                lost()
            }
            Some(Fault::Silence) => pending().await,
            Some(Fault::LostBefore) | None => on_its_way.await.unwrap(),
        }
    }

    /// Whether somebody else takes over what was written less than a lease ago.
    async fn overtakes(memory: &MemoryStorage, key: &Key, value: &[u8], lease: Duration) -> bool {
        let Some(before) = memory.get(key, Get::new()).await.unwrap().entry else { return false };
        // Values begin with the token of who has written them.
        // Nobody is the owner of an unknown outcome.
        let is_unknown = before.value[32] == 4;
        before.value[..16] != value[..16] && before.age < lease && !is_unknown
    }
}

impl Storage for Remote {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        let (memory, key) = (self.memory.clone(), key.clone());
        self.act(async move { memory.get(&key, get).await }).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        assert!(put.tags.is_empty() && put.fence.is_none());
        let (value, ttl) = (put.value.clone(), put.ttl);
        let when = self.forged(put.when, Forgery::Writes);
        let (memory, key, lease) = (self.memory.clone(), key.clone(), self.lease);
        let link = Arc::clone(&self.link);
        self.act(async move {
            let is_record = key.detail().as_str() == "key";
            let overtakes = is_record && Self::overtakes(&memory, &key, &value, lease).await;
            let outcome = memory.put(&key, Put::new(value, ttl).with_condition(when)).await;
            if overtakes && let Ok(PutOutcome::Stored(version)) = &outcome {
                let what =
                    format!("an owner was overtaken within its lease: {version:?}, {when:?}");
                link.overtaken.lock().unwrap().push(what);
            }
            outcome
        })
        .await
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        let when = self.forged(when, Forgery::Deletes);
        let (memory, key) = (self.memory.clone(), key.clone());
        self.act(async move { memory.delete(&key, when).await }).await
    }

    async fn invalidate(&self, _: &Name, _: Tags<'_>, _: Invalidation) -> Result<()> {
        unreachable!("keys have no tags")
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
