//! The end of a process: what is waited for, and what is said of what cannot be.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{body::Body, http::Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower_keep::{
    MemoryStorage, Storage,
    idempotency::{Idempotency, Policy, Recovery, Repeat},
    storage::AnyStorage,
};

use crate::{
    staged::{Fate, Staged},
    till::{Till, receipt},
    traces::{LEASE, Left, left, listed, short, vanish},
};

const SECOND: Duration = Duration::from_secs(1);

/// Counts what runs.
#[derive(Clone, Default)]
struct Running(Arc<AtomicUsize>);

impl Running {
    fn begin(&self) -> Self {
        self.0.fetch_add(1, SeqCst);
        self.clone()
    }

    fn count(&self) -> usize {
        self.0.load(SeqCst)
    }
}

struct Run(Running);

impl Drop for Run {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

/// A process, and another on the same server.
struct Case {
    memory: MemoryStorage,
    staged: Staged,
    storage: AnyStorage,
    till: Till,
    other: Till,
    running: Running,
}

impl Case {
    /// The handler works for so long; first it passes its commit point, if that is wanted.
    fn new(policy: Policy, work: Duration, begins: bool) -> Self {
        let memory = MemoryStorage::new();
        let staged = Staged::new(&memory);
        let storage = staged.clone().erase();
        let running = Running::default();
        let begun = running.clone();
        let till = Till::new(storage.clone(), policy.clone(), move |execution, mut request| {
            let run = Run(begun.begin());
            async move {
                let _run = run;
                let attempt = request.extensions_mut().remove::<Idempotency>().unwrap();
                if begins {
                    attempt.begin().await.unwrap();
                }
                sleep(work).await;
                receipt(execution)
            }
        });
        let other = Till::new(Staged::new(&memory), policy, |execution, mut request| async move {
            let attempt = request.extensions_mut().remove::<Idempotency>().unwrap();
            attempt.begin().await.unwrap();
            receipt(execution)
        });
        Self { memory, staged, storage, till, other, running }
    }

    fn send(&self) -> JoinHandle<Response<Bytes>> {
        let till = self.till.clone();
        tokio::spawn(async move { till.charge("a-key", "").await })
    }

