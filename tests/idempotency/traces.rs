//! What requests leave behind, and how to leave in the middle.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use axum::http::Response;
use bytes::Bytes;
use tokio::time::{sleep, timeout};
use tower_keep::{
    IdempotencyLayer, MemoryStorage, Storage,
    idempotency::{KeyCursor, Policy, UnknownKey},
    storage::{Get, Key},
};

use crate::{
    staged::{Fate, Staged},
    till::{Till, code, is_replay},
};

/// The lease of a policy that says nothing else.
pub(crate) const LEASE: Duration = Duration::from_secs(30);
/// Until then everything is done that is done in the background, unless it waits for something.
pub(crate) const SETTLED: Duration = Duration::from_secs(3);

/// What lies under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    Pending,
    Done,
    Sealed,
    Unknown,
    /// What cannot be read.
    Garbage,
}

/// Where the record of `POST /charge` with this key lies, with the usual policy.
pub(crate) async fn place_of(key: &str) -> Key {
    let staged = Staged::new(&MemoryStorage::new());
    Till::counting(staged.clone(), Policy::scope_public()).charge(key, "").await;
    staged.keys().remove(0)
}

/// What lies under `a-key`.
pub(crate) async fn left(storage: &impl Storage) -> Left {
    let place = place_of("a-key").await;
    let Some(entry) = storage.get(&place, Get::new()).await.unwrap().entry else {
        return Left::Nothing;
    };
    // After the token, the mark, the version, the checksum and the length.
    match (entry.value.get(16..19), entry.value.get(32)) {
        (Some(b"tki"), Some(1)) => Left::Pending,
        (Some(b"tki"), Some(2)) => Left::Done,
        (Some(b"tki"), Some(3)) => Left::Sealed,
        (Some(b"tki"), Some(4)) => Left::Unknown,
        _ => Left::Garbage,
    }
}

/// Polls until it has something to say or was pending so often, and then drops it.
pub(crate) async fn dropped_after<T>(pending: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut seen = 0;
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        seen += 1;
        if seen == pending { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// `a-key` was claimed for this body by a process that has died, a lease ago.
pub(crate) async fn vanish(memory: &MemoryStorage, policy: Policy, body: &'static str) {
    let staged = Staged::new(memory);
    staged.plan(1, Fate::DeadBefore);
    let till = Till::new(staged, policy, |_, _| std::future::pending());
    let gone = timeout(Duration::from_millis(10), till.charge("a-key", body)).await;
    assert!(gone.is_err(), "{gone:?}");
    assert_eq!(left(memory).await, Left::Pending);
    sleep(LEASE).await;
}

/// The keys that operators see.
pub(crate) async fn listed(layer: &IdempotencyLayer) -> Vec<UnknownKey> {
    let mut found = Vec::new();
    let mut next = Some(KeyCursor::START);
    while let Some(at) = next {
        let page = layer.keys().list(at).await.unwrap();
        found.extend(page.keys);
        next = page.next;
    }
    found
}

/// An answer in short: the status, whether it is a replay, and what a problem says.
pub(crate) fn short(answer: &Response<Bytes>) -> (u16, bool, String) {
    let is_problem = answer
        .headers()
        .get("content-type")
        .is_some_and(|value| value == "application/problem+json");
    let code = if is_problem { code(answer) } else { String::new() };
    (answer.status().as_u16(), is_replay(answer), code)
}
