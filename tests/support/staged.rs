//! A storage that does what a test says at an operation of the test's choice.

use std::{
    future::pending,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;
use tower_keep::{
    MemoryStorage, Storage,
    storage::{
        AnyStorage, Capabilities, Charge, Error, ErrorKind, Get, Invalidation, Key, Lookup, Name,
        Put, PutOutcome, Result, Tags, Verdict, When,
    },
};

use crate::nodes::Dice;

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
    /// Nothing is answered any more, from this operation on.
    DeadBefore,
    /// This operation is the last that is applied, and not even it is answered.
    DeadAfter,
}

/// A memory storage that is not of this process, for all that the layer can know.
#[derive(Debug, Clone)]
pub(crate) struct Staged {
    memory: MemoryStorage,
    dice: Option<Dice>,
    script: Arc<Script>,
}

#[derive(Debug)]
struct Script {
    plan: Mutex<Plan>,
    reached: watch::Sender<bool>,
    released: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Plan {
    /// How many operations there were since it was made.
    done: usize,
    at: Option<(usize, Fate)>,
    dead: bool,
    log: Vec<String>,
}

impl Staged {
    pub(crate) fn new(memory: &MemoryStorage) -> Self {
        let (reached, released) = (watch::channel(false).0, watch::channel(false).0);
        let script = Script { plan: Mutex::default(), reached, released };
        Self { memory: memory.clone(), dice: None, script: Arc::new(script) }
    }

    /// Every request and every answer takes as long as the dice say.
    pub(crate) fn delayed(memory: &MemoryStorage, dice: &Dice) -> Self {
        Self { dice: Some(dice.clone()), ..Self::new(memory) }
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

    /// What was asked for since the plan was made.
    pub(crate) fn log(&self) -> Vec<String> {
        self.script.plan.lock().unwrap().log.clone()
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
        let fate = plan.at.and_then(|(at, fate)| (at == number).then_some(fate))?;
        plan.dead = matches!(fate, Fate::DeadBefore | Fate::DeadAfter);
        self.script.reached.send_replace(true);
        Some(fate)
    }

    async fn pause(&self) {
        if let Some(dice) = &self.dice {
            dice.pause().await;
        }
    }

    async fn act<T>(&self, what: &str, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let lost = || Err(Error::new(ErrorKind::Timeout, "no answer, as the test wants it"));
        let operation = async {
            self.pause().await;
            let answer = operation.await;
            self.pause().await;
            answer
        };
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
            Some(Fate::DeadBefore) => pending().await,
            Some(Fate::DeadAfter) => {
                let _ = operation.await;
                pending().await
            }
        }
    }
}

impl Storage for Staged {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        self.act("get", self.memory.get(key, get)).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        self.act("put", self.memory.put(key, put)).await
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        self.act("delete", self.memory.delete(key, when)).await
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.act("invalidate", self.memory.invalidate(namespace, tags, how)).await
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
