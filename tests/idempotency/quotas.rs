//! What one scope may use, and one process.

use std::{future::pending, time::Duration};

use axum::{
    body::Body,
    http::{Request, Response},
};
use tokio::{task::JoinHandle, time::sleep};
use tower_keep::{
    MemoryStorage, Storage,
    idempotency::{Outcome, Policy, Repeat},
};

use crate::{
    race::redis_storage,
    support::RedisServer,
    till::{Till, charge, code, is_replay, receipt},
    wire::{LEASE, Line, Wire, attempt_of, settle, unknown},
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// Keys belong to who says its name.
fn named() -> Policy {
    Policy::scope(|head| Some(head.headers().get("x-name")?.to_str().ok()?.to_owned()))
}

fn of(name: &str, key: &str) -> Request<Body> {
    let mut request = charge(key, "");
    request.headers_mut().insert("x-name", name.parse().unwrap());
    request
}

fn send(till: &Till, name: &str, key: &str) -> JoinHandle<axum::http::Response<bytes::Bytes>> {
    let (till, request) = (till.clone(), of(name, key));
    tokio::spawn(async move { till.send(request).await })
}

/// A handler that takes two seconds, and ends as its key says.
fn ending(storage: impl Storage, policy: Policy) -> Till {
    Till::new(storage, policy, |execution, request| async move {
        sleep(2 * SECOND).await;
        match request.headers()["idempotency-key"].as_bytes() {
            key if key.starts_with(b"panic") => panic!("as the test wants it"),
            key if key.starts_with(b"free") => {
                Response::builder().status(422).body(Body::empty()).unwrap()
            }
            key if key.starts_with(b"sealed") => {
                attempt_of(&request).seal();
                receipt(execution)
            }
            _ => receipt(execution),
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_scope_has_so_many_keys_in_flight_on_all_nodes() {
    let storage = MemoryStorage::new();
    let nodes = [(); 2].map(|()| ending(Wire::new(storage.clone()), named().with_max_in_flight(3)));
    for _ in 0..3 {
        let first: Vec<_> =
            (0..3).map(|n| send(&nodes[n % 2], "Zaphod", &format!("{n}"))).collect();
        settle().await;
        for till in &nodes {
            let refused = till.send(of("Zaphod", "one more")).await;
            // The key is malformed, and that comes first.
            assert_eq!(code(&refused), "key-malformed");
            let refused = till.send(of("Zaphod", "one-more")).await;
            assert_eq!(
                (refused.status().as_u16(), code(&refused)),
                (429, "too-many-in-flight".into())
            );
            assert_eq!(refused.headers()["retry-after"], "1");
            assert_eq!(refused.extensions().get(), Some(&Outcome::TooManyInFlight));
            // A duplicate needs no place.
            assert_eq!(code(&till.send(of("Zaphod", "1")).await), "in-flight");
        }
        let other = send(&nodes[0], "Trillian", "one-more");
        for task in first {
            assert_eq!(task.await.unwrap().status(), 201);
        }
        assert_eq!(other.await.unwrap().status(), 201);
        sleep(25 * HOUR).await;
    }
    // What was refused was not executed, and its key is free.
    assert_eq!(nodes[0].send(of("Zaphod", "one-more")).await.status(), 201);
}

#[tokio::test(start_paused = true)]
async fn a_place_comes_back_however_its_handler_ends() {
    let till = ending(Wire::new(MemoryStorage::new()), named().with_max_in_flight(1));
    for round in 0..3 {
        for ending in ["done", "panic", "free", "sealed", "gone"] {
            let key = format!("{ending}-{round}");
            let first = send(&till, "Zaphod", &key);
            settle().await;
            assert_eq!(code(&till.send(of("Zaphod", "other")).await), "too-many-in-flight");
            if ending == "gone" {
                first.abort();
                sleep(SECOND).await;
                // Its handler is still at it.
                assert_eq!(code(&till.send(of("Zaphod", "other")).await), "too-many-in-flight");
                sleep(SECOND).await;
            } else {
                first.await.unwrap();
            }
            settle().await;
            let next = send(&till, "Zaphod", &format!("next-{key}")).await.unwrap();
            assert_eq!(next.status(), 201, "after {key}");
            settle().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_place_of_an_owner_that_died_is_free_an_hour_later() {
    let (storage, policy) = (MemoryStorage::new(), named().with_max_in_flight(1));
    let wire = Wire::new(storage.clone());
    let dying = Till::new(wire.clone(), policy.clone(), |_, _| pending());
    let first = send(&dying, "Zaphod", "a-key");
    settle().await;
    wire.set(Line::Down);
    let till = Till::counting(storage, policy);
    sleep(HOUR - 2 * SECOND).await;
    assert_eq!(code(&till.send(of("Zaphod", "b-key")).await), "too-many-in-flight");
    sleep(3 * SECOND).await;
    assert_eq!(till.send(of("Zaphod", "b-key")).await.status(), 201);
    first.abort();
}

#[tokio::test]
async fn on_redis_a_scope_has_so_many_keys_in_flight() {
    let server = RedisServer::start();
    let mut nodes = Vec::new();
    let policy = named().with_max_in_flight(5).with_timeout(10 * SECOND);
    for _ in 0..2 {
        let storage = redis_storage(&server.url(), "keys").await;
        nodes.push(Till::new(storage, policy.clone(), |execution, _| async move {
            sleep(SECOND).await;
            receipt(execution)
        }));
    }
    for round in 0..2 {
        let all: Vec<_> =
            (0..20).map(|n| send(&nodes[n % 2], "Zaphod", &format!("{round}-{n}"))).collect();
        let mut granted = 0;
        for task in all {
            match task.await.unwrap().status().as_u16() {
                201 => granted += 1,
                status => assert_eq!(status, 429),
            }
        }
        assert_eq!(granted, 5);
        sleep(SECOND / 4).await;
    }
    server.check_keys("keys");
}

#[tokio::test(start_paused = true)]
async fn a_scope_has_so_many_bytes_stored() {
    let policy = named().with_max_stored(10).with_retention(HOUR);
    let till = Till::new(Wire::new(MemoryStorage::new()), policy, |_, request| async move {
        let kibibytes = match request.headers()["idempotency-key"].as_bytes() {
            key if key.starts_with(b"large") => 11,
            key if key.starts_with(b"empty") => 0,
            _ => 4,
        };
        Response::new(Body::from(vec![b'x'; kibibytes << 10]))
    });
    let is_kept = async |name, key| {
        assert_eq!(till.send(of(name, key)).await.status(), 200, "each is given its answer");
        let again = till.send(of(name, key)).await;
        if !is_replay(&again) {
            let problem: serde_json::Value = serde_json::from_slice(again.body()).unwrap();
            assert_eq!(code(&again), "response-not-retained");
            assert_eq!(
                (&problem["original-status"], &problem["reason"]),
                (&200.into(), &"over-quota".into())
            );
        }
        is_replay(&again)
    };
    assert!(!is_kept("Zaphod", "large").await, "it fits into no quota");
    assert!(is_kept("Zaphod", "first").await);
    assert!(is_kept("Zaphod", "second").await);
    assert!(!is_kept("Zaphod", "third").await);
    assert!(is_kept("Zaphod", "empty").await, "what takes no room is kept");
    assert!(is_kept("Trillian", "first").await);
    let executions = till.executions();
    assert_eq!(executions, 6);
    sleep(2 * HOUR).await;
    assert!(is_kept("Zaphod", "fourth").await);
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_which_there_is_no_room_at_all_seals_its_key() {
    let wire = Wire::new(MemoryStorage::new());
    let line = wire.clone();
    let till = Till::new(wire, Policy::scope_public(), move |execution, _| {
        line.refuse_larger_than(1_000);
        async move {
            let mut answer = receipt(execution);
            *answer.body_mut() = Body::from(vec![b'x'; 2_000]);
            answer
        }
    });
    assert_eq!(till.charge("a-key", "").await.body().len(), 2_000);
    assert_eq!(code(&till.charge("a-key", "").await), "response-not-retained");
    assert_eq!(till.executions(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_process_runs_so_many_handlers() {
    let storage = MemoryStorage::new();
    let till = ending(Wire::new(storage.clone()), named().with_max_running(2));
    for round in 0..3 {
        let first = ["done", "panic"].map(|key| send(&till, "Zaphod", &format!("{key}-{round}")));
        settle().await;
        let refused = till.send(of("Trillian", "a-key")).await;
        assert_eq!((refused.status().as_u16(), code(&refused)), (503, "busy".into()));
        assert_eq!(refused.headers()["retry-after"], "1");
        assert_eq!(refused.extensions().get(), Some(&Outcome::Busy));
        for task in first {
            task.await.unwrap();
        }
        settle().await;
    }
    assert_eq!(till.send(of("Trillian", "a-key")).await.status(), 201);
    // Replays are no handlers.
    let first = ["e", "f"].map(|key| send(&till, "Zaphod", key));
    settle().await;
    assert!(is_replay(&till.send(of("Trillian", "a-key")).await));
    for task in first {
        task.await.unwrap();
    }
}

/// A place is asked for after the key was claimed: without an answer nothing is executed.
#[tokio::test(start_paused = true)]
async fn without_an_answer_of_its_quota_a_request_is_refused_and_its_key_free() {
    let storage = MemoryStorage::new();
    let policy = Policy::scope_public().with_repeat(Repeat::AtMostOnce).with_max_in_flight(5);
    let wire = Wire::new(storage.clone());
    let till = Till::counting(wire.clone(), policy);
    wire.mute_after(1);
    let refused = till.charge("a-key", "").await;
    assert_eq!((refused.status().as_u16(), code(&refused)), (503, "unavailable".into()));
    wire.set(Line::Up);
    sleep(LEASE / 2).await;
    assert_eq!(till.charge("a-key", "").await.body(), "receipt 1");
    assert!(unknown(&till).await.is_empty());
}
