//! The first path: a key is executed once, and its answer replayed.

use std::time::Duration;

use axum::body::Body;
use tokio::time::{advance, sleep};
use tower_keep::{
    MemoryStorage,
    idempotency::{InFlight, MissingScope, Outage, Policy, Repeat},
};

use crate::till::{Till, charge, code, is_replay, receipt};

#[tokio::test]
async fn a_key_is_executed_once_and_its_answer_replayed() {
    let till = Till::counting(MemoryStorage::new(), Policy::scope_public());
    let first = till.charge("a-key", "100 EUR").await;
    assert_eq!((first.status().as_u16(), is_replay(&first)), (201, false));
    for _ in 0..3 {
        let again = till.charge("a-key", "100 EUR").await;
        assert_eq!((again.status().as_u16(), is_replay(&again)), (201, true));
        assert_eq!(again.body(), "receipt 1");
        assert_eq!(again.headers()["x-receipt"], "1");
    }
    assert_eq!(till.charge("another-key", "100 EUR").await.body(), "receipt 2");
    assert_eq!(till.executions(), 2);
}

#[tokio::test]
async fn another_request_with_the_key_is_refused() {
    let till = Till::counting(MemoryStorage::new(), Policy::scope_public());
    till.charge("a-key", "100 EUR").await;
    let other = till.charge("a-key", "999 EUR").await;
    assert_eq!((other.status().as_u16(), code(&other)), (422, "mismatch".into()));
    assert_eq!(till.executions(), 1);
}

#[tokio::test]
async fn a_key_is_required_if_the_policy_says_so() {
    let without = || charge("x", "").map(|_| Body::empty());
    let bare = |mut request: axum::http::Request<Body>| {
        request.headers_mut().remove("idempotency-key");
        request
    };
    let optional = Till::counting(MemoryStorage::new(), Policy::scope_public());
    assert_eq!(optional.send(bare(without())).await.status(), 201);
    assert_eq!(optional.send(bare(without())).await.status(), 201);
    assert_eq!(optional.executions(), 2);
    let policy = Policy::scope_public().with_required_key();
    let required = Till::counting(MemoryStorage::new(), policy);
    let refused = required.send(bare(without())).await;
    assert_eq!((refused.status().as_u16(), code(&refused)), (400, "key-missing".into()));
    assert_eq!(required.executions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_of_what_is_under_way_is_told_so_or_waits() {
    for in_flight in [InFlight::Conflict, InFlight::Wait(Duration::from_secs(5))] {
        let policy = Policy::scope_public().with_in_flight(in_flight);
        let till = Till::new(MemoryStorage::new(), policy, |execution, _| async move {
            sleep(Duration::from_secs(2)).await;
            receipt(execution)
        });
        let first = tokio::spawn({
            let till = till.clone();
            async move { till.charge("a-key", "").await }
        });
        tokio::task::yield_now().await;
        let second = till.charge("a-key", "").await;
        match in_flight {
            InFlight::Conflict => {
                assert_eq!((second.status().as_u16(), code(&second)), (409, "in-flight".into()));
                assert_eq!(second.headers()["retry-after"], "1");
            }
            _ => assert!(is_replay(&second), "{second:?}"),
        }
        assert_eq!(first.await.unwrap().body(), "receipt 1");
        assert_eq!(till.executions(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_changes_nothing() {
    let till = Till::new(MemoryStorage::new(), Policy::scope_public(), |execution, _| async move {
        sleep(Duration::from_secs(100)).await;
        receipt(execution)
    });
    let gone = tokio::time::timeout(Duration::from_secs(1), till.charge("a-key", "")).await;
    assert!(gone.is_err());
    for _ in 0..8 {
        advance(Duration::from_secs(10)).await;
        assert_eq!(till.charge("a-key", "").await.status(), 409);
    }
    sleep(Duration::from_secs(20)).await;
    assert!(is_replay(&till.charge("a-key", "").await));
    assert_eq!(till.executions(), 1);
}

#[tokio::test]
async fn a_panic_is_an_answer_and_is_kept() {
    let till = Till::new(MemoryStorage::new(), Policy::scope_public(), |_, _| async move {
        panic!("on purpose")
    });
    for replayed in [false, true] {
        let answer = till.charge("a-key", "").await;
        assert_eq!((answer.status().as_u16(), is_replay(&answer)), (500, replayed));
    }
    assert_eq!(till.executions(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_its_owner_has_vanished_a_key_is_taken_over_or_unknown() {
    for repeat in [Repeat::AtLeastOnce, Repeat::AtMostOnce] {
        let storage = MemoryStorage::new();
        let policy = Policy::scope_public().with_repeat(repeat);
        // A process that dies: its runtime ends with everything in it.
        let dead = storage.clone();
        let policy_of_dead = policy.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let till = Till::new(dead, policy_of_dead, |_, _| std::future::pending());
                let _ =
                    tokio::time::timeout(Duration::from_millis(20), till.charge("a-key", "")).await;
            });
        })
        .join()
        .unwrap();
        let till = Till::counting(storage, policy);
        assert_eq!(code(&till.charge("a-key", "").await), "in-flight");
        sleep(Duration::from_secs(31)).await;
        let answer = till.charge("a-key", "").await;
        match repeat {
            Repeat::AtLeastOnce => assert_eq!(answer.body(), "receipt 1"),
            _ => {
                assert_eq!(
                    (answer.status().as_u16(), code(&answer)),
                    (409, "outcome-unknown".into())
                );
                let keys = till.layer.keys();
                let mut found = Vec::new();
                let mut next = Some(tower_keep::idempotency::KeyCursor::START);
                while let Some(at) = next {
                    let page = keys.list(at).await.unwrap();
                    found.extend(page.keys);
                    next = page.next;
                }
                assert_eq!(found.len(), 1);
                assert_eq!(found[0].label, "POST /charge");
            }
        }
    }
}

#[tokio::test]
async fn while_nobody_can_say_whose_key_it_is_nothing_runs() {
    for found in [Ok(Some("alice")), Ok(None), Err("the sessions are away")] {
        let policy = Policy::scope_async(move |_| async move { found })
            .with_missing_scope(MissingScope::Pass)
            .with_outage(Outage::Open);
        let till = Till::counting(MemoryStorage::new(), policy);
        for request in 1..3 {
            let answer = till.charge("a-key", "").await;
            let (status, executions) = match found {
                Ok(Some(_)) => (201, 1),
                Ok(None) => (201, request),
                Err(_) => (503, 0),
            };
            assert_eq!((answer.status().as_u16(), till.executions()), (status, executions));
            if found.is_err() {
                assert_eq!(code(&answer), "unavailable");
                assert_eq!(answer.headers()["retry-after"], "1");
            }
        }
    }
}
