//! Keys whose outcome is unknown, and the people who look after them.

use std::{future::pending, time::Duration};

use axum::{
    body::Body,
    http::{Method, Response, StatusCode},
};
use bytes::Bytes;
use tokio::time::{sleep, timeout};
use tower_keep::{
    MemoryStorage, Storage,
    idempotency::{IdempotencyKey, KeyError, KeyHandle, Policy, Repeat, Resolution},
    storage::{Get, Identity, Key, Name, Put},
};

use crate::{
    race::{count, redis_storage},
    support::RedisServer,
    till::{Till, charge, code, is_replay, receipt},
    wire::{LEASE, Line, Owner, Wire, attempt_of, unknown},
};

const SECOND: Duration = Duration::from_secs(1);

fn most() -> Policy {
    Policy::scope_public().with_repeat(Repeat::AtMostOnce)
}

fn of(key: &str) -> IdempotencyKey {
    key.parse().unwrap()
}

/// The handle of the key on the till's one route.
fn handle(till: &Till, key: &str) -> KeyHandle {
    till.layer.keys().handle(public(), &Method::POST, "/charge", &of(key))
}

/// The scope of those who are not told apart.
fn public() -> Identity {
    Identity::global()
}

fn from_ledger() -> Response<Bytes> {
    Response::builder()
        .status(202)
        .header("x-ledger", "7")
        .header("connection", "close")
        .body("from the ledger".into())
        .unwrap()
}

