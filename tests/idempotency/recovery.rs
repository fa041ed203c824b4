//! Keys whose owner has vanished, the commit point, and somebody who can be asked.

use std::{
    future::{Future, pending},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{body::Body, http::Response};
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tower_keep::{
    MemoryStorage,
    idempotency::{
        BeginError, BeginErrorKind, Idempotency, Outcome, Policy, Recovery, Repeat, Vanished,
    },
};

use crate::{
    race::{count, redis_storage},
    support::RedisServer,
    till::{Till, charge, code, is_replay, receipt},
    wire::{LEASE, Line, Owner, Wire, attempt_of, settle, unknown},
};

const SECOND: Duration = Duration::from_secs(1);

fn most() -> Policy {
    Policy::scope_public().with_repeat(Repeat::AtMostOnce)
}

fn found() -> Recovery {
    Recovery::Completed(
        Response::builder().status(202).header("x-found", "yes").body("found".into()).unwrap(),
    )
}

/// A policy whose ledger is asked by this, and counts how often.
fn asking<F>(
    ask: impl Fn(usize, Vanished) -> F + Send + Sync + 'static,
) -> (Policy, Arc<AtomicUsize>)
where
    F: Future<Output = Recovery> + Send + 'static,
{
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let policy = Policy::scope_public()
        .with_recovery(move |vanished| ask(count.fetch_add(1, SeqCst) + 1, vanished));
    (policy, asked)
}

async fn vanished(storage: &MemoryStorage, key: &str) -> Owner {
    Owner::vanished(storage.clone(), most(), key, false).await
}

#[tokio::test(start_paused = true)]
async fn what_a_recovery_has_found_is_stored_and_given_to_all() {
    let storage = MemoryStorage::new();
    let owner = vanished(&storage, "a-key").await;
    let (policy, asked) = asking(|_, _| async { found() });
    let till = Till::counting(storage, policy);
    let first = till.charge("a-key", "").await;
    assert_eq!((first.status().as_u16(), first.body().as_ref()), (202, &b"found"[..]));
    assert_eq!(first.extensions().get(), Some(&Outcome::Recovered));
    for _ in 0..3 {
        let again = till.charge("a-key", "").await;
        assert_eq!((again.status().as_u16(), is_replay(&again)), (202, true));
        assert_eq!(
            (again.headers()["x-found"].as_bytes(), again.body().as_ref()),
            (&b"yes"[..], &b"found"[..])
        );
    }
    assert_eq!((asked.load(SeqCst), till.executions()), (1, 0));
    assert_eq!(owner.comes_back().await.body(), "found", "the owner's client is told the same");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_executed_is_by_the_second_attempt() {
    let storage = MemoryStorage::new();
    let _owner = vanished(&storage, "a-key").await;
    let (policy, asked) = asking(|_, _| async { Recovery::NotExecuted });
    let till = Till::new(storage, policy, |_, request| async move {
        Response::new(Body::from(format!("attempt {}", attempt_of(&request).attempt())))
    });
    let first = till.charge("a-key", "").await;
    assert_eq!(first.body(), "attempt 2");
    assert_eq!(first.extensions().get(), Some(&Outcome::Executed));
    assert!(is_replay(&till.charge("a-key", "").await));
    assert_eq!((asked.load(SeqCst), till.executions()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn who_cannot_tell_is_asked_again_by_the_next() {
    let storage = MemoryStorage::new();
    let _owner = vanished(&storage, "a-key").await;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&attempts);
    let (policy, asked) = asking(move |question, vanished| {
        seen.lock().unwrap().push(vanished.attempt());
        async move { if question < 4 { Recovery::Unknown } else { Recovery::NotExecuted } }
    });
    let till = Till::new(storage, policy, |_, request| async move {
        Response::new(Body::from(format!("attempt {}", attempt_of(&request).attempt())))
    });
    for question in 1..4 {
        let answer = till.charge("a-key", "").await;
        assert_eq!((answer.status().as_u16(), code(&answer)), (409, "outcome-unknown".into()));
        assert_eq!(asked.load(SeqCst), question);
        assert_eq!(unknown(&till).await.len(), 1, "and operators know of it");
    }
    assert_eq!(till.charge("a-key", "").await.body(), "attempt 2");
    assert_eq!(*attempts.lock().unwrap(), [1; 4], "a question is no attempt");
    assert!(unknown(&till).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_recovery_that_panics_cannot_tell() {
    type Ask = fn() -> Recovery;
    let at_once: Ask = || panic!("as the test wants it");
    for panics_early in [true, false] {
        let storage = MemoryStorage::new();
        let _owner = vanished(&storage, "a-key").await;
        let (policy, asked) = asking(move |question, _| {
            if panics_early && question < 3 {
                at_once();
            }
            async move { if question < 3 { at_once() } else { found() } }
        });
        let till = Till::counting(storage, policy);
        for _ in 0..2 {
            assert_eq!(code(&till.charge("a-key", "").await), "outcome-unknown");
        }
        assert_eq!(till.charge("a-key", "").await.body(), "found");
        assert_eq!((asked.load(SeqCst), till.executions()), (3, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_recovery_that_takes_long_keeps_its_lease() {
    let storage = MemoryStorage::new();
    let _owner = vanished(&storage, "a-key").await;
    let (policy, asked) = asking(|_, _| async {
        sleep(300 * SECOND).await;
        found()
    });
    let till = Till::counting(storage, policy);
    // Also when the client that has caused it is gone.
    assert!(timeout(SECOND, till.charge("a-key", "")).await.is_err());
    for _ in 0..29 {
        sleep(10 * SECOND).await;
        assert_eq!(code(&till.charge("a-key", "").await), "in-flight");
    }
    sleep(10 * SECOND).await;
    assert_eq!(till.charge("a-key", "").await.body(), "found");
    assert_eq!((asked.load(SeqCst), till.executions()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_dies_during_the_recovery_is_followed_by_another() {
    let storage = MemoryStorage::new();
    let _owner = vanished(&storage, "a-key").await;
    let wire = Wire::new(storage.clone());
    let (policy, _) = asking(|_, _| pending());
    let dying = Till::counting(wire.clone(), policy);
    assert!(timeout(SECOND, dying.charge("a-key", "")).await.is_err());
    wire.set(Line::Down);
    let (policy, asked) = asking(|_, vanished| async move {
        assert_eq!(vanished.attempt(), 1);
        found()
    });
    let till = Till::counting(storage, policy);
    assert_eq!(code(&till.charge("a-key", "").await), "in-flight");
    sleep(LEASE).await;
    assert_eq!(till.charge("a-key", "").await.body(), "found");
    assert_eq!((asked.load(SeqCst), till.executions()), (1, 0));
}

async fn stampede(storage: MemoryStorage, ends: fn() -> Recovery) -> (usize, usize, usize) {
    let _owner = vanished(&storage, "a-key").await;
    let at_once = Arc::new(AtomicUsize::new(0));
    let (policy, asked) = asking(move |_, _| {
        let at_once = Arc::clone(&at_once);
        async move {
            assert_eq!(at_once.fetch_add(1, SeqCst), 0, "one at a time");
            sleep(SECOND / 10).await;
            at_once.fetch_sub(1, SeqCst);
            ends()
        }
    });
    let nodes = [(); 2].map(|()| Till::counting(Wire::new(storage.clone()), policy.clone()));
    let tasks: Vec<_> = (0..100)
        .map(|number| {
            let till = nodes[number % 2].clone();
            tokio::spawn(async move {
                loop {
                    let answer = till.charge("a-key", "").await;
                    match answer.status().as_u16() {
                        409 if answer.headers().contains_key("retry-after") => {
                            sleep(SECOND / 20).await;
                        }
                        status => return usize::from(status == 409),
                    }
                }
            })
        })
        .collect();
    let mut unknown = 0;
    for task in tasks {
        unknown += task.await.unwrap();
    }
    (asked.load(SeqCst), unknown, nodes.iter().map(Till::executions).sum())
}

#[tokio::test(start_paused = true)]
async fn of_a_hundred_duplicates_one_at_a_time_asks() {
    assert_eq!(stampede(MemoryStorage::new(), found).await, (1, 0, 0));
    assert_eq!(stampede(MemoryStorage::new(), || Recovery::NotExecuted).await, (1, 0, 1));
    let (asked, unknown, executions) = stampede(MemoryStorage::new(), || Recovery::Unknown).await;
    assert_eq!((unknown, executions), (100, 0));
    assert_eq!(asked, 100, "each that is told so has asked");
}

#[tokio::test(start_paused = true)]
async fn a_recovery_is_told_what_the_owner_knew() {
    let storage = MemoryStorage::new();
    let owner_knew = Arc::new(Mutex::new(None));
    let wire = Wire::new(storage.clone());
    let owner = Till::new(wire.clone(), most(), {
        let owner_knew = Arc::clone(&owner_knew);
        move |_, request| {
            let attempt = attempt_of(&request);
            *owner_knew.lock().unwrap() = Some((attempt.child_key("charge"), attempt.fence()));
            pending()
        }
    });
    assert!(timeout(SECOND, owner.charge("a-key", "100 EUR")).await.is_err());
    wire.set(Line::Down);
    sleep(LEASE).await;
    let (child_key, fence) = owner_knew.lock().unwrap().clone().unwrap();
    let (policy, asked) = asking(move |_, vanished| {
        assert_eq!(vanished.key().as_str(), "a-key");
        assert_eq!(vanished.child_key("charge"), child_key);
        assert_ne!(vanished.child_key("refund"), child_key);
        assert_eq!(vanished.attempt(), 1);
        assert!(vanished.fence() > fence);
        let request = vanished.request();
        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/charge"));
        assert_eq!(request.headers()["x-trace"], "second");
        assert_eq!(request.body(), "100 EUR");
        assert!(request.extensions().is_empty());
        let shown = format!("{vanished:?}");
        assert!(!shown.contains("a-key") && !shown.contains("100 EUR"), "{shown}");
        async { found() }
    });
    let till = Till::counting(storage, policy);
    let mut request = charge("\"a-key\"", "100 EUR");
    request.headers_mut().insert("x-trace", "second".parse().unwrap());
    request.extensions_mut().insert("of this request");
    assert_eq!(till.send(request).await.body(), "found");
    assert_eq!(asked.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_of_an_owner_that_had_not_begun() {
    for begins in [false, true] {
        let storage = MemoryStorage::new();
        let (policy, asked) = asking(|_, _| async { found() });
        let policy = policy.with_commit_point();
        let _owner = Owner::vanished(storage.clone(), policy.clone(), "a-key", begins).await;
        let till = Till::new(storage, policy, |execution, request| async move {
            attempt_of(&request).begin().await.unwrap();
            receipt(execution)
        });
        let answer = till.charge("a-key", "").await;
        assert_eq!(answer.body(), if begins { "found" } else { "receipt 1" });
        assert_eq!(asked.load(SeqCst), usize::from(begins));
    }
}

/// Whatever hinders the duplicate that wants to ask: the key must not be free afterwards.
#[tokio::test(start_paused = true)]
async fn a_duplicate_that_is_turned_away_leaves_the_vanished_owner_known() {
    let hindrances: [fn(Policy) -> Policy; 2] =
        [|policy| policy.with_max_running(1), |policy| policy.with_max_in_flight(1)];
    for hinder in hindrances {
        let storage = MemoryStorage::new();
        let _owner = vanished(&storage, "a-key").await;
        let (policy, asked) = asking(|_, _| async { found() });
        let till = Till::new(storage.clone(), hinder(policy), |_, _| async {
            sleep(20 * SECOND).await;
            receipt(0)
        });
        let other = tokio::spawn({
            let till = till.clone();
            async move { till.charge("another-key", "").await }
        });
        settle().await;
        let refused = till.charge("a-key", "").await;
        assert!([429, 503].contains(&refused.status().as_u16()), "{refused:?}");
        other.await.unwrap();
        sleep(LEASE).await;
        assert_eq!(till.charge("a-key", "").await.body(), "found");
        assert_eq!((asked.load(SeqCst), till.executions()), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_take_over_whose_answer_is_lost_leaves_the_vanished_owner_known() {
    // The client goes away before the layer's patience is over, or after.
    for patience in [SECOND / 4, 2 * SECOND] {
        let storage = MemoryStorage::new();
        let _owner = vanished(&storage, "a-key").await;
        let (policy, asked) = asking(|_, _| async { found() });
        let wire = Wire::new(storage.clone());
        let till = Till::counting(wire.clone(), policy);
        // The claim is a write that finds the record; what takes it over is another one.
        wire.mute_after(1);
        let _ = timeout(patience, till.charge("a-key", "")).await;
        wire.set(Line::Up);
        sleep(2 * LEASE).await;
        assert_eq!(till.charge("a-key", "").await.body(), "found", "{patience:?}");
        assert_eq!((asked.load(SeqCst), till.executions()), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_answered_before_the_commit_point_frees_the_key() {
    let policy = most().with_commit_point();
    let till = Till::new(MemoryStorage::new(), policy, |execution, request| async move {
        let status = match execution {
            1 => 200,
            2 => 422,
            3 => 500,
            4 => panic!("as the test wants it"),
            5 => {
                attempt_of(&request).seal();
                201
            }
            _ => {
                attempt_of(&request).begin().await.unwrap();
                201
            }
        };
        Response::builder().status(status).body(Body::from(execution.to_string())).unwrap()
    });
    for (execution, status) in (1..).zip([200, 422, 500, 500, 201, 201]) {
        let answer = till.charge("a-key", "").await;
        assert_eq!((answer.status().as_u16(), is_replay(&answer)), (status, false));
        assert_eq!(till.executions(), execution);
    }
    let again = till.charge("a-key", "").await;
    assert_eq!((again.body().as_ref(), is_replay(&again)), (&b"6"[..], true));
}

#[tokio::test(start_paused = true)]
async fn what_is_answered_after_the_commit_point_is_kept() {
    let statuses = [200, 422, 429, 500, 503, 0];
    for declared in [false, true] {
        for status in statuses {
            let policy = if declared { most().with_commit_point() } else { most() };
            let till = Till::new(MemoryStorage::new(), policy, move |_, request| async move {
                let attempt = attempt_of(&request);
                attempt.begin().await.unwrap();
                attempt.clone().begin().await.unwrap();
                assert!(status > 0, "as the test wants it");
                let answer = Response::builder().status(status).header("retry-after", "1");
                answer.body(Body::empty()).unwrap()
            });
            let wanted = if status > 0 { status } else { 500 };
            for replayed in [false, true] {
                let answer = till.charge("a-key", "").await;
                assert_eq!((answer.status().as_u16(), is_replay(&answer)), (wanted, replayed));
            }
            assert_eq!(till.executions(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_vanished_before_its_commit_point_has_done_nothing() {
    for begins in [false, true] {
        let (storage, policy) = (MemoryStorage::new(), most().with_commit_point());
        let _owner = Owner::vanished(storage.clone(), policy.clone(), "a-key", begins).await;
        let till = Till::new(storage, policy, |execution, request| async move {
            let attempt = attempt_of(&request);
            assert_eq!(attempt.attempt(), 2);
            attempt.begin().await.unwrap();
            receipt(execution)
        });
        let answer = till.charge("a-key", "").await;
        match begins {
            true => assert_eq!(code(&answer), "outcome-unknown"),
            false => assert_eq!(answer.body(), "receipt 1"),
        }
        assert_eq!(till.executions(), usize::from(!begins));
    }
}

/// A handler that does not come to its commit point before it is let go.
fn beginning_late(wire: &Wire, policy: Policy, kinds: &Arc<Mutex<Vec<bool>>>) -> Till {
    let kinds = Arc::clone(kinds);
    Till::new(wire.clone(), policy, move |_, request| {
        let kinds = Arc::clone(&kinds);
        async move {
            sleep(60 * SECOND).await;
            let attempt: Idempotency = attempt_of(&request);
            let error: BeginError = match attempt.begin().await {
                Ok(()) => return receipt(99),
                Err(error) => error,
            };
            kinds.lock().unwrap().push(matches!(error.kind(), BeginErrorKind::Lost));
            error.to_response().map(Body::from)
        }
    })
}

#[tokio::test(start_paused = true)]
async fn who_has_lost_its_lease_does_not_begin() {
    for declared in [false, true] {
        let storage = MemoryStorage::new();
        let policy = match declared {
            true => Policy::scope_public().with_commit_point(),
            false => Policy::scope_public(),
        };
        let (wire, kinds) = (Wire::new(storage.clone()), Arc::default());
        let silent = beginning_late(&wire, policy.clone(), &kinds);
        let first = tokio::spawn(async move { silent.charge("a-key", "").await });
        settle().await;
        wire.set(Line::Down);
        sleep(LEASE + SECOND).await;
        let till = Till::new(storage, policy, |execution, request| async move {
            attempt_of(&request).begin().await.unwrap();
            receipt(execution)
        });
        assert_eq!(till.charge("a-key", "").await.body(), "receipt 1");
        wire.set(Line::Up);
        let first = first.await.unwrap();
        assert_eq!(
            (first.status().as_u16(), first.headers()["retry-after"].as_bytes()),
            (409, &b"1"[..])
        );
        assert_eq!(*kinds.lock().unwrap(), [true]);
        let again = till.charge("a-key", "").await;
        assert_eq!((again.body().as_ref(), is_replay(&again)), (&b"receipt 1"[..], true));
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_storage_nobody_begins_and_the_key_is_free() {
    for line in [Line::Down, Line::Mute] {
        let storage = MemoryStorage::new();
        let policy = most().with_commit_point();
        let (wire, kinds) = (Wire::new(storage.clone()), Arc::default());
        let till = beginning_late(&wire, policy.clone(), &kinds);
        let first = tokio::spawn(async move { till.charge("a-key", "").await });
        sleep(59 * SECOND).await;
        wire.set(line);
        let first = first.await.unwrap();
        assert_eq!(
            (first.status().as_u16(), first.headers()["retry-after"].as_bytes()),
            (503, &b"1"[..])
        );
        assert_eq!(*kinds.lock().unwrap(), [false]);
        wire.set(Line::Up);
        sleep(5 * SECOND).await;
        let till = Till::counting(storage, most());
        assert_eq!(till.charge("a-key", "").await.body(), "receipt 1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_shown_once_is_sealed_and_nothing_else() {
    let till = Till::new(MemoryStorage::new(), most(), |execution, request| async move {
        attempt_of(&request).seal();
        let status = [422, 201][execution - 1];
        Response::builder().status(status).body(Body::from("the secret")).unwrap()
    });
    // Nothing was done, and the key is free.
    assert_eq!(till.charge("a-key", "").await.status(), 422);
    let first = till.charge("a-key", "").await;
    assert_eq!((first.status().as_u16(), first.body().as_ref()), (201, &b"the secret"[..]));
    let again = till.charge("a-key", "").await;
    assert_eq!(code(&again), "response-not-retained");
    let problem: serde_json::Value = serde_json::from_slice(again.body()).unwrap();
    assert_eq!(
        (&problem["original-status"], &problem["reason"]),
        (&201.into(), &"by-handler".into())
    );
    assert_eq!(till.executions(), 2);
}

/// On a storage where every step is a trip: owners that vanish, and many that ask for them.
#[tokio::test]
async fn on_redis_one_at_a_time_asks() {
    let server = RedisServer::start();
    let lease = Duration::from_millis(1_500);
    let at_once = Arc::new(AtomicUsize::new(0));
    let ask = move |_: usize, _: Vanished| {
        let at_once = Arc::clone(&at_once);
        async move {
            assert_eq!(at_once.fetch_add(1, SeqCst), 0, "one at a time");
            sleep(Duration::from_millis(20)).await;
            at_once.fetch_sub(1, SeqCst);
            found()
        }
    };
    let (policy, asked) = asking(ask);
    let policy = policy.with_lease(lease).with_timeout(10 * SECOND);
    let keys = count(3, 20);
    let wire = Wire::new(redis_storage(&server.url(), "keys").await);
    let owner = Till::new(wire.clone(), policy.clone(), |_, _| pending::<Response<Body>>());
    for key in 0..keys {
        let key = format!("key-{key}");
        let sent = timeout(Duration::from_millis(100), owner.charge(&key, ""));
        assert!(sent.await.is_err());
    }
    while owner.executions() < keys {
        sleep(Duration::from_millis(5)).await;
    }
    wire.set(Line::Down);
    sleep(lease + SECOND / 2).await;
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let storage = redis_storage(&server.url(), "keys").await;
        nodes.push(Till::counting(storage, policy.clone()));
    }
    for key in 0..keys {
        let key = format!("key-{key}");
        let tasks: Vec<_> = (0..count(20, 100))
            .map(|number| {
                let (till, key) = (nodes[number % 2].clone(), key.clone());
                tokio::spawn(async move {
                    loop {
                        let answer: Response<Bytes> = till.charge(&key, "").await;
                        match answer.status().as_u16() {
                            202 => return,
                            409 => assert_eq!(code(&answer), "in-flight"),
                            _ => panic!("{answer:?}"),
                        }
                        sleep(Duration::from_millis(20)).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
    assert_eq!(asked.load(SeqCst), keys);
    assert_eq!(nodes.iter().map(Till::executions).sum::<usize>(), 0);
    server.check_keys("keys");
}

#[tokio::test(start_paused = true)]
async fn the_longest_run_may_be_without_end() {
    let policy = most().with_longest_run(Duration::MAX);
    let owner = Owner::of(MemoryStorage::new(), policy, "a-key", false).await;
    let (till, began) = (owner.till.clone(), Instant::now());
    sleep(100 * LEASE).await;
    assert_eq!(code(&till.charge("a-key", "").await), "in-flight");
    assert_eq!(began.elapsed(), 100 * LEASE);
    owner.ends().await;
}
