//! A storage that does what a test says at an operation of the test's choice.
#![allow(dead_code)]

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};
use tower_keep::{
    MemoryStorage, Quota, Storage,
    storage::{
        AnyStorage, Capabilities, Charge, Error, ErrorKind, Get, Invalidation, Key, Lookup, Name,
        Put, PutOutcome, Result, Spend, Tag, Tags, Verdict, When,
    },
};

use crate::race::Dice;

/// After that, what is [late](Fate::Late) is applied.
pub(crate) const LATE: Duration = Duration::from_secs(1);

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It waits for [`Staged::release`].
    HeldBefore,
    /// It is applied, and the answer waits for [`Staged::release`].
    HeldAfter,
    /// It fails, and is not applied.
    Unapplied,
    /// It is applied, and the answer is lost.
    Unanswered,
    /// The connection breaks before it is applied.
    Refused,
    /// The connection breaks after it was applied.
    Unheard,
    /// It is not applied, and never answered.
    MuteBefore,
    /// It is applied, and never answered.
    MuteAfter,
    /// It is applied a second later, and never answered.
    Late,
    /// There is no room for what it writes.
    Full,
    /// Nothing is answered any more, from this operation on.
    DeadBefore,
    /// This operation is the last that is applied, and not even it is answered.
    DeadAfter,
}

/// A memory storage that is not of this process, for all that the layer can know.
#[derive(Debug, Clone)]
pub(crate) struct Staged {
    memory: MemoryStorage,
    way: Way,
    script: Arc<Script>,
}

/// How requests and answers travel.
#[derive(Debug, Clone)]
enum Way {
    AtOnce,
    /// As long as the dice say; what nobody waits for does not arrive.
    Dice(Dice),
    /// So long; what nobody waits for does not arrive.
    Recalled(Duration),
    /// So long; what was sent arrives, as over a connection.
    Sent(Duration),
}

#[derive(Debug)]
struct Script {
    plan: Mutex<Plan>,
    reached: watch::Sender<bool>,
    released: watch::Sender<bool>,
    keys: Mutex<Vec<Key>>,
}

#[derive(Debug, Default)]
struct Plan {
    /// How many operations there were since it was made.
    done: usize,
    at: Option<(usize, Fate)>,
    all: Option<Fate>,
    dead: bool,
    log: Vec<String>,
}

impl Staged {
    pub(crate) fn new(memory: &MemoryStorage) -> Self {
        let (reached, released) = (watch::channel(false).0, watch::channel(false).0);
        let (plan, keys) = (Mutex::default(), Mutex::default());
        let script = Arc::new(Script { plan, reached, released, keys });
        Self { memory: memory.clone(), way: Way::AtOnce, script }
    }

    /// Every request and every answer takes as long as the dice say.
    pub(crate) fn delayed(memory: &MemoryStorage, dice: &Dice) -> Self {
        Self { way: Way::Dice(dice.clone()), ..Self::new(memory) }
    }

    /// Every request and every answer takes so long. Who goes away takes back what has not arrived.
    pub(crate) fn recalled(memory: &MemoryStorage, way: Duration) -> Self {
        Self { way: Way::Recalled(way), ..Self::new(memory) }
    }

    /// Every request and every answer takes so long. What was sent arrives, whoever goes away.
    pub(crate) fn sent(memory: &MemoryStorage, way: Duration) -> Self {
        Self { way: Way::Sent(way), ..Self::new(memory) }
    }

    /// Counts from now on, and has this become of the operation of that number (from 0).
    pub(crate) fn plan(&self, number: usize, fate: Fate) {
        let at = Some((number, fate));
        *self.script.plan.lock().unwrap() = Plan { at, ..Plan::default() };
        self.script.reached.send_replace(false);
        self.script.released.send_replace(false);
    }

    /// Counts from now on.
    pub(crate) fn count(&self) {
        *self.script.plan.lock().unwrap() = Plan::default();
    }

    /// From now on this becomes of every operation. `None`: all is well again.
    pub(crate) fn all(&self, fate: Option<Fate>) {
        *self.script.plan.lock().unwrap() = Plan { all: fate, ..Plan::default() };
    }

    /// What was asked for since the plan was made.
    pub(crate) fn log(&self) -> Vec<String> {
        self.script.plan.lock().unwrap().log.clone()
    }