    /// Nothing is said to the storage any more.
    async fn assert_silent(&self) {
        assert_eq!(self.running.count(), 0, "a handler runs on");
        self.staged.count();
        sleep(2 * LEASE).await;
        assert_eq!(self.staged.log(), [""; 0], "somebody is still at it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_client_is_gone_is_waited_for() {
    let case = Case::new(Policy::scope_public(), 50 * SECOND, false);
    assert!(timeout(SECOND, case.till.charge("a-key", "")).await.is_err());
    let began = Instant::now();
    assert!(case.storage.shutdown(600 * SECOND).await.is_clean());
    assert!((48 * SECOND..50 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(left(&case.memory).await, Left::Done);
    assert!(short(&case.other.charge("a-key", "").await).1);
    case.assert_silent().await;
}

/// What is to become of a key whose handler was stopped.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fates {
    /// At most once, and nobody knows.
    Unknown,
    /// The commit point was not reached.
    Free,
    /// At least once.
    TakenOver,
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_does_not_end_in_time_is_stopped_and_its_key_tells_so() {
    let (most, least) = (Repeat::AtMostOnce, Repeat::AtLeastOnce);
    let rows = [
        (Policy::scope_public().with_repeat(most), false, Fates::Unknown),
        (Policy::scope_public().with_repeat(most), true, Fates::Unknown),
        (Policy::scope_public().with_repeat(most).with_commit_point(), true, Fates::Unknown),
        (Policy::scope_public().with_repeat(most).with_commit_point(), false, Fates::Free),
        (Policy::scope_public().with_repeat(least).with_commit_point(), false, Fates::Free),
        (Policy::scope_public().with_repeat(least).with_commit_point(), true, Fates::TakenOver),
        (Policy::scope_public().with_repeat(least), false, Fates::TakenOver),
    ];
    for (policy, begins, fate) in rows {
        for gone in [false, true] {
            let case = Case::new(policy.clone(), 10_000 * SECOND, begins);
            let first = case.send();
            sleep(SECOND).await;
            if gone {
                first.abort();
            }
            assert_eq!(case.running.count(), 1);
            let began = Instant::now();
            assert!(
                case.storage.shutdown(20 * SECOND).await.is_clean(),
                "who has left word is done"
            );
            assert!(began.elapsed() < 20 * SECOND);
            if !gone {
                let told = first.await.unwrap();
                assert_eq!(short(&told), (503, false, "stopping".into()));
                assert!(told.headers().contains_key("retry-after"));
            }
            match fate {
                Fates::Unknown => {
                    assert_eq!(left(&case.memory).await, Left::Unknown, "{policy:?}");
                    assert_eq!(listed(&case.other.layer).await.len(), 1);
                    let told = short(&case.other.charge("a-key", "").await);
                    assert_eq!(told, (409, false, "outcome-unknown".into()));
                    assert_eq!(case.other.executions(), 0);
                }
                Fates::Free | Fates::TakenOver => {
                    let remains = left(&case.memory).await;
                    assert_eq!(remains == Left::Nothing, fate == Fates::Free, "{policy:?}");
                    assert_eq!(case.other.charge("a-key", "").await.status(), 201);
                    assert_eq!(listed(&case.other.layer).await, []);
                    assert_eq!(case.other.executions(), 1);
                }
            }
            case.assert_silent().await;
        }
    }
}

/// Nobody can be told; so the lease says it.
#[tokio::test(start_paused = true)]
async fn a_shutdown_while_the_storage_is_away_ends_in_time() {
    for fate in [Fate::Refused, Fate::MuteBefore] {
        let policy = Policy::scope_public().with_repeat(Repeat::AtMostOnce);
        let case = Case::new(policy, 10_000 * SECOND, false);
        let first = case.send();
        sleep(SECOND).await;
        case.staged.all(Some(fate));
        let began = Instant::now();
        assert!(case.storage.shutdown(20 * SECOND).await.is_clean());
        assert!(began.elapsed() <= 20 * SECOND);
        assert_eq!(first.await.unwrap().status(), 503);
        assert_eq!(case.running.count(), 0);
        assert_eq!(left(&case.memory).await, Left::Pending);
        sleep(LEASE).await;
        let told = short(&case.other.charge("a-key", "").await);
        assert_eq!(told, (409, false, "outcome-unknown".into()));
        case.staged.all(None);
        case.assert_silent().await;
    }
}

/// Its head says what was done, and the rest is between the handler and its client.
#[tokio::test(start_paused = true)]
async fn a_body_without_end_is_sealed() {
    let memory = MemoryStorage::new();
    let storage = Staged::new(&memory).erase();
    let till = Till::new(storage.clone(), Policy::scope_public(), |_, _| async {
        let endless = stream::unfold((), |()| async {
            sleep(SECOND).await;
            Some((Ok::<_, std::convert::Infallible>("tick"), ()))
        });
        Response::builder().status(201).body(Body::from_stream(endless)).unwrap()
    });
    assert!(timeout(SECOND, till.charge("a-key", "")).await.is_err());
    assert!(storage.shutdown(20 * SECOND).await.is_clean());
    assert_eq!(left(&memory).await, Left::Sealed);
    assert_eq!(short(&till.charge("a-key", "").await).2, "response-not-retained");
}

#[tokio::test(start_paused = true)]
async fn a_recovery_that_does_not_end_in_time_knows_nothing() {
    let memory = MemoryStorage::new();
    let policy = Policy::scope_public().with_recovery(|_| pending::<Recovery>());
    vanish(&memory, policy.clone(), "").await;
    let storage = Staged::new(&memory).erase();
    let till = Till::counting(storage.clone(), policy);
    let asks = till.clone();
    let asks = tokio::spawn(async move { asks.charge("a-key", "").await });
    sleep(SECOND).await;
    assert!(storage.shutdown(20 * SECOND).await.is_clean());
    assert_eq!(short(&asks.await.unwrap()), (409, false, "outcome-unknown".into()));
    assert_eq!((left(&memory).await, till.executions()), (Left::Unknown, 0));
}

/// A process whose shutdown was called off works as before.
#[tokio::test(start_paused = true)]
async fn after_a_shutdown_the_layer_works_as_before() {
    let case = Case::new(Policy::scope_public(), SECOND, false);
    assert!(case.storage.shutdown(SECOND).await.is_clean());
    assert_eq!(case.till.charge("a-key", "").await.status(), 201);
    let long = Case::new(Policy::scope_public(), 5 * SECOND, false);
    let first = long.send();
    sleep(SECOND / 10).await;
    assert!(long.storage.shutdown(SECOND).await.is_clean());
    assert_eq!(first.await.unwrap().status(), 503);
    assert_eq!(long.till.charge("a-key", "").await.body(), "receipt 2");
}
