//! Processes that fall silent, and come back.

use std::{
    future::{Future, pending},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, Response, StatusCode},
};
use bytes::Bytes;
use tokio::{sync::Semaphore, task::JoinHandle, time::sleep};
use tower_keep::{
    RequestHead, Storage,
    idempotency::{Idempotency, KeyCursor, Policy, UnknownKey},
    storage::{
        AnyStorage, Capabilities, Charge, Error, ErrorKind, Get, Invalidation, Key, Lookup, Name,
        Put, PutOutcome, Result, Tags, Verdict, When,
    },
};

use crate::till::{Till, charge};

/// The lease of the policies here: the default.
pub(crate) const LEASE: Duration = Duration::from_secs(30);

/// The way of one process to a storage that is not in it.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    storage: AnyStorage,
    state: Arc<Mutex<Line>>,
}

/// What becomes of the operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    Up,
    /// They fail at once.
    Down,
    /// They are applied, and the answers never come.
    Mute,
    /// Those that write fail because there is no room.
    Full,
}

impl Wire {
    pub(crate) fn new(storage: impl Storage) -> Self {
        Self { storage: storage.erase(), state: Arc::new(Mutex::new(Line::Up)) }
    }

    pub(crate) fn set(&self, line: Line) {
        *self.state.lock().unwrap() = line;
    }

    async fn act<T>(&self, writes: bool, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let line = *self.state.lock().unwrap();
        match line {
            Line::Down => Err(Error::new(ErrorKind::Unavailable, "as the test wants it")),
            Line::Full if writes => Err(Error::new(ErrorKind::Full, "as the test wants it")),
            Line::Up | Line::Full => operation.await,
            Line::Mute => {
                let _ = operation.await;
                pending().await
            }
        }
    }
}

impl Storage for Wire {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        self.act(false, self.storage.get(key, get)).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        self.act(true, self.storage.put(key, put)).await
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        self.act(false, self.storage.delete(key, when)).await
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.act(true, self.storage.invalidate(namespace, tags, how)).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        self.act(true, self.storage.acquire(charges)).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
    }

    fn erase(self) -> AnyStorage {
        AnyStorage::new(self)
    }
}

/// A process that has claimed a key, and stands in its handler.
pub(crate) struct Owner {
    pub(crate) till: Till,
    pub(crate) wire: Wire,
    go: Arc<Semaphore>,
    answer: JoinHandle<Response<Bytes>>,
}

impl Owner {
    /// One that stands before its commit point, or behind it.
    pub(crate) async fn of(storage: impl Storage, policy: Policy, key: &str, begins: bool) -> Self {
        Self::answering(storage, policy, key, begins, late).await
    }

    pub(crate) async fn answering(
        storage: impl Storage,
        policy: Policy,
        key: &str,
        begins: bool,
        answer: fn() -> Response<Body>,
    ) -> Self {
        let (arrived, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (wire, gates) = (Wire::new(storage), (arrived.clone(), go.clone()));
        let till = Till::new(wire.clone(), policy, move |_, request| {
            let (arrived, go) = gates.clone();
            async move {
                if begins {
                    attempt_of(&request).begin().await.unwrap();
                }
                arrived.add_permits(1);
                go.acquire().await.unwrap().forget();
                answer()
            }
        });
        let answer = tokio::spawn({
            let (till, request) = (till.clone(), charge(key, ""));
            async move { till.send(request).await }
        });
        arrived.acquire().await.unwrap().forget();
        Self { till, wire, go, answer }
    }

    /// One that has been silent for longer than its lease.
    pub(crate) async fn vanished(
        storage: impl Storage,
        policy: Policy,
        key: &str,
        begins: bool,
    ) -> Self {
        let owner = Self::of(storage, policy, key, begins).await;
        owner.fall_silent().await;
        owner
    }

    pub(crate) async fn fall_silent(&self) {
        self.wire.set(Line::Down);
        sleep(LEASE + Duration::from_secs(1)).await;
    }

    /// Its process can reach the storage again, and its handler comes to its end.
    pub(crate) async fn comes_back(self) -> Response<Bytes> {
        self.wire.set(Line::Up);
        self.ends().await
    }

    /// Its handler comes to its end.
    pub(crate) async fn ends(self) -> Response<Bytes> {
        self.go.add_permits(1);
        self.answer.await.unwrap()
    }
}

/// What an owner answers that has been silent.
pub(crate) fn late() -> Response<Body> {
    Response::builder().status(StatusCode::CREATED).body(Body::from("late receipt")).unwrap()
}

pub(crate) fn attempt_of(request: &Request<Body>) -> Idempotency {
    Idempotency::of(RequestHead::new(request)).expect("the request came through the layer")
}

/// All keys whose outcome is unknown.
pub(crate) async fn unknown(till: &Till) -> Vec<UnknownKey> {
    let (keys, mut found, mut next) = (till.layer.keys(), Vec::new(), Some(KeyCursor::START));
    while let Some(at) = next {
        let page = keys.list(at).await.unwrap();
        found.extend(page.keys);
        next = page.next;
    }
    found
}

/// Lets all tasks come to where they wait for time to pass.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