    /// The keys under which something was to be put, each once.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.script.keys.lock().unwrap().clone()
    }

    /// Waits until the operation is reached.
    pub(crate) async fn reached(&self) {
        self.script.reached.subscribe().wait_for(|reached| *reached).await.unwrap();
    }

    pub(crate) fn was_reached(&self) -> bool {
        *self.script.reached.borrow()
    }

    /// Whether nothing is answered any more.
    pub(crate) fn is_dead(&self) -> bool {
        self.script.plan.lock().unwrap().dead
    }

    pub(crate) fn release(&self) {
        self.script.released.send_replace(true);
    }

    async fn held(&self) {
        self.script.released.subscribe().wait_for(|released| *released).await.unwrap();
    }

    fn next(&self, what: &str) -> Option<Fate> {
        let mut plan = self.script.plan.lock().unwrap();
        if plan.dead {
            return Some(Fate::DeadBefore);
        }
        plan.log.push(what.to_owned());
        let number = plan.done;
        plan.done += 1;
        if plan.all.is_some() {
            return plan.all;
        }
        let fate = plan.at.and_then(|(at, fate)| (at == number).then_some(fate))?;
        plan.dead = matches!(fate, Fate::DeadBefore | Fate::DeadAfter);
        self.script.reached.send_replace(true);
        Some(fate)
    }

    async fn travel<T: Send + 'static>(
        way: Way,
        operation: impl Future<Output = T> + Send + 'static,
    ) -> T {
        match way {
            Way::AtOnce => operation.await,
            Way::Dice(dice) => {
                dice.pause().await;
                let answer = operation.await;
                dice.pause().await;
                answer
            }
            Way::Recalled(way) => {
                sleep(way).await;
                let answer = operation.await;
                sleep(way).await;
                answer
            }
            Way::Sent(way) => {
                let (answered, answer) = oneshot::channel();
                tokio::spawn(async move {
                    sleep(way).await;
                    let answer = operation.await;
                    sleep(way).await;
                    let _ = answered.send(answer);
                });
                answer.await.unwrap()
            }
        }
    }

    async fn act<T: Send + 'static>(
        &self,
        what: &str,
        operation: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let lost = || Err(Error::new(ErrorKind::Timeout, "no answer, as the test wants it"));
        let broken = || Err(Error::new(ErrorKind::Unavailable, "broken, as the test wants it"));
        let operation = Self::travel(self.way.clone(), operation);
        match self.next(what) {
            None => operation.await,
            Some(Fate::HeldBefore) => {
                self.held().await;
                operation.await
            }
            Some(Fate::HeldAfter) => {
                let answer = operation.await;
                self.held().await;
                answer
            }
            Some(Fate::Unapplied) => lost(),
            Some(Fate::Unanswered) => {
                let _ = operation.await;
                lost()
            }
            Some(Fate::Refused) => broken(),
            Some(Fate::Unheard) => {
                let _ = operation.await;
                broken()
            }
            Some(Fate::Full) if what == "put" => {
                Err(Error::new(ErrorKind::Full, "no room, as the test wants it"))
            }
            Some(Fate::Full) => operation.await,
            Some(Fate::MuteBefore | Fate::DeadBefore) => pending().await,
            Some(Fate::MuteAfter | Fate::DeadAfter) => {
                let _ = operation.await;
                pending().await
            }
            Some(Fate::Late) => {
                tokio::spawn(async move {
                    sleep(LATE).await;
                    let _ = operation.await;
                });
                pending().await
            }
        }
    }
}

impl Storage for Staged {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        let (memory, key) = (self.memory.clone(), key.clone());
        self.act("get", async move { memory.get(&key, get).await }).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        {
            let mut keys = self.script.keys.lock().unwrap();
            if !keys.contains(key) {
                keys.push(key.clone());
            }
        }
        let (memory, key, tags) = (self.memory.clone(), key.clone(), put.tags.to_vec());
        let mut owned = Put::new(put.value, put.ttl).with_condition(put.when);
        (owned.max_lifetime, owned.fence) = (put.max_lifetime, put.fence);
        owned.evictable = put.evictable;
        self.act("put", async move { memory.put(&key, owned.with_tags(&tags)).await }).await
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        let (memory, key) = (self.memory.clone(), key.clone());
        self.act("delete", async move { memory.delete(&key, when).await }).await
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        let (memory, namespace) = (self.memory.clone(), namespace.clone());
        let tags: Option<Vec<Tag>> = match tags {
            Tags::Any(tags) => Some(tags.to_vec()),
            Tags::All => None,
        };
        let invalidate = async move {
            let tags = tags.as_deref().map_or(Tags::All, Tags::Any);
            memory.invalidate(&namespace, tags, how).await
        };
        self.act("invalidate", invalidate).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        let memory = self.memory.clone();
        let charges: Vec<(Key, Quota, Spend, bool)> =
            charges.iter().map(|it| (it.key.clone(), it.quota, it.spend, it.enforce)).collect();
        let acquire = async move {
            let charges: Vec<Charge<'_>> = charges
                .iter()
                .map(|(key, quota, spend, enforce)| {
                    let charge = Charge::new(key, *quota, *spend);
                    if *enforce { charge } else { charge.without_enforcement() }
                })
                .collect();
            memory.acquire(&charges).await
        };
        self.act("acquire", acquire).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
    }

    fn erase(self) -> AnyStorage {
        AnyStorage::new(self)
    }
}