/// A key whose owner is silent, and that was asked for since.
async fn asked_for(storage: &MemoryStorage, key: &str) -> (Owner, Till) {
    let owner = Owner::vanished(storage.clone(), most(), key, false).await;
    let till = Till::counting(storage.clone(), most());
    assert_eq!(code(&till.charge(key, "").await), "outcome-unknown");
    (owner, till)
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_is_listed_by_the_handle_that_support_can_compute() {
    let storage = MemoryStorage::new();
    let (_owner, till) = asked_for(&storage, "a-key").await;
    sleep(10 * SECOND).await;
    let listed = unknown(&till).await;
    assert_eq!(listed.len(), 1);
    let key = &listed[0];
    assert_eq!(key.handle, handle(&till, "a-key"));
    assert_eq!(key.handle.to_string().parse(), Ok(key.handle));
    assert_eq!((&*key.label, key.attempt), ("POST /charge", 1));
    assert_eq!(key.age, 10 * SECOND);
    assert_eq!(key.ttl, Duration::from_secs(24 * 3_600 - 10));
    assert_ne!(key.handle, handle(&till, "another-key"));
    let keys = till.layer.keys();
    assert_ne!(key.handle, keys.handle("Zaphod", &Method::POST, "/charge", &of("a-key")));
    assert_ne!(key.handle, keys.handle(public(), &Method::PATCH, "/charge", &of("a-key")));
    assert_ne!(key.handle, keys.handle(public(), &Method::POST, "/refund", &of("a-key")));
}

#[test]
fn a_key_is_made_of_its_text() {
    assert_eq!(of("a-key").as_str(), "a-key");
    assert_eq!(of("with \"quotes\"").as_str(), "with \"quotes\"");
    assert_eq!("".parse::<IdempotencyKey>(), Err(KeyError::Empty));
    for text in ["with\ttab", "naïve", "line\n", "\u{7f}"] {
        assert_eq!(text.parse::<IdempotencyKey>(), Err(KeyError::Malformed), "{text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_has_found_is_replayed() {
    let storage = MemoryStorage::new();
    let (owner, till) = asked_for(&storage, "a-key").await;
    let (keys, handle) = (till.layer.keys(), handle(&till, "a-key"));
    assert_eq!(keys.resolve(handle, from_ledger()).await.unwrap(), Resolution::Done);
    let answer = till.charge("a-key", "").await;
    assert_eq!((answer.status().as_u16(), is_replay(&answer)), (202, true));
    assert_eq!(
        (answer.headers()["x-ledger"].as_bytes(), answer.body().as_ref()),
        (&b"7"[..], &b"from the ledger"[..])
    );
    assert!(!answer.headers().contains_key("connection"));
    assert!(unknown(&till).await.is_empty());
    // Once it is said, it is said: neither again, nor by the owner.
    assert_eq!(keys.seal(handle, StatusCode::OK).await.unwrap(), Resolution::NotUnknown);
    assert_eq!(keys.delete(handle).await.unwrap(), Resolution::NotUnknown);
    assert_eq!(owner.comes_back().await.body(), "from the ledger");
    assert_eq!(till.charge("a-key", "").await.body(), "from the ledger");
    assert_eq!(till.executions(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_has_sealed_is_not_executed() {
    let storage = MemoryStorage::new();
    let (owner, till) = asked_for(&storage, "a-key").await;
    let sealed = till.layer.keys().seal(handle(&till, "a-key"), StatusCode::CREATED).await;
    assert_eq!(sealed.unwrap(), Resolution::Done);
    let check = async || {
        let answer = till.charge("a-key", "").await;
        let problem: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(code(&answer), "response-not-retained");
        assert_eq!(
            (&problem["original-status"], &problem["reason"]),
            (&201.into(), &"by-operator".into())
        );
    };
    check().await;
    assert_eq!(owner.comes_back().await.body(), "late receipt", "its client may have it");
    check().await;
    assert!(unknown(&till).await.is_empty());
    assert_eq!(till.executions(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_has_deleted_is_executed_by_the_next() {
    let storage = MemoryStorage::new();
    let (owner, till) = asked_for(&storage, "a-key").await;
    let deleted = till.layer.keys().delete(handle(&till, "a-key")).await;
    assert_eq!(deleted.unwrap(), Resolution::Done);
    assert!(unknown(&till).await.is_empty());
    let (late, wire) = (owner.till.clone(), owner.wire.clone());
    assert_eq!(owner.comes_back().await.body(), "late receipt");
    assert_eq!(till.charge("a-key", "").await.body(), "receipt 1");
    assert_eq!(late.charge("a-key", "").await.body(), "receipt 1");
    drop(wire);
    assert_eq!((till.executions(), late.executions()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_comes_back_settles_what_nobody_has() {
    type Make = fn() -> Response<Body>;
    let answers: [(Make, bool); 2] = [
        (|| receipt(7), true),
        (|| Response::builder().status(422).body(Body::empty()).unwrap(), false),
    ];
    for (answer, kept) in answers {
        let storage = MemoryStorage::new();
        let owner = Owner::answering(storage.clone(), most(), "a-key", false, answer).await;
        owner.fall_silent().await;
        let till = Till::counting(storage.clone(), most());
        assert_eq!(code(&till.charge("a-key", "").await), "outcome-unknown");
        assert_eq!(unknown(&till).await.len(), 1);
        owner.comes_back().await;
        assert!(unknown(&till).await.is_empty(), "the list heals");
        let again = till.charge("a-key", "").await;
        assert_eq!(is_replay(&again), kept);
        assert_eq!(again.body(), if kept { "receipt 7" } else { "receipt 1" });
        let told = till.layer.keys().resolve(handle(&till, "a-key"), from_ledger()).await.unwrap();
        assert_eq!(told, Resolution::NotUnknown);
        assert_eq!(till.charge("a-key", "").await.body(), again.body());
    }
}

#[tokio::test(start_paused = true)]
async fn only_an_unknown_key_is_resolved() {
    let storage = MemoryStorage::new();
    let till = Till::counting(storage.clone(), most());
    let keys = till.layer.keys();
    let refused = async |key| {
        let handle = handle(&till, key);
        assert_eq!(keys.resolve(handle, from_ledger()).await.unwrap(), Resolution::NotUnknown);
        assert_eq!(keys.seal(handle, StatusCode::OK).await.unwrap(), Resolution::NotUnknown);
        assert_eq!(keys.delete(handle).await.unwrap(), Resolution::NotUnknown);
    };
    refused("never used").await;
    till.charge("done", "").await;
    refused("done").await;
    assert!(is_replay(&till.charge("done", "").await));
    let owner = Owner::of(storage, most(), "pending", false).await;
    refused("pending").await;
    assert_eq!(code(&till.charge("pending", "").await), "in-flight");
    owner.fall_silent().await;
    // Nobody has noticed yet; support was called.
    let resolved = keys.resolve(handle(&till, "pending"), from_ledger()).await.unwrap();
    assert_eq!(resolved, Resolution::Done);
    assert_eq!(till.charge("pending", "").await.body(), "from the ledger");
}

#[tokio::test(start_paused = true)]
async fn the_keys_of_two_policies_are_apart() {
    let storage = MemoryStorage::new();
    let (_owner, till) = asked_for(&storage, "a-key").await;
    let other = Till::counting(storage, most().with_name("others"));
    assert!(unknown(&other).await.is_empty());
    let deleted = other.layer.keys().delete(handle(&till, "a-key")).await.unwrap();
    assert_eq!(deleted, Resolution::NotUnknown);
    assert_eq!(other.charge("a-key", "").await.body(), "receipt 1");
    assert_ne!(handle(&till, "a-key"), handle(&other, "a-key"));
    assert_eq!(unknown(&till).await.len(), 1);
}

#[tokio::test]
async fn of_two_operators_one_has_the_last_word() {
    let server = RedisServer::start();
    let policy = most().with_lease(SECOND).with_timeout(10 * SECOND);
    let wire = Wire::new(redis_storage(&server.url(), "keys").await);
    let owner = Till::new(wire.clone(), policy.clone(), |_, _| pending::<Response<Body>>());
    let storage = redis_storage(&server.url(), "keys").await;
    let till = Till::counting(storage, policy);
    let rounds = count(15, 200);
    for round in 0..rounds {
        let _ = timeout(SECOND / 10, owner.charge(&format!("key-{round}"), "")).await;
    }
    wire.set(Line::Down);
    sleep(SECOND + SECOND / 2).await;
    for round in 0..rounds {
        let key = format!("key-{round}");
        assert_eq!(code(&till.charge(&key, "").await), "outcome-unknown");
        let (handle, keys) = (handle(&till, &key), till.layer.keys());
        let (resolve, seal, delete) = tokio::join!(
            keys.resolve(handle, from_ledger()),
            keys.seal(handle, StatusCode::OK),
            keys.delete(handle),
        );
        let words = [resolve.unwrap(), seal.unwrap(), delete.unwrap()];
        let winner = words.iter().position(|word| *word == Resolution::Done).unwrap();
        assert_eq!(words.iter().filter(|word| **word == Resolution::Done).count(), 1);
        let answer = till.charge(&key, "").await;
        match winner {
            0 => assert_eq!(answer.body(), "from the ledger"),
            1 => assert_eq!(code(&answer), "response-not-retained"),
            _ => assert_eq!(answer.status(), 201),
        }
    }
    assert!(unknown(&till).await.is_empty());
    server.check_keys("keys");
}

/// So many keys of owners that have vanished, each asked for since.
async fn many(storage: &MemoryStorage, names: impl Iterator<Item = String>) -> Till {
    let wire = Wire::new(storage.clone());
    let owner = Till::new(wire.clone(), most(), |_, _| pending::<Response<Body>>());
    let till = Till::counting(storage.clone(), most());
    let names: Vec<_> = names.collect();
    for name in &names {
        let request = owner.send(charge(name, ""));
        assert!(timeout(Duration::from_millis(1), request).await.is_err());
    }
    wire.set(Line::Down);
    sleep(LEASE + SECOND).await;
    for name in &names {
        assert_eq!(code(&till.charge(name, "").await), "outcome-unknown");
    }
    till
}

#[tokio::test(start_paused = true)]
async fn thousands_of_unknown_keys_are_listed_page_by_page() {
    let names = || (0..2_000).map(|number| format!("key-{number}"));
    let till = many(&MemoryStorage::new(), names()).await;
    let mut listed: Vec<_> = unknown(&till).await.into_iter().map(|key| key.handle).collect();
    let mut wanted: Vec<_> = names().map(|name| handle(&till, &name)).collect();
    listed.sort();
    wanted.sort();
    assert_eq!(listed, wanted);
    for handle in wanted {
        assert_eq!(till.layer.keys().delete(handle).await.unwrap(), Resolution::Done);
    }
    assert!(unknown(&till).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_full_loses_its_oldest_and_no_outcome() {
    let storage = MemoryStorage::new();
    let probe = Till::counting(storage.clone(), most());
    // Of one bucket: these share the low half of their first byte.
    let of_one = |name: &String| handle(&probe, name).to_string().as_bytes()[1] == b'7';
    let names: Vec<_> =
        (0..).map(|number| format!("key-{number}")).filter(of_one).take(514).collect();
    let till = many(&storage, names.iter().cloned()).await;
    let listed: Vec<_> = unknown(&till).await.into_iter().map(|key| key.handle).collect();
    let wanted: Vec<_> = names[2..].iter().map(|name| handle(&till, name)).collect();
    assert_eq!(listed, wanted, "in the order in which it was noticed");
    // What is not listed is unknown all the same, and can be resolved.
    assert_eq!(code(&till.charge(&names[0], "").await), "outcome-unknown");
    let resolved = till.layer.keys().resolve(handle(&till, &names[0]), from_ledger()).await;
    assert_eq!(resolved.unwrap(), Resolution::Done);
    assert_eq!(till.charge(&names[0], "").await.body(), "from the ledger");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_hides_no_other() {
    let storage = MemoryStorage::new();
    let till = many(&storage, (0..40).map(|number| format!("key-{number}"))).await;
    let damaged = handle(&till, "key-7").to_string();
    let digest: Vec<u8> = (0..64)
        .step_by(2)
        .map(|at| u8::from_str_radix(&damaged[at..at + 2], 16).unwrap())
        .collect();
    let key = Key::new(&Name::new("idempotency.keys"), &Name::new("key"), Identity::new(&digest));
    assert!(storage.get(&key, Get::new()).await.unwrap().entry.is_some());
    storage.put(&key, Put::new("damaged".into(), 60 * SECOND)).await.unwrap();
    assert_eq!(code(&till.charge("key-7", "").await), "record-unreadable");
    assert_eq!(unknown(&till).await.len(), 39);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_given_up_before_its_commit_point_is_nobodys() {
    let policy = most().with_commit_point();
    let storage = Wire::new(MemoryStorage::new()).erase();
    let till = Till::new(storage.clone(), policy, |_, request| async move {
        if request.headers()["idempotency-key"] == "begun" {
            attempt_of(&request).begin().await.unwrap();
        }
        pending().await
    });
    for key in ["begun", "not-begun"] {
        assert!(timeout(SECOND, till.charge(key, "")).await.is_err());
    }
    assert_eq!(storage.shutdown(10 * SECOND).await.abandoned, 2);
    let listed = unknown(&till).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].handle, handle(&till, "begun"));
}
